"""data_manifests/protocols/NAME.toml -> how a benchmark is played: settings and names. Light.

A protocol is data: prediction settings (for a CLIP of 224 pixels), what single benchmarks have
instead, and the names of their classes. Numbers of two protocols do not compare: names alone move
PASCAL VOC by twenty points.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codeseg.pipeline.benchmark.manifest import Benchmark, manifest_names, read_manifest


@dataclass(frozen=True)
class Protocol:
    """One protocol file."""

    name: str
    title: str
    source: str
    methods: tuple[str, ...]
    """Methods whose own protocol it is."""
    settings: Mapping[str, Any]
    benchmarks: Mapping[str, Mapping[str, Any]]
    names: Mapping[str, Mapping[str, Sequence[str]]] | None
    """Benchmark -> class -> its names; None: every class goes by its own name."""
    sha256: str
    """Of the files it was read from."""

    def settings_for(self, benchmark: Benchmark) -> dict[str, Any]:
        """Return prediction settings, for a CLIP of 224 pixels."""
        own = self.benchmarks.get(benchmark.name, {})
        return {"protocol": self.name, **self.settings, **own}

    def class_names(self, benchmark: Benchmark) -> list[tuple[str, ...]]:
        """Return the names of every class, the background's too, in class order.

        Raises:
            ValueError: names are given for a class that the benchmark does not have.
        """
        several: Mapping[str, Sequence[str]] = {}
        if self.names is not None:
            several = {**benchmark.names, **self.names.get(benchmark.name, {})}
        if unknown := sorted(set(several) - set(benchmark.classes)):
            raise ValueError(
                f"protocol {self.name} names classes that {benchmark.name} lacks: {unknown}"
            )
        return [tuple(several.get(name, (name,))) for name in benchmark.classes]


def protocol_names() -> list[str]:
    """Return names of the protocols that come with codeseg."""
    return manifest_names("protocols")


def own_protocol(method: str) -> str:
    """Return the protocol that a method is published with; code where regions take part."""
    return next((n for n in protocol_names() if method in load_protocol(n).methods), "code")


def load_protocol(name: str) -> Protocol:
    """Read a protocol: one of `protocol_names()`, or the path of a TOML file.

    Raises:
        ValueError: Unknown name, or a file that is wrong (one line says how).
    """
    stored, table = read_manifest("protocols", name)
    names, digest = table.get("names"), hashlib.sha256(stored)
    if other := table.get("names_of"):
        base = load_protocol(other)
        names = {
            key: {**(base.names or {}).get(key, {}), **(names or {}).get(key, {})}
            for key in {**(base.names or {}), **(names or {})}
        }
        digest.update(base.sha256.encode())
    try:
        return Protocol(
            name=name,
            title=table["title"],
            source=table["source"],
            methods=tuple(table.get("methods", ())),
            settings=table["settings"],
            benchmarks=table.get("benchmarks", {}),
            names=names,
            sha256=digest.hexdigest(),
        )
    except KeyError as error:
        raise ValueError(f"{name}: the protocol lacks {error}") from None
