"""What a release refuses."""


class ReleaseError(Exception):
    """Why no release is made, in one line."""
