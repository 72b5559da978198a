"""What a table's files should look like, and how one differs. Light.

table name, settings of the feature stage -> declared Arrow schema; actual schema -> difference
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from codeseg.pipeline import schema

TENSORS = ("pixels", "image_tokens", "image_scales", "caption_states", "jpg")
"""Columns of features too large for SQL, or of types DuckDB lacks; see feature_values."""


def declared_schema(table: str, features_settings: Mapping[str, Any]) -> pa.Schema | None:
    """The table's schema; None where the settings that fix its shapes are missing."""
    if table in ("pairs", "nouns", "regions"):
        return {"pairs": schema.PAIRS, "nouns": schema.NOUNS, "regions": schema.REGIONS}[table]
    clip = features_settings.get("clip")
    if not clip:
        return None
    if table == "vocabulary":
        return schema.vocabulary(clip["embed_dim"])
    return schema.features(
        views=features_settings["views"],
        image_size=clip["image_size"],
        tokens=1 + (clip["image_size"] // clip["patch_size"]) ** 2,
        width=clip["width"],
        text_width=clip["text_width"],
        image_tokens=features_settings["image_tokens"],
    )


def light_features() -> pa.Schema:
    """The columns of features that SQL sees."""
    whole = schema.features(
        views=1, image_size=1, tokens=1, width=1, text_width=1, image_tokens="none"
    )
    return pa.schema([column for column in whole if column.name not in TENSORS])


def difference(actual: pa.Schema, declared: pa.Schema) -> str | None:
    """How a file's columns differ from the declared ones, in words; None when they agree."""
    problems = []
    for field in declared:
        index = actual.get_field_index(field.name)
        if index < 0:
            problems.append(f"no column {field.name}")
        elif not _same_type(actual.field(index).type, field.type):
            problems.append(f"{field.name} is {actual.field(index).type}, not {field.type}")
    problems += [
        f"column {name} is not in the schema"
        for name in actual.names
        if declared.get_field_index(name) < 0
    ]
    return "; ".join(problems) or None


def _same_type(actual: pa.DataType, declared: pa.DataType) -> bool:
    """Whether the types agree, whatever their writer called the list's items."""
    if pa.types.is_list(actual) and pa.types.is_list(declared):
        return _same_type(actual.value_type, declared.value_type)
    if pa.types.is_struct(actual) and pa.types.is_struct(declared):
        return [f.name for f in actual] == [f.name for f in declared] and all(
            _same_type(a.type, b.type) for a, b in zip(actual, declared, strict=True)
        )
    return bool(actual.equals(declared))
