"""The settings of a small model: those of a large one, scaled down so that the relations between them still hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

# The role of an integer setting by its name; the first match counts.
_ROLES = (
    ("ignored", r"theta|interval|ratio|mult$|multiple|factor|compress|period|per_block|seed|token_id|expand"),
    ("layers", r"(^|_)(layers?|depths?|blocks)(_|$)|^n_?layers?$"),
    ("kv_heads", r"(kv|key_value).*heads?$|heads?_kv$"),
    ("head_dim", r"head_(dim|size|channels)|dim_(per_)?head|^d_head|channels_per_head"),
    ("heads", r"heads?$|^n_?heads?"),
    ("axes", r"axes_dim|axes_dims|rope_(axes_)?dim|axes?_dims?|mrope|rope_sizes|rope_axes"),
    ("patch", r"patch|tubelet"),
    ("frames", r"frames$|video_length|num_frames|frame_count"),
    (
        "text_length",
        r"(text|caption|prompt|txt|context|cap).*(len|length|tokens)(_t5)?$|^max_sequence_length$|^token_num",
    ),
    ("table", r"max_(size|len|position|seq)|vocab|axes_len|num_embeds|classes|positions"),
    ("size", r"^(sample|image|input|latent|img|spatial)_(size|height|width)$|^(height|width|resolution|img_size)$"),
    ("groups", r"groups$"),
    ("experts", r"experts$"),
    ("mlp", r"ffn|feed_?forward|^ff_|_ff_|intermediate|mlp_?(dim|hidden|size|width)|hidden_ffn"),
    ("time", r"(^|_)(time|timestep|freq|frequency|sigma|t_emb|tembed|adaln|temb)"),
    (
        "outer",
        r"text|txt|caption|(^|_)cap_|cross_att|joint|context|prompt|llm|llama|encoder|pooled|pool|cond|clip|t5|byt5"
        r"|vec|image_(dim|embed|proj)|img_(dim|in)|added_kv|audio|id_dim|vit_dim|feature|global|projection|y_dim|bottleneck",
    ),
    ("channels", r"channels?$|^(in|out)_(dim|features|ch)$|^(input|output)_dim$|latent_dim"),
    ("hidden", r"hidden|inner_dim|model_dim|^d_?model$|^width$|^dim$|embed_dim$|embed_size|n_embd|embed$|_dim$|dim$"),
)
_ASIDE = re.compile(r"refiner|text|txt|pre_|post_|encoder|lfe|vision|context|caption|aggregat")
"""Numbers of blocks in lists other than the sample's."""
_OUTER = (24, 40, 56, 72, 88, 104, 120, 136)
_SHRUNK = 24
"""Widths up to this one are kept."""
_MOST = 8
"""The largest multiple by which one width is assumed to depend on another."""


@dataclass(frozen=True)
class Size:
    """The size of a small model.

    Attributes:
        heads: Attention heads; 0 keeps the large model's number.
        head_dim: Channels per head; 0 keeps the large model's number.
        layers: Blocks in a list if there is only one; half as many in each if there are several.
        kept: Roles and names of settings that are kept.
    """

    heads: int = 2
    head_dim: int = 16
    layers: int = 4
    kept: frozenset[str] = frozenset()


def role_of(name: str) -> str:
    """Return the role of a setting by its name; empty if the name does not show it."""
    return next((role for role, pattern in _ROLES if re.search(pattern, name.lower())), "")


def scaled(values: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Return the settings of a small model that differ from the large one's.

    Equal widths stay equal, a width of heads times channels per head stays such a product, and so do its multiples;
    inputs from elsewhere, such as text, get widths that occur only once, so that an error with such a width shows which
    input it was.

    Args:
        values: The large model's settings.
        size: The size of the small model.
    """
    return _Scaling(values, size).changed()


def guessed(name: str, annotation: str, size: Size) -> Any:
    """Return a value for a setting that has none; None if its name and type show nothing."""
    width = max(size.heads, 1) * max(size.head_dim, 1)
    guesses = {
        "layers": size.layers, "heads": size.heads, "kv_heads": size.heads, "head_dim": size.head_dim, "patch": 2,
        "frames": 3, "text_length": 5, "size": 8, "groups": 4, "mlp": 2 * width, "time": 20, "outer": _OUTER[0],
        "channels": 4, "hidden": width, "experts": 4, "table": 16, "axes": _shares((1, 1), size.head_dim),
    }  # fmt: skip
    role = role_of(name)
    if re.search(r"tuple|list|sequence", annotation, re.I) and role in ("patch", "layers"):
        return {"patch": (1, 2, 2), "layers": (2, 2)}[role]
    if role in guesses and not re.search(r"\b(bool|str|float)\b", annotation):
        return guesses[role]
    return next(
        (
            value
            for kind, value in (("bool", False), ("int", 16), ("float", 1.0))
            if re.search(rf"\b{kind}\b", annotation)
        ),
        None,
    )


class _Scaling:
    """Computes the settings of one small model."""

    def __init__(self, values: Mapping[str, Any], size: Size) -> None:
        self._values, self._size = values, size
        numbers = {name: value for name, value in values.items() if type(value) is int and value > 0}
        self._by_role: dict[str, dict[str, int]] = {}
        for name, value in numbers.items():
            self._by_role.setdefault(role_of(name), {})[name] = value
        self._heads = self._first("heads")
        self._head_dim = self._first("head_dim")
        hidden = list(self._by_role.get("hidden", {}).values())
        # If no setting gives the width of a head, it follows from the width of a block.
        if not self._head_dim and self._heads:
            self._head_dim = next((width // self._heads for width in hidden if width % self._heads == 0), 0)
        self._width = self._heads * self._head_dim or max(hidden, default=0)
        self._new_heads = min(size.heads or self._heads, self._heads) or max(size.heads, 1)
        self._new_head_dim = min(size.head_dim or self._head_dim, self._head_dim) or max(size.head_dim, 1)
        self._new_width = self._new_heads * self._new_head_dim
        self._outer: dict[int, int] = {}

    def _first(self, role: str) -> int:
        return next(iter(self._by_role.get(role, {}).values()), 0)

    def changed(self) -> dict[str, Any]:
        found = {}
        for name, value in self._values.items():
            role = role_of(name)
            if self._size.kept & {name, role} or isinstance(value, bool) or value is None:
                continue
            if type(value) is int and value > 0:
                new: Any = self._number(name, role, value)
            elif isinstance(value, (tuple, list)) and value and all(type(item) is int for item in value):
                new = type(value)(self._numbers(role, value))
            else:
                continue
            if new != value:
                found[name] = new
        return found

    def _number(self, name: str, role: str, value: int) -> int:
        if role == "layers":
            return min(value, self._layers(name))
        if role in ("heads", "kv_heads"):
            if value == self._heads:
                return self._new_heads
            return max(1, self._new_heads * value // self._heads) if self._heads and value < self._heads else value
        if role == "head_dim":
            return self._new_head_dim if value == self._head_dim else min(value, self._new_head_dim)
        if role == "frames":
            patch = self._first_of("patch", "_t")
            latents = 3 if patch <= 1 else 2 * patch
            return min(value, (latents - 1) * self._compression() + 1)
        if role == "text_length":
            return min(value, 5)
        if role in ("size", "groups", "experts"):
            return min(value, {"size": 8, "groups": 4, "experts": 4}[role])
        if role == "channels" and value != self._width:
            return value if value <= _SHRUNK else self._channels(value)
        if role in ("hidden", "mlp", "outer", "channels") and value > _SHRUNK:
            return self._wide(role, value)
        return min(value, 20) if role == "time" and value > _SHRUNK else value

    def _wide(self, role: str, value: int) -> int:
        for times in range(1, _MOST + 1):
            if self._width and value == times * self._width:
                return times * self._new_width
        if role == "mlp":
            return 2 * self._new_width
        if role == "hidden" and (not self._width or value % self._width == 0 or self._width % value == 0):
            return max(8, value * self._new_width // self._width) if self._width else self._new_width
        return self._outer.setdefault(value, _OUTER[len(self._outer) % len(_OUTER)])

    def _channels(self, value: int) -> int:
        widths = self._by_role.get("channels", {}).values()
        smallest = min(width for width in widths if width > _SHRUNK)
        # Keeps the ratio of the widths: a condition's channels beside the noisy ones, a variance beside the mean.
        return 16 * (value // smallest) if value % smallest == 0 else value

    def _layers(self, name: str) -> int:
        if _ASIDE.search(name.lower()):
            return 2
        counts = {value for other, value in self._by_role.get("layers", {}).items() if not _ASIDE.search(other.lower())}
        return max(2, self._size.layers // 2) if len(counts) > 1 else self._size.layers

    def _numbers(self, role: str, values: Sequence[int]) -> Sequence[int]:
        if role == "axes" and sum(values) == self._head_dim:
            return _shares(values, self._new_head_dim)
        if role == "layers":
            rising = all(one < other for one, other in pairwise(values))
            count = self._layers("")
            # The number of layers, or the numbers per stage.
            return (
                [value for value in values if value < count]
                if rising and values[0] < 2
                else [min(v, 2) for v in values]
            )
        if role == "size":
            return [min(value, 8) for value in values]
        return values

    def _first_of(self, role: str, ending: str) -> int:
        named = self._by_role.get(role, {})
        return next((value for name, value in named.items() if name.endswith(ending)), 1)

    def _compression(self) -> int:
        names = [name for name in self._values if re.search(r"tempor\w*_compression|compression\w*_t", name)]
        return next((self._values[name] for name in names if isinstance(self._values[name], int)), 1)


def _shares(parts: Sequence[int], total: int) -> list[int]:
    """Split a total into even parts of at least 2 that are nearly proportional to others."""
    whole = sum(parts) or 1
    shares = [max(2, 2 * (part * total // whole // 2)) for part in parts]
    shares[-1] += total - sum(shares)
    if shares[-1] < 2 or prod(share % 2 == 0 for share in shares) == 0:
        return list(parts)
    return shares
