"""Comparing runs: tables of several models under one protocol, and what one model adds to another."""
