"""Find a model's blocks and its generated tokens by measuring, knowing nothing of its family."""
