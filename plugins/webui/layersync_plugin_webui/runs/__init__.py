"""Runs: finding them, and what they are, do and have done."""
