"""Models: the SR model (the product), what every recommender offers, and checkpoints."""
