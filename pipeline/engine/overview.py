"""How far a dataset root is, from its ledger alone: ledger/ -> one StageView per stage. Light."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from codeseg.pipeline.engine.ledger import Ledger, ShardRecord, fingerprint
from codeseg.pipeline.engine.progress import Heartbeat, read_heartbeat
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.schema import TABLES

SHARDED = ("pairs", "nouns", "features", "regions")  # the vocabulary is one shard for the corpus


@dataclass(frozen=True)
class StageView:
    """One stage of one root."""

    stage: str
    shards: int  # there should be
    current: list[int]
    stale: dict[int, str]  # shard -> why
    rows_in: int
    rows_out: int
    rejected: dict[str, int]  # reason -> rows, the most frequent first
    bytes: int
    seconds: float  # of all workers together
    running: bool = False
    rows_per_second: float | None = None  # while running
    eta_seconds: float | None = None  # while running
    notes: dict[str, str] = field(default_factory=dict)  # shard -> why it waits

    @property
    def missing(self) -> int:
        """Shards that were never done."""
        return self.shards - len(self.current) - len(self.stale)

    @property
    def success(self) -> float | None:
        """Share of the rows that were kept."""
        return self.rows_out / self.rows_in if self.rows_in else None


def look(root: Storage) -> list[StageView]:
    """Read the ledger of every stage.

    Raises:
        ValueError: when the folder holds no dataset.
    """
    ledger = Ledger(root)
    stages = ("urls", *TABLES)
    with ThreadPoolExecutor(len(stages)) as pool:
        records = dict(zip(stages, pool.map(ledger.records, stages), strict=True))
        settings = dict(zip(stages, pool.map(ledger.read_settings, stages), strict=True))
        beats = dict(zip(stages, pool.map(lambda s: read_heartbeat(root, s), stages), strict=True))
    if not any(records.values()) and not any(settings.values()):
        raise ValueError(f"{root.uri} is no dataset root: it has no ledger; begin with download")
    shards = max(len(records["urls"]), len(records["pairs"]))
    return [
        _view(stage, shards if stage in SHARDED else 1, records, settings[stage], beats[stage])
        for stage in TABLES
    ]


def _view(
    stage: str,
    shards: int,
    all_records: Mapping[str, Mapping[int, ShardRecord]],
    settings: Mapping[str, Any] | None,
    beat: Heartbeat | None,
) -> StageView:
    records = all_records[stage]
    inputs = _inputs(stage, all_records)
    wanted = _settings_fingerprint(records, settings)
    stale: dict[int, str] = {}
    for shard, record in records.items():
        reasons = []
        if inputs is not None and inputs.get(shard) != record.input:
            reasons.append("its input changed" if shard in inputs else "its input is not there")
        if record.settings != wanted:
            reasons.append("its settings changed")
        if reasons:
            stale[shard] = " and ".join(reasons)
    rejected: Counter[str] = Counter()
    for record in records.values():
        rejected.update(record.rejected)
    running = beat is not None and beat.alive
    return StageView(
        stage=stage,
        shards=max(shards, len(records)),
        current=[shard for shard in records if shard not in stale],
        stale=stale,
        rows_in=sum(record.rows_in for record in records.values()),
        rows_out=sum(record.rows_out for record in records.values()),
        rejected=dict(rejected.most_common()),
        bytes=sum(record.bytes for record in records.values()),
        seconds=round(sum(record.seconds for record in records.values()), 3),
        running=running,
        rows_per_second=beat.rows_per_second if running and beat else None,
        eta_seconds=beat.eta_seconds if running and beat else None,
        notes=beat.notes if running and beat else {},
    )


def _inputs(
    stage: str, records: Mapping[str, Mapping[int, ShardRecord]]
) -> Mapping[int, str] | None:
    """What each shard would be made from today; None where the ledger does not tell."""
    if stage == "pairs" and records["urls"]:
        return {shard: record.output for shard, record in records["urls"].items()}
    if stage == "nouns":
        return {shard: record.output for shard, record in records["pairs"].items()}
    if stage == "features":
        pairs, nouns = records["pairs"], records["nouns"]
        both = pairs.keys() & nouns.keys()
        return {i: fingerprint(f"{nouns[i].output}+{pairs[i].output}") for i in both}
    if stage == "regions":
        return {shard: record.output for shard, record in records["features"].items()}
    return None


def _settings_fingerprint(
    records: Mapping[int, ShardRecord], settings: Mapping[str, Any] | None
) -> str | None:
    """The stage's settings today; what most shards have, where it does not write them down."""
    if settings and "fingerprint" in settings:
        return str(settings["fingerprint"])
    common = Counter(record.settings for record in records.values()).most_common(1)
    return common[0][0] if common else None
