"""Programs that print the performance figures."""
