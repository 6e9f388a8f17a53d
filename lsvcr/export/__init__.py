"""From checkpoints of stage two and of other recommenders to a bundle that answers without torch."""
