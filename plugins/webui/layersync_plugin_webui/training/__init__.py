"""The page that sets up a training and starts it."""
