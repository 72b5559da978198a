"""The ledger: the shards of each stage that are done, with their input and settings. Light.

    ledger/<stage>/NNNNN.json      one record per committed shard; written last, it means "done"
    ledger/<stage>/settings.json   the stage's resolved settings, as last used

stage.py decides whether a shard is current. A commit retracts the old record, writes the data
files, then writes the new record; if it is killed in between, the shard counts as missing and is
redone.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from inspect import signature
from math import isfinite
from pathlib import PurePath
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from codeseg.pipeline.engine.storage import Storage

READERS = 16  # parallel reads of records on an object store, each a round trip
FINGERPRINT_CHARACTERS = 16
Plain = TypeVar("Plain")


@dataclass(frozen=True)
class ShardRecord:
    """The record of one committed shard.

    rows_in = rows_out + sum(rejected.values()); a failed pairs row counts as rejected, although
    it stays in the table.
    """

    stage: str
    shard: int
    input: str  # fingerprint of its input
    settings: str  # fingerprint of the settings that affect it
    output: str  # SHA-256 of the main data file
    files: dict[str, dict[str, Any]]  # path under the root -> {"bytes": …, "sha256": …}
    rows_in: int
    rows_out: int
    rejected: dict[str, int]  # reason -> rows
    bytes: int  # of all files
    seconds: float  # wall time of the shard in its worker
    versions: dict[str, str]  # libraries that made it
    owner: str = ""  # token of the run that committed it


def fingerprint(value: object) -> str:
    """Return the first 16 hex characters of the SHA-256 of the value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_CHARACTERS]


def from_json(cls: type[Plain], value: object) -> Plain:
    """Return a JSON object as the dataclass `cls`; fields with a default may be missing.

    Raises:
        ValueError: a field is missing, unknown, of another type or not finite.
    """
    hints, needed = _fields(cls)  # type: ignore[arg-type]  # a class is hashable
    if not isinstance(value, dict) or not needed <= value.keys() <= hints.keys():
        raise ValueError(f"the fields are not {', '.join(hints)}")
    return cls(**{name: _typed(name, item, hints[name]) for name, item in value.items()})


@cache
def _fields(cls: type) -> tuple[dict[str, Any], set[str]]:
    """Return the types of all fields, and the names of those without a default."""
    parameters = signature(cls).parameters.items()
    return get_type_hints(cls), {name for name, p in parameters if p.default is p.empty}


def _typed(name: str, value: Any, kind: Any) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        return from_json(kind, value)
    inner = get_args(kind)
    if type(None) in inner:  # KIND | None
        return None if value is None else _typed(name, value, inner[0])
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: _typed(name, item, inner[1]) for key, item in value.items()}
    if get_origin(kind) is tuple and isinstance(value, list | tuple) and len(value) == len(inner):
        return tuple(_typed(name, v, k) for v, k in zip(value, inner, strict=True))
    number = kind is float and type(value) in (int, float) and isfinite(value)
    if kind is Any or number or (type(value) is kind and kind is not float):
        return value
    raise ValueError(f"{name} is {value!r}")


class Ledger:
    """The records of every stage of one dataset root."""

    def __init__(self, root: Storage) -> None:
        self._root = root

    def records(self, stage: str) -> dict[int, ShardRecord]:
        """Return the records of a stage by shard number, ascending.

        Raises:
            ValueError: names the record that cannot be read.
        """
        names = self._root.names(f"ledger/{stage}", ".json")
        shards = [int(stem) for name in names if (stem := PurePath(name).stem).isdecimal()]
        readers = 1 if self._root.is_local else READERS
        with ThreadPoolExecutor(readers) as pool:
            found = pool.map(lambda shard: self.record(stage, shard), shards)
        return {record.shard: record for record in found if record is not None}

    def record(self, stage: str, shard: int) -> ShardRecord | None:
        """Return a shard's record; None if it is not committed (or is being redone)."""
        value = self._read(_record_path(stage, shard))
        if value is None:
            return None
        try:
            record = from_json(ShardRecord, value)
            sizes = [record.bytes, *(facts["bytes"] for facts in record.files.values())]
            inside = all(not {"..", ""} & set(path.split("/")) for path in record.files)
            counts = [*sizes, record.rows_in, record.rows_out, *record.rejected.values()]
            if (record.stage, record.shard) != (stage, shard) or not inside:
                raise ValueError("it is another shard's, or names files outside the root")
            if any(type(count) is not int or not 0 <= count < 2**63 for count in counts):
                raise ValueError("a count is invalid")
        except (ValueError, KeyError, OverflowError):
            raise ValueError(self._broken(_record_path(stage, shard))) from None
        return record

    def damaged(self, records: Mapping[int, ShardRecord]) -> list[int]:
        """Return the shards without files, or with a file that is missing or differs in size.

        It lists each folder once, so it is fast on an object store, too.
        """
        folders = {path.rpartition("/")[0] for r in records.values() for path in r.files}
        sizes = {f"{f}/{name}": n for f in folders for name, n in self._root.sizes(f).items()}
        return [
            shard
            for shard, record in records.items()
            if not record.files
            or any(sizes.get(path) != facts["bytes"] for path, facts in record.files.items())
        ]

    def commit(self, record: ShardRecord) -> None:
        """Record a shard as done; its data files must already be written."""
        self._write(_record_path(record.stage, record.shard), asdict(record))

    def retract(self, stage: str, shard: int) -> None:
        """Delete a shard's record, before its files are overwritten."""
        self._root.delete(_record_path(stage, shard))

    def write_settings(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Write the stage's resolved settings beside its records, unless they are unchanged."""
        if self.read_settings(stage) != settings:
            self._write(f"ledger/{stage}/settings.json", settings)

    def read_settings(self, stage: str) -> dict[str, Any] | None:
        """Return the settings that the stage last used; None if it never ran."""
        return self._read(f"ledger/{stage}/settings.json")

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            value = json.loads(self._root.read_bytes(path))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            raise ValueError(self._broken(path)) from None
        if not isinstance(value, dict):
            raise ValueError(self._broken(path))
        return value

    def _write(self, path: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        self._root.write_atomic(path, text.encode() + b"\n")

    def _broken(self, path: str) -> str:
        place = f"{self._root.uri}: {path}"
        return f"{place} is not a ledger file of codeseg; delete it and rerun the command"


def _record_path(stage: str, shard: int) -> str:
    return f"ledger/{stage}/{shard:05d}.json"
