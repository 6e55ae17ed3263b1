"""Transformers' image processors import this; they do not run in the tests."""

from torchvision.transforms.v2 import functional

__all__ = ["functional"]
