"""See before you train how similar the blocks of a model are, and which pair that supports."""
