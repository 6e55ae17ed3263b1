"""Guesses at a forward's arguments, from their names, their types and the model's settings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from layersync_core.scaffold.given import BATCH, TEXT, Given
from layersync_core.scaffold.scaling import role_of

SAMPLES = ("hidden_states", "sample", "x", "img", "latents", "latent", "x_t", "noisy_latents", "inputs", "xt", "z")

# The role of an argument by its name; the first match counts.
_ROLES = (
    ("rotary", r"rotary|rope|freqs|pos_embed|position_embedding"),
    ("mask", r"mask"),
    ("lengths", r"(^|_)(lens?|lengths?|seqlens?)$"),
    ("guidance", r"guidance"),
    ("timestep", r"timestep|^(t|ts|time|times|sigma|sigmas|noise_level|r)$|^t_"),
    ("token_ids", r"^(input|token|position)_ids$"),
    ("text_ids", r"(txt|text|cap|prompt|context)\w*_ids$"),
    ("sample_ids", r"ids$|coords$(?<!crop_coords)"),
    ("labels", r"label|^class|^cls$"),
    ("size", r"(original|target|crop)\w*(size|coords)|^(size|resolution|aspect_ratio)"),
    ("shapes", r"_shapes$|_sizes$"),
    ("pooled", r"pooled|projections?$|^(y|vec|vector)$|global|clip_(text|feat)"),
    ("text", r"encoder_hidden|txt|text|context|caption|prompt|llama|cap_feats|^c$|cond_tokens|^llm|t5"),
    ("number", r"^(height|width|num_frames|frames|fps|frame_rate|rows|columns|h|w)$"),
)
_PROBE = (7, 11, 13, 17, 19)
"""Widths that nothing else has, for arguments about which nothing is known."""
_FIRST = ("timestep", "text", "labels", "pooled")
"""Roles that are given although a forward may not require them, since models are trained with them."""


@dataclass(frozen=True)
class Guesses:
    """What is known about a forward before it is run.

    Attributes:
        class_name: Name of the model's class.
        settings: Its settings, scaled down.
        parameters: Its forward's arguments.
    """

    class_name: str
    settings: Mapping[str, Any]
    parameters: Mapping[str, inspect.Parameter]

    @property
    def sample(self) -> str:
        """Name of the noisy sample: a usual one, or the first argument; empty if there are no arguments."""
        usual = (name for name in SAMPLES if name in self.parameters)
        return next(usual, next(iter(self.parameters), ""))

    @property
    def text_length(self) -> int:
        """Number of text tokens per sample."""
        return next((self.settings[name] for name in self._named("text_length")), 5)

    def role(self, name: str) -> str:
        """Return the role of an argument; empty if its name does not show it."""
        if name == self.sample:
            return "sample"
        return next((role for role, pattern in _ROLES if re.search(pattern, name.lower())), "")

    def given_first(self) -> list[str]:
        """Return the arguments to give from the start: the required ones, and the usual ones."""
        return [
            name
            for name, item in self.parameters.items()
            if item.default is inspect.Parameter.empty
            or name == self.sample
            or (item.default is None and self._is_usual(name))
        ]

    def _is_usual(self, name: str) -> bool:
        role = self.role(name)
        if role == "guidance":
            return any("guidance" in setting and value is True for setting, value in self.settings.items())
        # timestep_cond, encoder_hidden_states_image and the like belong to variants of a model.
        variant = re.search(r"_(cond|image|r|2|t5|i2v|id|vit)$|^(clip|id|image|img|audio|control|cond)_|control", name)
        return role in _FIRST and not variant

    def candidates(self, name: str) -> list[Given]:
        """Return candidates for an argument, likeliest first; none if neither its name nor its type shows anything."""
        parameter, role = self.parameters[name], self.role(name)
        annotation = str(parameter.annotation)
        found = list(self._of_role(name, role, annotation))
        if (
            role != "sample"
            and not found
            and re.search(r"\b(bool|int|float)\b", annotation)
            and "Tensor" not in annotation
        ):
            kind = re.search(r"\b(bool|int|float)\b", annotation)
            assert kind is not None
            found = [Given("value", value={"bool": False, "int": 1, "float": 1.0}[kind[1]])]
        elif not found and (parameter.annotation is inspect.Parameter.empty or "Tensor" in annotation):
            found = list(self._unknown(name))
        if re.search(r"list\[(\w+\.)*\w*Tensor", annotation, re.I) and role in ("sample", "text"):
            found.sort(key=lambda given: not (given.listed or given.times))
        return found

    def _of_role(self, name: str, role: str, annotation: str) -> Iterator[Given]:
        rows, columns = self._tokens()
        positions = (rows, columns) if self.frames() == 1 else (self.frames(), rows, columns)
        axes = next((len(self.settings[key]) for key in self._lists("axes")), 3)
        if role == "sample":
            yield from self._samples()
        elif role == "timestep":
            whole = [Given("steps", (BATCH,), "B"), Given("unit", (BATCH,), "B")]
            yield from whole if re.search(r"Long|\bint\b", annotation) else whole[::-1]
            yield from (Given("unit", (BATCH, 1), "BS"), Given("steps", (BATCH, 1), "BS"), Given("unit", (), ""))
        elif role == "guidance":
            yield from (Given("unit", (BATCH,), "B"), Given("unit", (BATCH, 1), "BS"))
        elif role == "labels":
            yield from (Given("indices", (BATCH,), "B"), Given("noise", (BATCH, self._width(name, 0)), "BD"))
        elif role == "pooled":
            yield Given("noise", (BATCH, self._width(name, 1)), "BD")
            yield Given("indices", (BATCH,), "B")
            yield Given("noise", (BATCH, TEXT, self._width(name, 1)), "BSD")
        elif role == "text":
            width = self._width(name, 2)
            if "layers" in name:
                blocks = sum(self.settings[key] for key in self._named("layers") if not key.startswith("num_text"))
                yield Given("noise", (BATCH, TEXT, width), "BSD", times=blocks)
            yield Given("noise", (BATCH, TEXT, width), "BSD")
            yield Given("noise", (BATCH, TEXT, width), "BSD", listed=True)
            yield Given("noise", (BATCH, width), "BD")
            yield Given("noise", (BATCH, 1, TEXT, width), "BNSD")
            layers = next((self.settings[key] for key in self.settings if re.search(r"text_layers$", key)), None)
            if isinstance(layers, int):
                yield Given("noise", (BATCH, TEXT, layers, width), "BSND")
            yield Given("indices", (BATCH, TEXT), "BS")
        elif role == "mask":
            yield from (Given(kind, (BATCH, TEXT), "BS") for kind in ("mask", "whole_ones", "ones"))
            sizes = tuple(size for size in (self.frames(), *self._pixels()) if size != 1 or self.is_video)
            yield Given("ones", (BATCH, *sizes), "BTHW" if len(sizes) == 3 else "BHW")
            yield Given("ones", (BATCH, 1, 1, TEXT), "B11S")
        elif role == "lengths":
            yield Given("lengths", (BATCH,), "B")
        elif role == "token_ids":
            yield Given("indices", (BATCH, TEXT), "BS")
            yield Given("zeros", (f"{TEXT} + {rows * columns * self.frames()}", axes), "SD")
        elif role == "text_ids":
            yield from (Given("zeros", (TEXT, axes), "SD"), Given("zeros", (BATCH, TEXT, axes), "BSD"))
        elif role == "sample_ids":
            grid = (1,) * (axes - len(positions)) + positions if axes >= len(positions) else positions
            count = rows * columns * self.frames()
            yield from (Given("positions", grid, "SD"), Given("zeros", (BATCH, count, axes), "BSD"))
        elif role == "size":
            yield from (Given("ones", (BATCH, 2), "BD"), Given("ones", (BATCH,), "B"))
        elif role == "shapes":
            yield Given("repeated", value=[(self.frames(), rows, columns)])
            yield Given("repeated", value=(self.frames(), rows, columns))
            yield Given("value", value=[(self.frames(), rows, columns)])
        elif role == "number":
            index = {"h": 1, "r": 1, "w": 2, "c": 2}.get(name[0], 0)
            pixels, tokens = (self.frames(), *self._pixels()), (self.frames(), rows, columns)
            yield from (Given("value", value=tokens[index]), Given("value", value=pixels[index]))

    def _unknown(self, name: str) -> Iterator[Given]:
        width = self._width(name, 3)
        yield Given("noise", (BATCH, width), "BD")
        yield Given("noise", (BATCH, TEXT, width), "BSD")
        yield Given("unit", (BATCH,), "B")
        yield from self._samples()
        yield Given("indices", (BATCH,), "B")

    @property
    def is_video(self) -> bool:
        """Whether samples seem to have frames."""
        said = f"{self.class_name} {' '.join(self.parameters)}"
        patches = [self.settings[name] for name in self.settings if role_of(name) == "patch"]
        return bool(
            re.search(r"3D|[Vv]ideo|num_frames|fps", said)
            or any(isinstance(patch, (list, tuple)) and len(patch) == 3 for patch in patches)
            or any(isinstance(self.settings[name], int) for name in self.settings if role_of(name) == "frames")
        )

    def frames(self) -> int:
        """Return the number of frames of a sample's latents; 1 for an image."""
        if not self.is_video:
            return 1
        named = [self.settings[name] for name in self._named("frames")]
        ratios = [value for name, value in self.settings.items() if re.search(r"tempor\w*_compression", name)]
        ratio = next((value for value in ratios if isinstance(value, int)), 1)
        if named:
            return int((named[0] - 1) // ratio + 1)
        return 3 if self.patch()[0] == 1 else 2 * self.patch()[0]

    def patch(self) -> tuple[int, int, int]:
        """Return the size of a token along T, H and W, as far as the settings give it."""
        sizes = [1, 1, 1]
        for name in (name for name in self.settings if role_of(name) == "patch"):
            value = self.settings[name]
            if isinstance(value, (list, tuple)) and value and all(type(item) is int for item in value[-3:]):
                parts = value[-3:]
                sizes[3 - len(parts) :] = parts
            elif type(value) is int and name.endswith(("_t", "_temporal")):
                sizes[0] = value
            elif type(value) is int:
                sizes[1:] = [value, value]
        return sizes[0], sizes[1], sizes[2]

    def grid(self, sample: Given) -> tuple[int, int, int] | None:
        """Return frames, rows and columns of a sample that is a sequence of tokens; None if it has these as axes."""
        if "S" not in sample.axes:
            return None
        count = sample.shape[sample.axes.index("S")]
        grid = self.frames(), *self._tokens()
        return grid if prod(grid) == count else (1, 1, int(count))

    def _samples(self) -> Iterator[Given]:
        channels = next((self.settings[name] for name in self._channels()), _PROBE[0])
        numbers = dict(zip("THW", (self.frames(), *self._pixels()), strict=True))
        rows, columns = self._tokens()
        numbers |= {"C": channels, "L": 16, "S": self.frames() * rows * columns}
        image: tuple[str, ...] = ("BCHW", "BSC", "*BCHW", "BHWC", "BCTHW", "*BCTHW")
        video: tuple[str, ...] = ("BCTHW", "BTCHW", "BSC", "*BCTHW", "BTHWC")
        sound = ("BCL", "BLC", "BCHW")
        layouts = video + image if self.is_video else image + video
        if re.search(r"1D|[Aa]udio|[Mm]usic|[Ss]peech", self.class_name):
            layouts = sound + layouts
        elif any(self.role(name) in ("sample_ids", "text_ids", "shapes", "number") for name in self.parameters):
            layouts = ("BSC", *layouts)
        for layout in dict.fromkeys(layouts + sound):
            axes = layout.removeprefix("*")
            yield Given("noise", (BATCH, *(numbers.get(axis, 1) for axis in axes[1:])), axes, listed=layout != axes)

    def _pixels(self) -> tuple[int, int]:
        """Return rows and columns of the latents."""
        sizes = {name: self.settings[name] for name in self.settings if role_of(name) == "size"}
        row, column = ([sizes[name] for name in sizes if part in name] for part in ("height", "width"))
        square = [value for name, value in sizes.items() if "height" not in name and "width" not in name]
        pair = next((tuple(value) for value in square if isinstance(value, (list, tuple)) and len(value) == 2), None)
        if pair:
            return pair
        if type(next(iter(square), None)) is int:
            return square[0], square[0]
        steps = self.patch()[1:]
        defaults = (4 * max(steps[0], 2), 3 * max(steps[1], 2))
        return next(iter(row), defaults[0]), next(iter(column), defaults[1])

    def _tokens(self) -> tuple[int, int]:
        rows, columns = self._pixels()
        return rows // self.patch()[1], columns // self.patch()[2]

    def _channels(self) -> Sequence[str]:
        """Return the settings that may give the channels of the sample, likeliest first."""
        first = ("in_channels", "in_dim", "latent_channels", "input_dim", "channels", "in_features", "latent_dim")
        named = [name for name in first if type(self.settings.get(name)) is int]
        return named + [name for name in self._named("channels") if name not in named]

    def _width(self, name: str, probe: int) -> int:
        """Return a width for an argument other than the sample: the setting that shares most words with its name."""
        words = set(re.findall(r"[a-z]+|\d+", name.lower())) - {"hidden", "states", "embeds", "dim"}
        pooled = self.role(name) == "pooled"

        def likeness(setting: str) -> int:
            own = set(re.findall(r"[a-z]+|\d+", setting.lower()))
            usual = bool(own & {"text", "txt", "caption", "cross", "joint", "context", "cap", "prompt"}) and not pooled
            return 4 * len(words & own) + 2 * usual - len(own & {"pooled", "2", "t5", "image", "id", "vit"} - words)

        named = sorted(self._named("outer"), key=likeness, reverse=True)
        return next((self.settings[setting] for setting in named), _PROBE[probe])

    def _named(self, role: str) -> list[str]:
        return [name for name, value in self.settings.items() if type(value) is int and role_of(name) == role]

    def _lists(self, role: str) -> list[str]:
        return [
            name for name, value in self.settings.items() if isinstance(value, (list, tuple)) and role_of(name) == role
        ]
