"""From checkpoints of stage two to a bundle that answers without torch."""
