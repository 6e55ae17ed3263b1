"""The part that runs in a process of its own: it imports torch, models and plugins, and may crash."""
