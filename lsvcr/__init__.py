"""LSVCR: sequential recommenders that learn from an LLM and serve without it."""

__version__ = "0.1.0"
