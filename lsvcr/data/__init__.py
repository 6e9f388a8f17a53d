"""Raw logs to the prepared dataset, and from it to the samples of both stages."""
