"""The table of ``docs/classes.md``: one row for each class, and the proof of what it says."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from layersync_core import ConfigError, UnknownFamilyError, UnsupportedFamilyError, attach, get_adapter, resolve
from layersync_core.capture.graph import tensors_in
from layersync_core.families.discovered import read_adapter
from layersync_core.families.registry import provider
from layersync_core.testing import seed_everything
from tests.classes.finding import NO_DENOISERS, PACKAGE, claimed, denoisers, refused
from tests.classes.flex import attention_on_the_cpu
from tests.classes.tiny_models import ASKED, REFUSED, TINY
from tests.classes.words import in_words
from tests.discovery.classes import UNKNOWN, Unknown
from tests.discovery.configurations import Configuration, configuration, names
from tests.discovery.gradients import backward_as_with_plain_hooks, settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "classes.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
HEAD = ["| class | how | blocks and tokens, or the reason |", "| --- | --- | --- |"]
ON = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 2}

RELEASED: dict[str, dict[str, Any]] = {
    "Kandinsky5Transformer3DModel": {"model_dim": 1792, "num_visual_blocks": 32, "visual_cond": True},
}
"""Settings of a released model, for classes whose family the settings tell: a tiny model is of no released size."""
IN_PART = {"Kandinsky5Transformer3DModel": "Kandinsky 5 Image, which shares the class, is refused"}


@dataclass(frozen=True)
class Row:
    """What holds for a class."""

    kind: str
    how: str
    what: str

    def line(self) -> str:
        """Return the line of the table."""
        return f"| `{self.kind}` | {self.how} | {self.what} |"


def proven(kind: str) -> Row:
    """Return the row of a class, once it is proven on a tiny model.

    Raises:
        LookupError: No adapter names the class, nobody has shown that it can be discovered, and no reason refuses it.
    """
    if family := claimed().get(kind):
        return _adapter(kind, family)
    if kind in discoverable():
        with attention_on_the_cpu():
            return _discovered(discoverable()[kind])
    if reason := refused(kind):
        return _refused(kind, reason)
    if kind in ASKED:
        return _asked(*ASKED[kind])
    raise LookupError(
        f"{kind} of diffusers {diffusers.__version__} stands in no row: install an adapter that names it, or add a "
        "tiny model of it to tests/classes/tiny_models.py, or the reason why it is not a denoiser to "
        "tests/classes/finding.py"
    )


@cache
def discoverable() -> dict[str, Unknown]:
    """Return the tiny models of classes that are discovered."""
    return {unknown.kind: unknown for unknown in (*UNKNOWN, *TINY)}


@cache
def kits() -> dict[str, tuple[Configuration, nn.Module]]:
    """Return the conformance kit's first configuration of each class of diffusers, with its model."""
    found: dict[str, tuple[Configuration, nn.Module]] = {}
    for folder, name in names():
        one = configuration(folder, name)
        seed_everything()
        model = one.kit.tiny_model()
        if type(model).__module__.startswith(f"{PACKAGE}."):
            found.setdefault(type(model).__name__, (one, model))
    return found


def _adapter(kind: str, family: str) -> Row:
    assert kind in kits(), f"adapter {family} names {kind}, and no configuration of the conformance kit has one"
    one, model = kits()[kind]
    assert one.kit.adapter is get_adapter(family)
    assert resolve({"_class_name": kind, **RELEASED[kind]} if kind in RELEASED else model).family == family
    assert len(one.kit.adapter.list_blocks(model)) >= 2
    found = provider(family)
    assert found is not None
    more = f"; {IN_PART[kind]}" if kind in IN_PART else ""
    return Row(kind, f"adapter `{family}` ({found.distribution})", f"{in_words(one.kit.adapter, model)}{more}")


def _discovered(unknown: Unknown) -> Row:
    model = unknown.build()
    with pytest.raises(UnknownFamilyError, match="give the family auto"):
        attach(model, settings(model, unknown))
    with attach(model, settings(model, unknown), family="auto") as sync, tempfile.TemporaryDirectory() as folder:
        backward_as_with_plain_hooks(sync, model, unknown)
        assert sync.family == "auto"
        sync.save_adapter(Path(folder, "found.json"))
        found = read_adapter(Path(folder, "found.json"))
    return Row(unknown.kind, "discovered", in_words(found, model))


def _refused(kind: str, reason: str) -> Row:
    with torch.device("meta"):
        model = REFUSED[kind]()
    for family in (None, "auto"):
        with pytest.raises(UnsupportedFamilyError) as raised:
            attach(model, ON, family=family)
        assert reason in str(raised.value)
    return Row(kind, "refused", reason)


def _asked(unknown: Unknown, reason: str, asked: str) -> Row:
    model = unknown.build()
    with pytest.raises(UnknownFamilyError, match="give the family auto"):
        attach(model, settings(model, unknown))
    with attach(model, settings(model, unknown), family="auto") as sync:
        main = tensors_in(model(**unknown.inputs()))[0].pow(2).mean()
        with pytest.raises(ConfigError) as raised:
            sync.apply(main)
    assert asked in str(raised.value)
    return Row(unknown.kind, "refused", reason)


def rows() -> list[Row]:
    """Return every row, sorted by class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [proven(kind) for kind, _ in sorted(denoisers())]


def markdown(rows: Iterable[Row]) -> str:
    """Return the table, with what it counts above and what it leaves out below."""
    listed = [*rows]
    ways = [row.how.partition(" ")[0] for row in listed]
    counted = (
        f"diffusers {diffusers.__version__}: {len(listed)} classes, {ways.count('adapter')} with an adapter, "
        f"{ways.count('discovered')} discovered, {ways.count('refused')} refused."
    )
    lines = [row.line() for row in listed]
    left = "; ".join(f"`{kind}` ({reason})" for kind, reason in NO_DENOISERS.items())
    below = f"Left out, since they are not denoisers: {left}."
    return "\n".join([counted, "", *HEAD, *lines, "", below])
