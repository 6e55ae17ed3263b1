"""Collect every error text about settings from the sources, with samples for its placeholders."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ERRORS = ("ConfigError", "ValueError", "UnsupportedFamilyError", "AdapterNotInstalledError", "UnknownFamilyError")
MAKERS = (*ERRORS, "_unusable")
# Functions that return an error, or a part of one.
PARTS = ("_section", "_right_spelling", "taken_for_the_hosts", "unknown_key", "did_you_mean", "_installed_text")
PARTS = (*PARTS, "_refusal", "why_unknown", "_why")


class Said:
    """A text of an error in a source.

    Attributes:
        place: File and line.
        text: The text with samples in its placeholders.
        samples: The default samples that were used; a translation contains each of them.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.text = ""
        self.samples: list[str] = []

    def __repr__(self) -> str:
        return f"{self.place}: {self.text}"


def errors(path: Path, samples: Mapping[str, str], only: tuple[str, ...] = ()) -> Iterator[Said]:
    """Return the texts of a file.

    Args:
        path: The file.
        samples: Expression in a text -> its sample; other placeholders get a numbered sample.
        only: Functions to look into; empty: all.
    """
    module = ast.parse(path.read_text())
    roots = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and node.name in only] or [module]
    for root in roots:
        for node in ast.walk(root):
            for text in _texts(node):
                said = Said(f"{path.name}:{node.lineno}")  # type: ignore[attr-defined]
                said.text = _fill(text, samples, said.samples)
                yield said


def _texts(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
        return [argument for argument in node.args if _is_text(argument)][:1]
    if isinstance(node, ast.FunctionDef) and node.name in PARTS:
        returned = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value]
        texts = [choice for value in returned for choice in _choices(value)]
        return [text for text in texts if _is_text(text)]
    return []


def _choices(value: ast.expr) -> list[ast.expr]:
    if isinstance(value, ast.IfExp):
        return [*_choices(value.body), *_choices(value.orelse)]
    return [value]


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and " " in node.value
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add))


def _fill(node: ast.expr, samples: Mapping[str, str], used: list[str]) -> str:
    if isinstance(node, ast.BinOp):
        return _fill(node.left, samples, used) + _fill(node.right, samples, used)
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_fill(part, samples, used) for part in node.values)
    expression = ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node)
    if expression in samples:
        return samples[expression]
    used.append(f"x{len(used) + 1}")
    return used[-1]
