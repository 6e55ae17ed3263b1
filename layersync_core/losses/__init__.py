"""What is made of the states: LayerSync and other regularizers, found through plugins."""
