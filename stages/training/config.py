"""Configuration files -> settings by dotted key, and the differences between two of them.

In: a JSON or TOML file; nested settings. Out: dotted keys with values; a line for each difference.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_file(path: Path) -> dict[str, Any]:
    """Read a JSON or TOML configuration file into nested dictionaries; refuse any other file."""
    try:
        if path.suffix == ".toml":
            values = tomllib.loads(path.read_text())
        elif path.suffix == ".json":
            values = json.loads(path.read_text())
        else:
            raise ValueError(f"{path} is neither .json nor .toml")
    except FileNotFoundError:
        raise ValueError(f"there is no configuration file {path}") from None
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not parse: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no table of settings")
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys: {"train": {"steps": 5}} -> {"train.steps": 5}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: Iterable[str] = ()
) -> list[str]:
    """Return one line "key: old -> new" for each dotted key whose values differ, sorted by key."""
    before, after = flatten(old), flatten(new)
    keys = sorted((before.keys() | after.keys()).difference(ignore))
    pairs = [(key, before.get(key, "(absent)"), after.get(key, "(absent)")) for key in keys]
    return [f"{key}: {one} -> {other}" for key, one, other in pairs if one != other]
