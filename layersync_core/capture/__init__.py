"""Capturing hidden states: the hooks, the states they store, and how those are read."""
