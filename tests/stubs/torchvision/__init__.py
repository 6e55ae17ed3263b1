"""Stands in for torchvision, which has no build for the torch of the tests: what example scripts crop images with.

It carries no distribution metadata, so diffusers takes torchvision as missing; transformers imports the names below.
"""

__version__ = "0.0.0"
