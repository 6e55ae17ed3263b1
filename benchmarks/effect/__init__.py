"""Does LayerSync help? `python -m benchmarks.effect`."""
