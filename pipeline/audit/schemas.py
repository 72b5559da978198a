"""What a table's files should look like, and how one differs. Light.

table name, settings of the feature stage -> declared Arrow schema; actual schema -> difference
"""

import pyarrow as pa

from codeseg.pipeline import schema
from codeseg.pipeline.stream.feature_settings import FeatureSettings

TENSORS = ("pixels", "image_tokens", "image_scales", "caption_states", "jpg")
"""Columns of features too large for SQL, or of types DuckDB lacks; see feature_values."""


def declared_schema(table: str, features: FeatureSettings | None) -> pa.Schema | None:
    """Return the table's schema; None where the settings that fix its shapes are missing."""
    fixed = {"pairs": schema.PAIRS, "nouns": schema.NOUNS, "regions": schema.REGIONS}
    if table in fixed or features is None:
        return fixed.get(table)
    vocabulary = table == "vocabulary"
    return schema.vocabulary(features.clip.embed_dim) if vocabulary else features.schema()


def light_features() -> pa.Schema:
    """Return the columns of features that SQL sees."""
    whole = schema.features(
        views=1, image_size=1, tokens=1, width=1, text_width=1, image_tokens="none", clip_score=True
    )
    return pa.schema([column for column in whole if column.name not in TENSORS])


def difference(actual: pa.Schema, declared: pa.Schema) -> str | None:
    """Return how a file's columns differ from the declared ones, in words; None when they agree."""
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
    """Return whether the types agree, whatever their writer called the list's items."""
    return str(actual).replace("<element: ", "<item: ") == str(declared)
