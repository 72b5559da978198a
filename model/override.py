"""Replace and check the settings of a frozen dataclass: `--set key=value` and files.

In: a dataclass instance, and dotted keys with values (strings, or values of TOML and JSON).
Out: a new instance whose every field has the declared type, or a one-line ValueError that names the
key, its fault and the expected value.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """Return {"train.steps": "100"} for ["train.steps=100"]; refuse a string without "="."""
    parsed = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: write it as key=value, as in train.steps=100")
        parsed[key.strip()] = value.strip()
    return parsed


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Replace fields by dotted key; parse strings as the field's type, check other values.

    Args:
        config: a frozen dataclass whose sections are frozen dataclasses.
        values: dotted key -> value.

    Raises:
        ValueError: a key is unknown (the message suggests the nearest), or a value's type is wrong.
    """
    known = field_types(config)
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"unknown setting {key}: {closest(key, known)}")
        section, _, field = key.rpartition(".")
        sections.setdefault(section, {})[field] = _convert(key, value, known[key])
    top = sections.pop("", {})
    nested = {
        section: dataclasses.replace(getattr(config, section), **fields)
        for section, fields in sections.items()
    }
    return dataclasses.replace(config, **top, **nested)  # type: ignore[type-var]


def field_types(config: Any) -> dict[str, Any]:
    """Return dotted key -> declared type of every leaf field."""
    leaves: dict[str, Any] = {}
    for name, annotation in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            leaves |= {f"{name}.{key}": kind for key, kind in field_types(value).items()}
        else:
            leaves[name] = annotation
    return leaves


def closest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean …?" with the names closest to a word, or a list of all names."""
    names, last = list(known), word.rpartition(".")[2]
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    near += [name for name in names if name.rpartition(".")[2] == last and name not in near]
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"


def _convert(key: str, value: Any, annotation: Any) -> Any:
    """Return `value` as the annotated type; the error names the expected type."""
    try:
        return _as(value, annotation)
    except (TypeError, ValueError, KeyError):
        raise ValueError(f"setting {key} is {_spell(annotation)}, not {value!r}") from None


def _as(value: Any, annotation: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):  # `str | None`
        if value is None or value == "none":
            return None
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        return _as(value, inner)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError
        return value
    if origin is tuple:
        parts = value.strip("()[]").split(",") if isinstance(value, str) else list(value)
        kinds = arguments[:1] * len(parts) if arguments[-1] is Ellipsis else arguments
        return tuple(_as(part, kind) for part, kind in zip(parts, kinds, strict=True))
    if annotation is bool and isinstance(value, str):
        return {"true": True, "false": False}[value.lower()]
    if annotation is int:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise TypeError
        return int(value)
    if annotation is float:
        if isinstance(value, bool) or not math.isfinite(float(value)):
            raise TypeError
        return float(value)
    if not isinstance(value, annotation):
        raise TypeError
    return value


def _spell(annotation: Any) -> str:
    """Return a type's name in plain words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("none" if kind is types.NoneType else _spell(kind) for kind in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin is tuple:
        return "a list of values separated by commas"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[
        annotation
    ]
