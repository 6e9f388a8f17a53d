"""The three trainings: stage one (align), embedding of all texts (embed), stage two (rank)."""
