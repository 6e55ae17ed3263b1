"""Empty: transformers imports it, and uses it only for videos."""
