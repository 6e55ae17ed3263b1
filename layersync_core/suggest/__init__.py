"""See before you train: how alike the blocks of a model are, and which pair that speaks for."""
