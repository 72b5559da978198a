"""Read webdataset tars: FOLDER/*.tar -> the samples of each tar.

Tar i in the order of names is shard i. A sample consists of the files with one folder and base
name, in any position: a picture, its caption (.txt, or "caption" in .json; a list has several) and,
in .json, its "url". A base name may have dots: the extension follows the last one.
"""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from codeseg.model.pictures.header import OWN_ENDINGS
from codeseg.pipeline.download.lists import sound
from codeseg.pipeline.download.members import PACKED, TarError, read_members
from codeseg.pipeline.download.ready import Files, Sample
from codeseg.pipeline.engine.storage import Storage

PICTURES = (*OWN_ENDINGS, ".heic", ".jxl")  # the last two are rejected as unsupported
TEXTS = (".txt", ".json")
TEXT_BYTES = 1 << 20  # of a file
MOST_CAPTION = 20_000  # characters


class Tars(Files):
    """A folder of tars."""

    def __init__(self, place: str) -> None:
        super().__init__(place, tuple(PACKED), "pack the pairs into fewer tars")

    def samples(
        self, shard: int, max_bytes: int, convert: Callable[[bytes], Any], most: int
    ) -> list[Sample]:
        """Return the samples of a tar, as `Source.samples`."""
        name = self.name(shard)
        with Storage.open(self.place).open_input(name, mapped=False) as source:
            return read_samples(source, name, max_bytes, convert, most)


def read_samples(
    source: pa.NativeFile,
    name: str,
    max_bytes: int,
    convert: Callable[[bytes], Any] = bytes,
    most: int | None = None,
) -> list[Sample]:
    """Return the samples of a tar, in the order of their first files; see `Source.samples`.

    The extension of `name` gives the compression.

    Raises:
        ValueError: the tar is broken, holds a name twice, or too many samples.
        OSError: the storage failed, which says nothing about the tar.
    """

    def wanted(file: str, size: int) -> bool:
        _, ending = split_ending(file)
        return size <= (TEXT_BYTES if ending in TEXTS else max_bytes if ending in PICTURES else -1)

    samples: dict[str, Sample] = {}
    try:
        for file, size, content in read_members(source, name, wanted):
            base, ending = split_ending(file)
            if ending not in PICTURES + TEXTS:
                continue
            sample = samples.setdefault(base, Sample(base))
            if ending in sample.endings:
                raise TarError(f"it holds {sound(file)} twice, so it is two tars in one")
            sample.endings.add(ending)
            if most is not None and len(samples) > most:
                raise ValueError(f"{name} holds more samples than --shard-size")
            if not wanted(file, size):
                sample.fault = "too_large" if ending in PICTURES else "caption_too_large"
            elif ending in TEXTS:
                add_text(sample, ending, content)
            elif sample.image is not None:
                samples[file] = Sample(file, fault="second_image")
            else:
                sample.image = convert(content)
    except TarError as error:
        raise ValueError(f"{name} is a broken tar: {sound(str(error))}") from None
    for base, sample in samples.items():
        folder, slash, file = base.rpartition("/")
        stem = folder + slash + file.partition(".")[0]  # webdataset's own name of the sample
        if stem != base and stem in samples and not sample.captions:
            sample.fault = sample.fault or "second_image"  # as 0001.seg.png beside 0001.jpg
    return list(samples.values())


def split_ending(file: str) -> tuple[str, str]:
    """Return the sample of a file and its lower-case extension; both are "" for hidden files."""
    folder, slash, name = file.removeprefix("./").rpartition("/")
    base, dot, ending = name.rpartition(".")
    if not base or name.startswith("."):
        return "", ""
    return folder + slash + base, (dot + ending).lower()


def add_text(sample: Sample, ending: str, content: bytes) -> None:
    """Add the captions and URL of a file to a sample; a .txt overrides the captions of a .json."""
    if ending == ".txt":
        captions: Any = [content.decode(errors="replace")]
    else:
        try:
            facts = json.loads(content)
        except (ValueError, RecursionError):
            return  # the caption may still be in .txt
        if not isinstance(facts, dict):
            return
        url, captions = facts.get("url"), facts.get("caption", facts.get("captions"))
        sample.url = sound(url) if isinstance(url, str) else None
        captions = captions if isinstance(captions, list) else [captions]
        if ".txt" in sample.endings:
            return
    kept = [sound(text) for text in captions if isinstance(text, str)]
    sample.captions = [text for text in kept if len(text) <= MOST_CAPTION]
    if len(sample.captions) < len(kept):
        sample.fault = "caption_too_large"
