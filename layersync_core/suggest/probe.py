"""Measure every block of a model while it runs, in any loop, on a sub-sample of tokens, without holding states."""

# Shapes: B batch, S tokens, N tokens of the sub-sample, D channels, G blocks of one kind

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.capture.buffer import HiddenStateBuffer
from layersync_core.capture.forward import Forward
from layersync_core.capture.hooks import Capture
from layersync_core.errors import CaptureError, ConfigError
from layersync_core.families.asking import blocks_of
from layersync_core.protocol import Adapter, Block
from layersync_core.suggest.findings import Findings
from layersync_core.suggest.probing import score_probes
from layersync_core.suggest.tally import ESTIMATOR, Level, Tally

TOKENS = 64
"""Number of tokens in the sub-sample of one forward."""
_LEAST_SHARE = 16  # tokens per noise level, if the samples of a forward have several
LEVELS = (0.125, 0.375, 0.625, 0.875)
"""The middles of the quarters of the model's own time, to which a training loop's samples are assigned."""
_TIMES = ("timestep", "timesteps", "t", "time")
log = logging.getLogger(__name__)
_LABELLED = 1024  # the most samples with a known class to keep per level


class Probe:
    """Measure how similar the blocks of a model are, in the training forwards that run while this exists.

    Args:
        model: The unwrapped model.
        adapter: The adapter of its family.
        tokens: Number of tokens in the sub-sample of one forward; all tokens if there are fewer. If its samples have
            several noise levels, these share them, with at least 16 for each.
        seed: Seed of the sub-samples.

    Attributes:
        blocks: Every block of the model.
        forwards: Number of whole forwards that were measured.

    Raises:
        ConfigError: The adapter has its own capture, which cannot be inspected.

    Examples:
        >>> from layersync_core import Probe, get_adapter, load_tiny
        >>> tiny = load_tiny("dit")
        >>> model = tiny.tiny_model()
        >>> with Probe(model, get_adapter("dit")) as probe:
        ...     _ = model(**tiny.example_inputs(model, batch_size=2))
        >>> probe.forwards, len(probe.blocks)
        (1, 6)
        >>> print(*probe.findings().lines())
        DiTTransformer2DModel: 6 blocks, 1 forward, ...
    """

    def __init__(self, model: nn.Module, adapter: Adapter, tokens: int = TOKENS, seed: int = 0) -> None:
        self.blocks: list[Block] = blocks_of(adapter, model)
        self.forwards = 0
        self._name, self._tokens, self._seed = type(model).__name__, tokens, seed
        self._draw = torch.Generator().manual_seed(seed)
        self._levels: dict[float | None, Level] = {}
        self._given: tuple[float | None, Tensor | None] = (None, None)
        self._now: _Now | None = None
        self._repeated: int | None = None
        layers = range(len(self.blocks))
        capture = adapter.capture(model, layers, HiddenStateBuffer(layers))
        if not isinstance(capture, Capture):
            capture.remove()
            raise ConfigError(
                f"adapter {adapter.family} has its own capture, whose blocks cannot be measured one by one; "
                "describe them with BlockStackAdapter"
            )
        capture.policy = lambda held: held.discard()
        # Measuring must not become part of a compiled graph.
        capture.watch = torch.compiler.disable(self._see)
        self._capture = capture

    @contextmanager
    def at(self, level: float | None = None, labels: Tensor | None = None) -> Iterator[None]:
        """Give information about the forwards inside the context that their call does not show.

        Args:
            level: Their noise level, 0 to 1; None reads it from the call.
            labels: (B,) classes of their samples, which the model itself must not be given. Linear probes are scored
                if they are known at each noise level.

        Raises:
            ConfigError: They are not whole numbers, one for each sample.
        """
        if labels is not None and (labels.ndim != 1 or labels.is_floating_point() or labels.is_complex()):
            raise ConfigError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give (B,) whole numbers")
        self._given = (level, labels)
        try:
            yield
        finally:
            self._given = (None, None)

    def findings(self) -> Findings:
        """Return what has been measured so far.

        Raises:
            CaptureError: Nothing was measured, or hidden states were not finite.
        """
        if not self.forwards:
            raise CaptureError(f"no forward of {self._name} was measured: {self.why_none}")
        if self._repeated == len(self.blocks) - 1:  # known only after its forward was counted
            raise CaptureError(
                f"{self.blocks[-1]} ran more than once in one forward; LayerSync needs a single output that the loss "
                "depends on"
            )
        tallies = [item for level in self._levels.values() for item in level.tallies.items()]
        broken = [index for indices, tally in tallies for index in tally.not_finite(indices)]
        if broken:
            raise CaptureError(
                f"{self.blocks[min(broken)]} returned hidden states that are not finite, so nothing can be measured; "
                "give weights and samples with which the model computes finite numbers"
            )
        named = {level: self._levels[level] for level in self._sorted()}
        found = Findings.of(self._name, self.blocks, named, self.forwards, self._sub_sample())
        score_probes(found, _labelled([*named.values()]))
        return found

    def paused(self) -> AbstractContextManager[None]:
        """Ignore the forwards inside the context."""
        return self._capture.paused()

    def remove(self) -> None:
        """Take the hooks off the model; the measurements are kept."""
        self._capture.remove()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @property
    def why_none(self) -> str:
        """Why no forward was measured, as a clause."""
        if self._capture.untouched:
            return "it has not run since (copies of the model, and graphs compiled before, are not measured)"
        return self._capture.why_none or "the last forward did not run all of the blocks"

    def _sub_sample(self) -> dict[str, Any]:
        return {
            "estimator": ESTIMATOR,
            "tokens": self._tokens,
            "seed": self._seed,
            "drawn": "generated tokens of each forward and noise level without replacement, the same for every block",
        }

    def _see(self, forward: Forward, index: int) -> None:
        """Take the sub-sample of a block that has just returned."""
        if forward.repeated is not None:
            self._now, self._repeated = None, forward.repeated  # such a forward does not count
            return
        reader = self._capture.reader
        tokens_BSD = reader.peek(forward, index).detach()
        if self._now is None or self._now.forward is not forward:
            self._now = _Now(forward, self._levels_of(reader.arguments(forward), len(tokens_BSD)))
        now = self._now
        kind = tuple(tokens_BSD.shape[:2])
        if kind not in now.places:
            mask_BS = reader.counted(forward, *kind)
            counted_BS = torch.ones(kind, dtype=torch.bool) if mask_BS is None else mask_BS.cpu()
            several = len(now.levels) > 1
            share = max(self._tokens // len(now.levels), _LEAST_SHARE) if several else self._tokens
            now.places[kind] = {
                level: self._places(counted_BS & of_level_B[:, None], share) for level, of_level_B in now.levels.items()
            }
            now.masks[kind] = mask_BS
        for level, place_N in now.places[kind].items():
            state_ND = tokens_BSD.flatten(0, 1)[place_N.to(tokens_BSD.device)]
            now.states.setdefault((level, *kind, tokens_BSD.shape[2], self.blocks[index].stage), {})[index] = state_ND
        if self._given[1] is not None:
            now.pooled[index] = _mean_token(tokens_BSD, now.masks[kind]).cpu()
        now.seen += 1
        if now.seen == len(self.blocks):
            self._end(now)

    def _places(self, counted_BS: Tensor, count: int) -> Tensor:
        """Sample tokens from those that count, as positions in (B · S)."""
        found = counted_BS.flatten().nonzero()[:, 0]
        if len(found) <= count:
            return found
        return found[torch.randperm(len(found), generator=self._draw)[:count]].sort().values

    def _end(self, now: _Now) -> None:
        self._now = None
        self.forwards += 1
        for (level, *_), states in now.states.items():
            tallies = self._levels.setdefault(level, Level()).tallies
            states_GND = torch.stack(
                [_doubles(state_ND.to(next(iter(states.values())).device)) for state_ND in states.values()]
            )
            tallies.setdefault(tuple(states), Tally()).add(states_GND)
        labels = self._given[1]
        if labels is None:
            return
        for level, of_level_B in now.levels.items():
            if len(labels) != len(of_level_B):
                raise ConfigError(f"there are {len(labels)} labels for a forward of {len(of_level_B)} samples")
            found = self._levels[level]
            if sum(map(len, found.labels)) < _LABELLED:
                found.labels.append(labels.cpu()[of_level_B])
                for index, mean_BD in now.pooled.items():
                    found.pooled.setdefault(index, []).append(mean_BD[of_level_B])

    def _sorted(self) -> list[float | None]:
        return sorted(self._levels, key=lambda level: -1.0 if level is None else level)

    def _levels_of(self, arguments: Mapping[str, Any], batch: int) -> dict[float | None, Tensor]:
        """Return which samples have which noise level, each (B,) bool on the host."""
        time_B = None if self._given[0] is not None else _time(arguments, batch)
        if time_B is None:
            return {self._given[0]: torch.ones(batch, dtype=torch.bool)}
        place_B = (time_B * len(LEVELS)).long().clamp(max=len(LEVELS) - 1)
        return {LEVELS[place]: place_B == place for place in place_B.unique().tolist()}


def _labelled(levels: Sequence[Level]) -> list[tuple[Tensor, list[Tensor]]]:
    """Return the classes (N,) and each block's mean tokens (N, D) of each noise level; nothing without classes."""
    found = [
        (torch.cat(level.labels), [torch.cat(level.pooled[index]) for index in sorted(level.pooled)])
        for level in levels
        if level.labels
    ]
    if found and (len(found) < len(levels) or any(len(labels.unique()) < 2 for labels, _ in found)):
        log.warning("no linear probe is scored: at some noise level the samples have no classes, or one class alone")
        return []
    return found


class _Now:
    """A forward that is running.

    Args:
        forward: The forward.
        levels: Which of its samples have which noise level.
    """

    def __init__(self, forward: Forward, levels: dict[float | None, Tensor]) -> None:
        self.forward, self.levels = forward, levels
        self.places: dict[tuple[int, ...], dict[float | None, Tensor]] = {}
        self.masks: dict[tuple[int, ...], Tensor | None] = {}
        self.states: dict[tuple[Any, ...], dict[int, Tensor]] = {}  # kind of block -> index -> tokens
        self.pooled: dict[int, Tensor] = {}
        self.seen = 0


def _time(arguments: Mapping[str, Any], batch: int) -> Tensor | None:
    """Return (B,) fp32 on the host, the samples' time from 0 to 1 as given in the call; None if it isn't."""
    time = next((arguments[name] for name in _TIMES if isinstance(arguments.get(name), Tensor)), None)
    if time is None or time.numel() == 0 or (time.ndim and time.shape[0] not in (1, batch)):
        return None
    time_B = time.detach().float().cpu().reshape(time.shape[0] if time.ndim else 1, -1).mean(1).expand(batch)
    if not time.is_floating_point() or float(time_B.max()) > 1:
        time_B = time_B / 1000
    within = bool(((time_B >= 0) & (time_B <= 1)).all())
    return time_B if within else None


def _mean_token(tokens_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
    if mask_BS is None:
        return tokens_BSD.mean(1, dtype=torch.float32)
    weight_BS1 = mask_BS.to(tokens_BSD.device, torch.float32)[..., None]
    return (tokens_BSD * weight_BS1).sum(1) / weight_BS1.sum(1).clamp(min=1)


def _doubles(states: Tensor) -> Tensor:
    return states.double() if states.device.type in ("cpu", "cuda") else states.cpu().double()
