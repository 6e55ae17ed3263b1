"""How settings are spelt: one name for each, and an error for spellings that look like LayerSync's but aren't."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from layersync_core.errors import ConfigError, did_you_mean

PREFIX, SWITCH = "layersync_", "_enabled"

ALIASES = {"encoder_depth": "student_block", "gt_encoder_depth": "teacher_block", "reg_weight": "lambda"}
"""Spellings of the authors' code. Trainers have keys of the same names with other meanings."""
LOSS_TYPE, LAYER_SYNC = "loss_type", "layer_sync"
"""The authors' switch; in a mapping or a file the spellings above count only together with it."""

ON, OFF = ("true", "yes", "on", "t", "y", "1"), ("false", "no", "off", "f", "n", "0")
"""Words for on and off that pydantic accepts."""
_BOOLEANS = {**dict.fromkeys(ON, "1"), **dict.fromkeys(OFF, "0")}

FIELDS = (
    "enabled",
    "student_block",
    "teacher_block",
    "lambda",
    "preset",
    "tokens",
    "generated_tokens",
    "guard",
    "pairs",
    "warmup_steps",
    "decay_steps",
    "cutoff_step",
    "log_grad_ratio",
)
"""What may follow the prefix: the fields of ``LayerSyncConfig``."""

# In snake case: layersync…, enable_layer_sync…, use_layersync…, but not layer_synchronous….
_LOOK_ALIKE = re.compile(
    r"((?P<off>disabled?|no)_?|(enabled?|use|with)_?)?layer_?sync(?=$|[^a-z]|enable|student|teacher|lambda|weight|pairs)_*"
)
_OTHER_WORDS = {
    "": "enabled",
    "enable": "enabled",
    "on": "enabled",
    "encoder_depth": "student_block",
    "gt_encoder_depth": "teacher_block",
    "source_block": "student_block",
    "source_layer": "student_block",
    "student": "student_block",
    "student_layer": "student_block",
    "target_block": "teacher_block",
    "target_layer": "teacher_block",
    "teacher": "teacher_block",
    "teacher_layer": "teacher_block",
    "weight": "lambda",
}
# How deep sections of a host's configuration are searched.
_DEPTH = 6


def is_on(value: Any) -> bool:
    """Return whether the value of a switch is on; a switch that is not given is off."""
    return not absent(value) and str(value).strip().lower() not in OFF


def absent(value: Any) -> bool:
    """Return whether a value stands for 'not given'."""
    return value is None or (isinstance(value, str) and not value.strip())


def canonical(mapping: Mapping[str, Any], *, flags: bool = False, beside: Collection[str] = ()) -> dict[str, Any]:
    """Return settings under one spelling: no leading ``--``, underscores, aliases resolved, None and "" dropped.

    Args:
        mapping: Settings as a user wrote them, including keys of the host.
        flags: They are flags of LayerSync's own commands, where the authors' spellings always count; in a mapping those
            count only together with ``loss_type: layer_sync``, and are the host's otherwise.
        beside: LayerSync's settings that are given elsewhere.

    Raises:
        ConfigError: Two spellings of one setting have different values, a key isn't text, or it is a wrong spelling of
            one of LayerSync's.
    """
    keys = settings_of(mapping, flags=flags)
    switched = f"{PREFIX}enabled" in {*beside, *keys.values()} or flags
    settings: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for spelling, key in keys.items():
        given, name = mapping[spelling], plain(spelling)
        value = True if name == LOSS_TYPE and key != name else given
        _refuse_look_alike(name, spelling, given, switched)
        # A host's key that is given twice is the host's concern.
        if key.startswith(PREFIX) and key in settings and not same_value(key, settings[key], value):
            raise ConfigError(
                f"{spelt[key]} is {mapping[spelt[key]]!r} and {spelling} is {given!r}: "
                f"two spellings of {key} with different values; keep one"
            )
        settings[key], spelt[key] = value, spelling
    if not any(key.startswith(PREFIX) for key in (*settings, *beside)):
        _refuse_nested(mapping)
    return settings


def settings_of(mapping: Mapping[str, Any], *, flags: bool = False) -> dict[str, str]:
    """Return the setting that each spelling in a mapping stands for, as in ``canonical``; None and "" are dropped.

    Raises:
        ConfigError: A key isn't text.
    """
    named = [(plain(spelling), spelling, value) for spelling, value in mapping.items() if not absent(value)]
    ours = flags or any(name == LOSS_TYPE and value == LAYER_SYNC for name, _, value in named)
    keys = {}
    for name, spelling, value in named:
        keys[spelling] = name
        if name in ALIASES and ours:
            keys[spelling] = PREFIX + ALIASES[name]
        elif name == LOSS_TYPE and value == LAYER_SYNC:
            keys[spelling] = f"{PREFIX}enabled"
    return keys


def merged(file: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file with flags over them; a flag replaces the file's value, however that is spelt.

    Raises:
        ConfigError: As for ``canonical``.
    """
    own = canonical(flags, flags=True)
    names = {plain(spelling): value for spelling, value in flags.items() if not absent(value)}
    rest = {spelling: value for spelling, value in file.items() if plain(spelling) not in {*names, *own}}
    if names.get(LOSS_TYPE) == LAYER_SYNC:  # makes the file's encoder_depth and the like count as well
        rest[LOSS_TYPE] = LAYER_SYNC
    settings = canonical(rest, beside=own)
    if f"{PREFIX}preset" in own:
        settings.pop(f"{PREFIX}lambda", None)  # a preset on the command line overrides the file's weight
    return settings | own


def flag(key: str, text: str) -> list[str]:
    """Return the words that give a setting on a command line."""
    # With an equals sign where the value could be mistaken for another flag.
    return [f"--{key}={text}"] if text.startswith("-") else [f"--{key}", text]


def overlay(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings overridden by others: a pair replaces pairs, a preset a weight, and vice versa."""
    replaced: set[str] = set()
    for group in _ALTERNATIVES:
        for one, other in (group, group[::-1]):
            if not one.isdisjoint(given):
                replaced |= other
    return {key: value for key, value in base.items() if key not in replaced} | dict(given)


_ALTERNATIVES = (
    ({f"{PREFIX}pairs"}, {f"{PREFIX}student_block", f"{PREFIX}teacher_block"}),
    ({f"{PREFIX}preset"}, {f"{PREFIX}lambda"}),
)


def plain(spelling: Any) -> str:
    """Return a key without leading dashes, with underscores.

    Raises:
        ConfigError: It isn't text.
    """
    if not isinstance(spelling, str):
        raise ConfigError(f"setting {spelling!r} is not text; settings are names such as layersync_enabled")
    return spelling.strip().lstrip("-").replace("-", "_")


def taken_for_the_hosts(given: Mapping[str, Any]) -> str:
    """Return a clause about the authors' spellings that do not count; empty where there are none.

    Args:
        given: Settings as ``canonical`` gives them.
    """
    names = ", ".join(name for name in ALIASES if name in given)
    return f"; {names} would be read as LayerSync's only beside {LOSS_TYPE}: {LAYER_SYNC}" if names else ""


def unknown_key(key: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Return the message for an unknown key, with the nearest known ones."""
    meant = PREFIX + _OTHER_WORDS.get(key.removeprefix(PREFIX), "")
    if key.startswith(PREFIX) and meant in known:
        return f"unknown setting {key}; did you mean {meant}?"
    return f"unknown setting {key}; {did_you_mean(key, known)}"


def same_value(key: str, one: Any, other: Any) -> bool:
    """Return whether two values of a setting are the same.

    "8" from a flag equals 8 from a file; for the switch, True, "true" and "yes" are equal.
    """
    words = _BOOLEANS if key == f"{PREFIX}enabled" else {}
    texts = [words.get(text, text) for text in (str(value).strip().lower() for value in (one, other))]
    try:
        return float(texts[0]) == float(texts[1])
    except ValueError:
        return texts[0] == texts[1]


def refuse_other_case(mapping: Mapping[str, Any], prefix: str) -> None:
    """Refuse a plugin's keys in capitals, and a section with its name, since such settings would do nothing.

    Args:
        mapping: Settings as ``canonical`` gives them.
        prefix: The prefix of the plugin's keys, such as ``crepa_``.

    Raises:
        ConfigError: There is such a key.
    """
    for name, value in mapping.items():
        if isinstance(value, Mapping) and name.lower() == prefix.rstrip("_") and _asks(value):
            raise _section(name, value, prefix)
        if not name.startswith(prefix) and name.lower().startswith(prefix):
            raise ConfigError(f"{name} would do nothing; the setting is {name.lower()}")


def _refuse_look_alike(name: str, spelling: str, value: Any, switched: bool) -> None:
    if name == LOSS_TYPE and isinstance(value, str) and value != LAYER_SYNC and _words_of(value) == LAYER_SYNC:
        raise ConfigError(f"{spelling} is {value!r}; the value that switches LayerSync on is {LAYER_SYNC}")
    found = None if name.startswith(PREFIX) else _LOOK_ALIKE.match(_snake(name))
    if found is None:
        return
    if isinstance(value, (Mapping, list, tuple)):
        raise _section(spelling, value, PREFIX)
    if switched and name == PREFIX[:-1]:  # some note of the host, beside correct settings
        return
    raise ConfigError(f"{spelling} would do nothing; {_right_spelling(found)}")


def _right_spelling(found: re.Match[str]) -> str:
    rest = found.string[found.end() :]
    field = _OTHER_WORDS.get(rest, rest)
    if field == "enabled":
        return f"the setting is {PREFIX}enabled{': false' if found['off'] else ''}"
    if field in FIELDS:
        return f"the setting is {PREFIX}{field}"
    return did_you_mean(PREFIX + field, [PREFIX + known for known in FIELDS])


def _asks(section: Mapping[str, Any]) -> bool:
    """Return whether a section of a plugin's settings switches anything on."""
    return bool(section) and is_on(section.get("enabled", True))


def _snake(name: str) -> str:
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).strip("_").lower()


def _words_of(value: str) -> str:
    return re.sub(r"^layer[^a-z]*sync$", LAYER_SYNC, value.strip().lower())


def _section(spelling: str, content: Any, prefix: str) -> ConfigError:
    keys = [_snake(key) for key in content if isinstance(key, str)] or ["enabled"]
    shown = ", ".join(key if key.startswith(prefix) else prefix + key for key in keys[:3])
    return ConfigError(
        f"{spelling} is a section, and settings in it would do nothing; write them beside the other keys, as {shown}"
    )


def _refuse_nested(value: Any, path: str = "", depth: int = _DEPTH) -> None:
    """Refuse LayerSync's settings in a section of the host's configuration, where nothing would read them."""
    if not depth:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            found = _LOOK_ALIKE.match(_snake(key)) if path and isinstance(key, str) else None
            if found and isinstance(inner, (Mapping, list, tuple)):
                raise _section(f"{path}{key}", inner, PREFIX)
            if found and is_on(inner):
                raise ConfigError(
                    f"{path}{key} is inside a section, where it would do nothing; write it beside the outermost keys: "
                    f"{_right_spelling(found)}"
                )
            _refuse_nested(inner, f"{path}{key}.", depth - 1)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            _refuse_nested(inner, f"{path}{number}.", depth - 1)
