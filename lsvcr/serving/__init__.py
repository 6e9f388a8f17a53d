"""Answers from a bundle: no torch, no transformers, raw ids in and out."""
