"""A dataset root's ledger and file sizes -> its progress, a StageView for each stage. Light."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.progress import Heartbeat, read_heartbeat
from codeseg.pipeline.engine.stage import Stage, StageState, root_stages, state
from codeseg.pipeline.engine.storage import Storage


@dataclass(frozen=True)
class StageView:
    """One stage of one root."""

    stage: str
    shards: int  # expected
    current: list[int]
    stale: dict[int, str]  # shard -> reason
    rows_in: int
    rows_out: int
    rejected: dict[str, int]  # reason -> rows, the most frequent first
    bytes: int
    seconds: float  # of all workers together
    beat: Heartbeat | None  # of the active run
    left_out: dict[str, int] = field(default_factory=dict)  # file of the URL list -> bad lines

    @property
    def missing(self) -> int:
        """The shards that were never done."""
        return self.shards - len(self.current) - len(self.stale)

    @property
    def success(self) -> float | None:
        """The share of rows that were kept."""
        return self.rows_out / self.rows_in if self.rows_in else None


def read_overview(root: Storage) -> list[StageView]:
    """Return the progress of every stage.

    Raises:
        ValueError: the folder is not a dataset root.
    """
    ledger = Ledger(root)
    stages = root_stages(root)
    with ThreadPoolExecutor(len(stages)) as pool:
        records = dict(zip(stages, pool.map(ledger.records, stages), strict=True))
        settings = dict(zip(stages, pool.map(ledger.read_settings, stages), strict=True))
        if not any(records.values()) and not any(settings.values()):
            raise ValueError(
                f"{root.uri} is not a dataset root: it has no ledger; run codeseg download first"
            )
        tables = [table for table in stages if table != "urls"]
        states = list(pool.map(lambda t: state(root, stages[t], records=records), tables))
        beats = list(pool.map(lambda t: read_heartbeat(root, t), tables))
    shards = len({*records["urls"], *(states[0].inputs or {}), *records["pairs"]})
    views = [
        _view(stages[table], shards, found, beat)
        for table, found, beat in zip(tables, states, beats, strict=True)
    ]
    left_out = (settings["urls"] or {}).get("left_out")
    views[0] = replace(views[0], left_out=left_out if isinstance(left_out, dict) else {})
    return views


def _view(stage: Stage, shards: int, found: StageState, beat: Heartbeat | None) -> StageView:
    shards = 1 if stage.whole else shards
    records = found.records.values()
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record.rejected)
    return StageView(
        stage=stage.table, shards=max(shards, len(records)),
        current=found.current, stale=found.stale,
        rows_in=sum(record.rows_in for record in records),
        rows_out=sum(record.rows_out for record in records),
        rejected=dict(rejected.most_common()),
        bytes=sum(record.bytes for record in records),
        seconds=round(sum(record.seconds for record in records), 3),
        beat=beat if beat and beat.alive else None,
    )  # fmt: skip
