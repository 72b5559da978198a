"""Define the stages: their inputs, their files, and whether their shards are current. Light.

    root, stage -> StageState: every shard is current, missing or stale (and why)

    urls ─► pairs ─┬─► nouns ─┬─► vocabulary
                   └──────────┴─► features ─► regions
                              └─► features-BACKBONE (any number)

A run redoes missing and stale shards, `status` shows them, the audit compares them and the trainer
refuses them; all of these call `state`, and every worker ends with `commit`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any

import pyarrow as pa

from codeseg.pipeline.engine.ledger import Ledger, ShardRecord, fingerprint
from codeseg.pipeline.engine.lock import TakenOverError, owned
from codeseg.pipeline.engine.storage import Storage

DAMAGED = "its file is gone or damaged"
NO_INPUT = "its input is not there"
MISSING = "it is missing"

Settings = Mapping[str, Any]  # as in ledger/<stage>/settings.json
Records = Mapping[str, Mapping[int, ShardRecord]]  # table -> shard -> record


@dataclass(frozen=True)
class Stage:
    """One table of a dataset root."""

    table: str  # and folder of its ledger records
    command: str  # of codeseg, which makes it
    file: str  # of a shard, under the root
    inputs: tuple[str, ...] = ()  # tables whose shard of the same number it is made from
    whole: bool = False  # a single shard, made from every shard of its input
    matters: Callable[[Settings], Settings] = dict  # the settings that affect the content
    next: str = ""  # the next command
    empty: str = ""  # what to do if no row was kept

    def path(self, shard: int) -> str:
        """Return a shard's path under the root."""
        return self.file.format(shard)

    def again(self, root: Storage) -> str:
        """Return the advice to run the command that makes or completes the table."""
        return f"run `codeseg {self.command} {root.uri}`"

    def redo(self, root: Storage, shard: int) -> str:
        """Return the advice for a corrupt shard."""
        return f"delete ledger/{self.table}/{shard:05d}.json and {self.again(root)}"

    def fingerprint(self, settings: Settings) -> str:
        """Return the fingerprint of the settings that affect the content.

        Raises:
            ValueError: they are not settings of this stage.
        """
        try:
            return str(settings.get("fingerprint") or fingerprint(self.matters(settings)))
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ValueError(
                f"ledger/{self.table}/settings.json holds no settings of codeseg {self.table}; "
                f"delete it and run codeseg {self.command} again"
            ) from None

    def inputs_today(self, records: Records, settings: Settings | None) -> dict[int, str] | None:
        """Return shard -> fingerprint of its current input, ascending; None if it is not known.

        Args:
            records: of every table in `inputs`.
            settings: of this stage; "inputs" are the fingerprints of a folder of tars.
        """
        tables = [records[table] for table in self.inputs]
        if not tables or not all(tables):
            listed = (settings or {}).get("inputs")
            known = isinstance(listed, list) and all(isinstance(i, str) for i in listed)
            return dict(enumerate(listed)) if isinstance(listed, list) and known else None
        if self.whole:
            return {0: fingerprint([record.output for record in tables[0].values()])}
        shared = sorted(set.intersection(*map(set, tables)))
        made_from = {i: [table[i].output for table in tables] for i in shared}
        return {
            i: outputs[0] if len(outputs) == 1 else fingerprint("+".join(outputs))
            for i, outputs in made_from.items()
        }


def _without(settings: Settings, *names: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


# `matters` omits the location of weights, because only their content matters
URLS = Stage(
    "urls", "download MANIFEST", "urls/{:05d}.parquet",
    matters=lambda s: _without(s, "complete", "left_out"),
)  # fmt: skip
PAIRS = Stage(
    "pairs", "download MANIFEST", "pairs/{:05d}.parquet", ("urls",), next="nouns {}",
    empty="check the list and the network (`codeseg doctor`), then add --retry-failed, and "
    "--allow-private-hosts for servers of your own",
)  # fmt: skip
NOUNS = Stage(
    "nouns", "nouns", "nouns/{:05d}.parquet", ("pairs",), next="features {}",
    empty="captions must be English sentences; --min-nouns 1 takes those with one noun",
)  # fmt: skip
VOCABULARY = Stage(
    "vocabulary", "features", "vocabulary/nouns.arrow", ("nouns",), whole=True,
    matters=lambda s: {**s, "clip": s["clip"]["weights_sha256"]},
)  # fmt: skip
FEATURES = Stage(
    "features", "features", "features/{:05d}.arrow", ("nouns", "pairs"),
    matters=lambda s: {
        **s,
        "clip": _without(s["clip"], "pretrained"),
        **({"backbone": _without(s["backbone"], "weights")} if "backbone" in s else {}),
    },
    next="train {} RUN",
    empty="--min-nouns 1 takes captions with one noun; `codeseg status` counts the other reasons",
)  # fmt: skip
REGIONS = Stage(
    "regions", "regions", "regions/{:05d}.parquet", ("features",),
    matters=lambda s: {**s, "weights": None}, next="train {} RUN --recipe scg_vitb16",
    empty="the features are empty: run `codeseg features` first",
)  # fmt: skip
STAGES = {stage.table: stage for stage in (URLS, PAIRS, NOUNS, VOCABULARY, FEATURES, REGIONS)}


def backbone_table(name: str, pool: str) -> str:
    """Return the table of a self-supervised ViT's features, by its name in timm (no dashes)."""
    return f"features-{name}" + ("-regions" if pool == "regions" else "")


def stage_of(table: str) -> Stage:
    """Return the stage of a table."""
    if table in STAGES:
        return STAGES[table]
    name, _, pool = table.removeprefix("features-").partition("-")
    recipe = "storybook_align" if name == "storybook" else "align_dinov2b"
    option, setting = (f" --pool {pool}", f" --set model.pool={pool}") if pool else ("", "")
    return replace(
        FEATURES, table=table, file=f"{table}/{{:05d}}.arrow",
        command=f"features --backbone {name}{option}",
        next=f"train {{}} RUN --recipe {recipe} --set model.backbone={name}{setting}",
    )  # fmt: skip


def root_stages(root: Storage) -> dict[str, Stage]:
    """Return table -> stage, with the backbones' tables of a root."""
    found = sorted({*root.folders("ledger"), *root.folders("")})
    return STAGES | {table: stage_of(table) for table in found if table.startswith("features-")}


@dataclass(frozen=True)
class StageState:
    """The state of a stage; shard numbers ascend."""

    records: Mapping[int, ShardRecord] = field(default_factory=dict)
    inputs: Mapping[int, str] | None = None  # shard -> fingerprint of its current input, if known
    current: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    stale: dict[int, str] = field(default_factory=dict)  # shard -> reason

    @property
    def pending(self) -> list[int]:
        """The missing and stale shards whose input exists."""
        return sorted(i for i in [*self.missing, *self.stale] if i in (self.inputs or {}))


def state(
    root: Storage,
    stage: Stage,
    *,
    settings: str | None = None,
    inputs: Mapping[int, str] | None = None,
    records: Records | None = None,
) -> StageState:
    """Compare a stage's records with its current inputs, settings and files.

    Args:
        root: of the dataset.
        stage: to judge.
        settings: their fingerprint; None: that of the settings last used.
        inputs: shard -> fingerprint of its input, if the ledger does not know it.
        records: of the stage and its inputs, if they have been read already.

    Raises:
        ValueError: a record or the settings cannot be read.
    """
    ledger = Ledger(root)
    records = records or {t: ledger.records(t) for t in (stage.table, *stage.inputs)}
    mine, last = records[stage.table], ledger.read_settings(stage.table)
    if inputs is None:
        inputs = stage.inputs_today(records, last)
    if settings is None and last is not None:
        settings = stage.fingerprint(last)
    damaged = set(ledger.damaged(mine))
    found = StageState(mine, inputs)
    upstream = set() if stage.whole else {i for table in stage.inputs for i in records[table]}
    for shard in sorted({*mine, *upstream, *(inputs or {})}):
        record = mine.get(shard)
        if record is None:
            found.missing.append(shard)
            continue
        reasons = []
        if inputs is not None and record.input != inputs.get(shard):
            reasons.append("its input changed" if shard in inputs else NO_INPUT)
        if settings is not None and record.settings != settings:
            reasons.append("its settings changed")
        if reasons or shard in damaged:
            found.stale[shard] = " and ".join(reasons) or DAMAGED
        else:
            found.current.append(shard)
    return found


def faults(root: Storage, stage: Stage, found: StageState) -> dict[str, tuple[list[int], str]]:
    """Return the faults that a reader must refuse: reason -> (shards, a message for the user)."""
    faulty = {**dict.fromkeys(found.missing, MISSING), **found.stale}
    lines = {}
    for why in dict.fromkeys(faulty.values()):
        shards = [shard for shard, reason in faulty.items() if reason == why]
        more = f" and {len(shards) - 1} more" if len(shards) > 1 else ""
        place = f"{root.uri}/{stage.path(shards[0])}{more}"
        lines[why] = (shards, f"{place}: {why}; {stage.again(root)}")
    return lines


def commit(
    root: Storage,
    stage: Stage,
    shard: int,
    input: str,
    settings: str,
    write: Callable[[pa.NativeFile], None],
    *,
    rows_in: int,
    rejected: Mapping[str, int],
    start: float,
    versions: Mapping[str, str],
) -> ShardRecord:
    """Write a shard's file, then the record that marks it done.

    `input` and `settings` are fingerprints; `write` writes the file to a stream; `rejected` (reason
    -> rows) is read after it; `start` is on `time.perf_counter`'s clock.

    Raises:
        TakenOverError: another run now owns the stage; the shard counts as not done.
    """
    path = stage.path(shard)
    mine = owned(root, stage.table)
    info = mine.write_atomic(path, write)
    record = ShardRecord(
        stage=stage.table, shard=shard, input=input, settings=settings,
        output=info.sha256, files={path: asdict(info)}, bytes=info.bytes,
        rows_in=rows_in, rows_out=rows_in - sum(rejected.values()),
        rejected=dict(sorted(rejected.items())),
        seconds=round(perf_counter() - start, 3), versions=dict(versions), owner=mine.owner,
    )  # fmt: skip
    Ledger(mine).commit(record)
    try:
        owned(root, stage.table)
    except TakenOverError:  # on an object store the file may be the other run's by now
        if not root.is_local:
            Ledger(root).retract(stage.table, shard)
        raise
    return record
