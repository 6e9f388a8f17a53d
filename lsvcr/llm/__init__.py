"""The language model of stage one: loading, adapters, text vectors, and its alignment with the SR model."""
