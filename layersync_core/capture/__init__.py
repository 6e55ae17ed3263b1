"""What a forward left behind: hooks, the states they store, and how those are read."""
