"""Protocols, metrics and the evaluator every model is measured by."""
