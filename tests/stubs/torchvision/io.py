"""Empty: transformers imports it and uses it for videos alone."""
