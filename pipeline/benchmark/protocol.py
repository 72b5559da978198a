"""data_manifests/protocols/NAME.toml -> an evaluation protocol: settings and names. Light.

A protocol is data: prediction settings (for a CLIP of 224 pixels), exceptions for single
benchmarks, and the names of their classes. Scores under two protocols cannot be compared: the
names alone change PASCAL VOC's by twenty points.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codeseg.pipeline.benchmark.manifest import Benchmark
from codeseg.pipeline.manifests import manifest_names, parse_toml, read_manifest


@dataclass(frozen=True)
class Protocol:
    """A protocol file."""

    name: str
    title: str
    source: str
    methods: tuple[str, ...]  # that were published with this protocol
    settings: Mapping[str, Any]
    benchmarks: Mapping[str, Mapping[str, Any]]
    names: Mapping[str, Mapping[str, Sequence[str]]] | None
    """Benchmark -> class -> its names; None: every class has only its own name."""
    sha256: str  # of the files it was read from

    def settings_for(self, benchmark: Benchmark) -> dict[str, Any]:
        """Return prediction settings, for a CLIP of 224 pixels."""
        own = self.benchmarks.get(benchmark.name, {})
        return {"protocol": self.name, **self.settings, **own}

    def class_names(self, benchmark: Benchmark) -> list[tuple[str, ...]]:
        """Return the names of every class, background included, in class order.

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
    """Return the names of the protocols that come with codeseg."""
    return manifest_names("protocols")


def own_protocol(method: str) -> str:
    """Return the protocol that a method was published with; "code" for methods with regions."""
    return next((n for n in protocol_names() if method in load_protocol(n).methods), "code")


def load_protocol(name: str) -> Protocol:
    """Read the protocol of this name, or the TOML file at this path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, or the file is wrong; one line says how.
    """
    stored = read_manifest(name, "protocols")
    table = parse_toml(stored, name)
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
