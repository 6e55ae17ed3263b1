"""Tokenizers of 26 letters, and random images; written in a trainer's own environment."""

from __future__ import annotations

import json
from pathlib import Path

_LETTERS = [*"abcdefghijklmnopqrstuvwxyz"]


def save_clip_tokenizer(folder: Path) -> None:
    """Write the vocabulary of a CLIP tokenizer."""
    folder.mkdir(parents=True)
    tokens = ["<|startoftext|>", "<|endoftext|>", *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def save_t5_tokenizer(folder: Path) -> None:
    """Save a T5 tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in _LETTERS)]
    T5TokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=2)), extra_ids=0).save_pretrained(folder)


def save_images(folder: Path, count: int) -> None:
    """Write images of 64 by 64 random pixels, with captions beside them."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("photo")
