"""Losses on the captured states: LayerSync and other regularizers, found through plugins."""
