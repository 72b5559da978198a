"""Dataset manifests: data_manifests/<name>.toml or any TOML of that form -> Manifest. Light.

A manifest describes data: the form of its URL list and its columns, never how to process it.
"""

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

LISTS = ("tsv", "csv", "parquet", "jsonl")
READY = ("webdataset", "imagefolder", "imageparquet")
FORMATS = (*LISTS, *READY)
REQUIRED = ("name", "title", "url_list", "format")
OPTIONAL = ("header", "columns", "rows", "licence", "homepage", "image_size")


@dataclass(frozen=True)
class Manifest:
    """One dataset's URL list, or its folder of tars, pictures or Parquet files with pictures."""

    name: str
    title: str
    url_list: str  # path or URI; a relative one is relative to the manifest file
    format: str  # one of FORMATS
    header: bool  # tsv and csv: whether the first row names the columns
    columns: tuple[str, ...]  # every column in file order when there is no header, else ()
    url: str  # the URL's column
    caption: str  # the caption's column
    rows: int | None  # as published, for estimates only
    licence: str
    homepage: str
    image_size: int  # shorter side of stored pictures, pixels


def load_manifest(name_or_path: str) -> Manifest:
    """Read a manifest by name or by path.

    Raises:
        FileNotFoundError: names the existing manifests.
        ValueError: names the file and the wrong key.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise FileNotFoundError(f"no manifest file {path}")
        manifest = parse_manifest(path.read_bytes(), str(path))
        place = path.parent / manifest.url_list
        if "://" not in manifest.url_list and place.exists():
            return Manifest(**{**vars(manifest), "url_list": str(place)})
        return manifest
    folder = resources.files("codeseg.data_manifests")
    source = folder / f"{name_or_path}.toml"
    if not source.is_file():
        known = sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml"))
        raise FileNotFoundError(
            f"no dataset manifest {name_or_path!r}: it is a path to a .toml file or one of "
            + ", ".join(known)
        )
    return parse_manifest(source.read_bytes(), name_or_path)


def parse_manifest(content: bytes, origin: str) -> Manifest:
    """Check a manifest's TOML text.

    Raises:
        ValueError: names `origin` and the wrong key.
    """
    try:
        value = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"manifest {origin}: {error}") from None
    for key in REQUIRED:
        if not isinstance(value.get(key), str):
            raise ValueError(f"manifest {origin}: {key!r} is missing or not a string")
    if unknown := sorted(set(value) - set(REQUIRED) - set(OPTIONAL)):
        raise ValueError(f"manifest {origin}: unknown key {unknown[0]!r}")
    if value["format"] not in FORMATS:
        raise ValueError(f"manifest {origin}: format is one of {', '.join(FORMATS)}")
    columns, url, caption = _columns(value, origin)
    size = value.get("image_size", 256)
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"manifest {origin}: image_size is a number of pixels, not {size!r}")
    return Manifest(
        name=value["name"],
        title=value["title"],
        url_list=value["url_list"],
        format=value["format"],
        header=bool(value.get("header", True)),
        columns=columns,
        url=url,
        caption=caption,
        rows=value.get("rows"),
        licence=str(value.get("licence", "")),
        homepage=str(value.get("homepage", "")),
        image_size=size,
    )


def _columns(value: dict[str, Any], origin: str) -> tuple[tuple[str, ...], str, str]:
    """Return all columns in file order (headerless lists), the URL's and the caption's."""
    columns = value.get("columns", {"url": "url", "caption": "caption"})
    headerless = value["format"] in ("tsv", "csv") and not value.get("header", True)
    if isinstance(columns, list):
        if not {"url", "caption"} <= set(columns) or len(set(columns)) != len(columns):
            raise ValueError(f'manifest {origin}: columns lists "url" and "caption" once each')
        return (tuple(columns) if headerless else ()), "url", "caption"
    if headerless:
        raise ValueError(
            f'manifest {origin}: without a header, columns is a list such as ["caption", "url"]'
        )
    named = isinstance(columns, dict) and set(columns) == {"url", "caption"}
    if not named or not all(isinstance(column, str) for column in columns.values()):
        raise ValueError(f'manifest {origin}: columns = {{url = "…", caption = "…"}}')
    return (), columns["url"], columns["caption"]
