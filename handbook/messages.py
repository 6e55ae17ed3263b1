"""Every text that the code can say, read from its sources: errors, warnings, lines of the log, and parts of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HOLE = "…"
"""Stands where a message has a value."""

_FEWEST_WORDS = 3
# What they hold is on other pages (help texts), or read by programs.
_ELSEWHERE = ("description", "help")
_LOGGED = {"debug": "log", "info": "log", "warning": "log", "error": "log", "exception": "log"}
_SHOWN = {"warn": "LayerSyncWarning", "_unusable": "AdapterNotInstalledError", "say_once": "line", "print": "line"}


class Message(NamedTuple):
    """A text.

    Attributes:
        module: Dotted name of the module that says it.
        kind: Name of the error's class, ``LayerSyncWarning``, ``log``, ``line`` (printed), or ``part`` of another text.
        text: With ``…`` where a value stands.
    """

    module: str
    kind: str
    text: str

    @property
    def remedy(self) -> str:
        """What it says to do, where it says so in a last clause of its own."""
        _, semicolon, last = self.text.rpartition("; ")
        return last if semicolon and len(last.split()) >= _FEWEST_WORDS else ""


def messages(package: Path) -> list[Message]:
    """Return the texts of a package, module by module, each once."""
    found: dict[tuple[str, str], Message] = {}
    for file in sorted(package.rglob("*.py")):
        module = ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for kind, text in _Reader(ast.parse(file.read_text(encoding="utf-8"))).texts():
            found.setdefault((module, text), Message(module, kind, text))
    return list(found.values())


class _Reader:
    """Reads one module."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and _is_text(node.value)
        }

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield kind and text of each."""
        return self._visit(self._tree, "part")

    def _visit(self, node: ast.AST, kind: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, ast.expr) and _is_text(node):
            text = " ".join(self._render(node, kind).split())
            if len([word for word in text.split() if any(letter.isalpha() for letter in word)]) >= _FEWEST_WORDS:
                yield kind, text
            for inner in _holes(node):
                yield from self._visit(inner, "part")
            return
        if isinstance(node, ast.Call):
            kind = _kind_of(node) or kind
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.keyword) and child.arg in _ELSEWHERE):
                yield from self._visit(child, kind)

    def _render(self, node: ast.expr, kind: str) -> str:
        if isinstance(node, ast.Constant):
            return _without_places(str(node.value), kind)
        if isinstance(node, ast.JoinedStr):
            return "".join(self._render(part, kind) for part in node.values)
        if isinstance(node, ast.BinOp):
            return self._render(node.left, kind) + self._render(node.right, kind)
        if isinstance(node, ast.FormattedValue):
            node = node.value
        if isinstance(node, ast.Name) and node.id in self._constants:
            return self._render(self._constants[node.id], kind)
        return HOLE


def _kind_of(call: ast.Call) -> str:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if name.endswith(("Error", "Warning", "Exit")):
        return name
    logs = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("log", "logger", "logging")
    return _LOGGED.get(name, "") if logs else _SHOWN.get(name, "")


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and (_is_text(node.left) or _is_text(node.right))
    return isinstance(node, ast.JoinedStr)


def _holes(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return [inner for side in (node.left, node.right) for inner in (_holes(side) if _is_text(side) else [side])]
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
    return []


def _without_places(text: str, kind: str) -> str:
    if kind == "log":
        for place in ("%s", "%d", "%r", "%.0f", "%i"):
            text = text.replace(place, HOLE)
    return text
