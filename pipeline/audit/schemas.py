"""A table's name and the settings of the features -> its declared Arrow schema. Light.

`difference` says in words how the schema of an actual file differs from it.
"""

from collections.abc import Mapping

import pyarrow as pa

from codeseg.pipeline import schema
from codeseg.pipeline.stream.feature_settings import FeatureSettings

TENSORS = ("pixels", "image_tokens", "image_scales", "caption_states", "jpg")
"""Columns of features that are too large for SQL or of types that DuckDB lacks."""


def declared_schemas(made: Mapping[str, FeatureSettings]) -> dict[str, pa.Schema]:
    """Return table -> schema, from the settings of the root's tables of features."""
    fixed = {"pairs": schema.PAIRS, "nouns": schema.NOUNS, "regions": schema.REGIONS}
    widths = [settings.clip.embed_dim for settings in made.values()]
    vocabulary = {"vocabulary": schema.vocabulary(widths[0])} if widths else {}
    return fixed | vocabulary | {table: settings.schema() for table, settings in made.items()}


def light_features() -> pa.Schema:
    """Return the columns of features that SQL sees."""
    whole = schema.features(
        views=1, image_size=1, tokens=1, width=1, text_width=1, image_tokens="none", clip_score=True
    )
    return pa.schema([column for column in whole if column.name not in TENSORS])


def difference(actual: pa.Schema, declared: pa.Schema) -> str | None:
    """Return in words how a file's columns differ from the declared ones; None if they agree."""
    problems = []
    for field in declared:
        index = actual.get_field_index(field.name)
        kind = str(actual.field(index).type) if index >= 0 else ""
        if not kind:
            problems.append(f"no column {field.name}")
        elif kind.replace("<element: ", "<item: ") != str(field.type):  # a writer's own name
            problems.append(f"{field.name} is {kind}, not {field.type}")
    unknown = [name for name in actual.names if name not in declared.names]
    problems += [f"column {name} is not in the schema" for name in unknown]
    return "; ".join(problems) or None
