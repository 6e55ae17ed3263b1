"""Every training regime on several families: the gradients are those of a plain run, or the regime is refused."""
