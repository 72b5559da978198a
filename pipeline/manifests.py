"""Read manifests: data_manifests/NAME.toml, or any TOML file of that form. Light.

A dataset's manifest -> Manifest: the form of its URL list and its columns, never how to process
it. The files in benchmarks/ and protocols/ are parsed by pipeline/benchmark.
"""

import tomllib
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

LISTS = ("tsv", "csv", "parquet", "jsonl")
READY = ("webdataset", "imagefolder", "imageparquet")
FORMATS = (*LISTS, *READY)
REQUIRED = ("name", "title", "url_list", "format")
OPTIONAL = ("header", "columns", "rows", "licence", "homepage", "image_size")


@dataclass(frozen=True)
class Manifest:
    """A dataset's URL list, or its folder of tars, pictures or Parquet files with pictures."""

    name: str
    title: str
    url_list: str  # path or URI; a relative one is relative to the manifest file
    format: str  # one of FORMATS
    header: bool  # tsv and csv: whether the first row names the columns
    columns: tuple[str, ...]  # every column in file order if there is no header, else ()
    url: str  # the URL's column
    caption: str  # the caption's column
    rows: int | None  # as published, for estimates only
    licence: str
    homepage: str
    image_size: int  # shorter side of stored pictures, pixels


def manifest_names(folder: str = "") -> list[str]:
    """Return the names of the files in data_manifests/FOLDER."""
    paths = (files("codeseg.data_manifests") / folder).iterdir()
    return sorted(path.name.removesuffix(".toml") for path in paths if path.name.endswith(".toml"))


def read_manifest(name: str, folder: str = "") -> bytes:
    """Return the bytes of data_manifests/FOLDER/NAME.toml, or of the TOML file at the path `name`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown; names those that exist.
    """
    kind, known = folder.removesuffix("s") or "dataset", manifest_names(folder)
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"{name}: no such {kind} manifest")
        return Path(name).read_bytes()
    if name not in known:
        raise ValueError(
            f"unknown {kind} {name!r}; there are {', '.join(known)}, "
            "or give the path of a .toml file"
        )
    return (files("codeseg.data_manifests") / folder / f"{name}.toml").read_bytes()


def parse_toml(content: bytes, origin: str) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ValueError: it is not TOML; names `origin`.
    """
    try:
        return tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{origin}: not a TOML file ({error})") from None


def load_manifest(name_or_path: str) -> Manifest:
    """Read a dataset's manifest by name or by path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, or the manifest is wrong; names the file and the key.
    """
    manifest = parse_manifest(read_manifest(name_or_path), name_or_path)
    place = Path(name_or_path).parent / manifest.url_list
    given = name_or_path.endswith(".toml") and "://" not in manifest.url_list
    return replace(manifest, url_list=str(place)) if given and place.exists() else manifest


def parse_manifest(content: bytes, origin: str) -> Manifest:
    """Parse and check the text of a dataset's manifest.

    Raises:
        ValueError: names `origin` and the wrong key.
    """
    value = parse_toml(content, f"manifest {origin}")
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
