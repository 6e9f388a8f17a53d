"""Helpers without knowledge of recommendation: files, processes, seeds, logs, settings."""
