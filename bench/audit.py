"""The audit at the size of CC12M, and each check against plain pandas.

    python -m bench.audit [--rows 12400000] [--pandas-rows 1000000] [--root DIR]

This generates pairs (without picture bytes), nouns and ledger like those of a sound dataset of that
size, runs every check with 2 threads and 4 GB, and prints its rows/s. On a dataset of
`--pandas-rows`, it runs the same checks written in plain pandas on the same files in the same
process, and prints the ratio. Both read the files again for every check, and both must count the
same offending rows. The exit code is 1 if a check is slower than pandas or the whole audit is not 5
times as fast.
"""

import argparse
import itertools
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.audit_pandas import PandasAudit
from codeseg.pipeline import schema
from codeseg.pipeline.audit.database import Audit
from codeseg.pipeline.audit.questions import check_names
from codeseg.pipeline.audit.views import AuditOptions
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord
from codeseg.pipeline.engine.storage import Storage

SHARD_ROWS = 10_000
SOS, EOS = 49406, 49407
BASES = 8  # shards with distinct captions; the others repeat them with other numbers
WORDS = 40_000  # distinct nouns, Zipf-distributed
OTHERS = ("a", "the", "red", "old", "of", "in", "with", "standing", "near", "on")
OPTIONS = AuditOptions(memory="3GB", threads=2)  # the process as a whole stays under 4 GB
TARGET = 5.0


def generate(root: Path, rows: int) -> None:
    """Write pairs and nouns of `rows` URLs in shards, with their ledger."""
    storage = Storage.open(root)
    ledger = Ledger(storage)
    bases = [_base(seed) for seed in range(BASES)]
    for shard in range(-(-rows // SHARD_ROWS)):
        count = min(SHARD_ROWS, rows - shard * SHARD_ROWS)
        pairs, nouns = _shard(shard, bases[shard % BASES].slice(0, count))
        alive = nouns.num_rows
        few = alive - nouns["rejected"].null_count
        lost = {"http_404": count - alive}
        output = _commit(storage, ledger, "pairs", shard, pairs, "0", (count, alive), lost)
        rejected = {"too_few_nouns": few}
        _commit(storage, ledger, "nouns", shard, nouns, output, (alive, alive - few), rejected)


def _words() -> list[str]:
    """Return distinct pronounceable words, some of them class names."""
    syllables = ["ba", "ko", "ri", "tu", "me", "sa", "lo", "ni", "pe", "du", "fa", "gi"]
    words = ["person", "cat", "dog", "car", "tree", "house", "sky", "grass", "boat", "table"]
    made = ("".join(parts) for parts in itertools.product(syllables, repeat=5))
    return [*words, *itertools.islice(made, WORDS - len(words))]


def _base(seed: int) -> pa.Table:
    """Return a shard's captions, nouns and tokens, which are slow to make and therefore reused."""
    rng = np.random.default_rng(seed)
    vocabulary = _words()
    captions, nouns, tokens = [], [], []
    for row, length in enumerate(rng.integers(1, 6, SHARD_ROWS)):
        caption, found, ids = [], {}, [SOS]
        for k, rank in enumerate(rng.zipf(1.3, length)):
            word = vocabulary[rank % WORDS]
            caption += [OTHERS[(row + k) % len(OTHERS)], word]
            found.setdefault(word, []).append({"start": len(ids) + 1, "end": len(ids) + 2})
            ids += [500 + k, 1000 + len(word)]
        captions.append(" ".join(caption))
        nouns.append([{"text": text, "spans": spans} for text, spans in found.items()])
        tokens.append([*ids, 3 + row, EOS])
    few = [None if len(found) > 1 else "too_few_nouns" for found in nouns]
    columns = {
        "caption": pa.array(captions),
        "caption_tokens": pa.array(tokens, schema.NOUNS.field("caption_tokens").type),
        "nouns": pa.array(nouns, schema.NOUNS.field("nouns").type),
        "rejected": pa.array(few, pa.string()),
    }
    return pa.table(columns)


def _shard(shard: int, base: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return a shard's pairs and nouns: the base's captions, made unique by the row number."""
    rng = np.random.default_rng(BASES + shard)
    count = base.num_rows
    numbers = pa.array((shard * SHARD_ROWS + np.arange(count)).astype(str))
    keys = pa.array(np.char.add(f"{shard:05d}", np.char.zfill(np.arange(count).astype(str), 4)))
    captions = pc.binary_join_element_wise(base["caption"], numbers, " ")
    hosts = pa.array(np.minimum(rng.zipf(1.2, count), 200_000).astype(str))
    urls = pc.binary_join_element_wise(
        "https://images", hosts, ".example.org/photos/2020/", numbers, ".jpg", ""
    )
    digest = rng.bytes(32 * count).hex()
    hashes = pa.array([digest[64 * row : 64 * row + 64] for row in range(count)])
    alive = pa.array(rng.random(count) < 0.7)
    sizes = {
        name: pa.array(rng.integers(200, 1600, count), pa.int32())
        for name in ("width", "height", "original_width", "original_height")
    }
    columns = {"status": pa.array(["success"] * count)} | sizes | {"sha256": hashes}
    columns["jpg"] = pa.array([b""] * count)
    columns = {
        name: pc.if_else(alive, column, pa.scalar(None, column.type))
        for name, column in columns.items()
    }
    columns |= {"key": keys, "url": urls, "caption": captions}
    columns["status"] = pc.fill_null(columns["status"], "failed")
    columns["error"] = pc.if_else(alive, pa.scalar(None, pa.string()), "http_404")
    pairs = pa.table([columns[name] for name in schema.PAIRS.names], schema=schema.PAIRS)
    nouns = base.set_column(0, "caption", captions).add_column(0, "key", keys)
    return pairs, nouns.cast(schema.NOUNS).filter(alive)


def _commit(
    storage: Storage, ledger: Ledger, stage: str, shard: int, table: pa.Table, made_from: str,
    rows: tuple[int, int], rejected: dict[str, int],
) -> str:  # fmt: skip
    name = f"{stage}/{shard:05d}.parquet"
    info = storage.write_atomic(name, lambda sink: pq.write_table(table, sink, compression="zstd"))
    ledger.commit(
        ShardRecord(
            stage,
            shard,
            made_from,
            "0",
            info.sha256,
            {name: asdict(info)},
            *rows,
            rejected,
            info.bytes,
            1.0,
            {"codeseg": "bench"},
        )
    )
    return info.sha256


def ask(root: Path, name: str) -> tuple[float, dict[str, object]]:
    """Return the seconds and figures of one check in a new audit."""
    with Audit(Storage.open(root), OPTIONS) as audit:
        finding = audit.check(name)
    assert "error" not in finding.figures, (name, finding.figures)
    return finding.seconds, finding.figures


def compare(root: Path, rows: int) -> bool:
    """Time each check and its pandas form on the same files; return whether all are fast."""
    print(f"{'check':22} {'ours s':>8} {'rows/s':>12} {'pandas s':>9} {'ratio':>7}")
    totals = np.zeros(2)
    slower = []
    for name, rendering in PandasAudit(root).checks().items():
        seconds, figures = ask(root, name)
        started = time.perf_counter()
        figure, value = rendering()
        times = np.array([seconds, time.perf_counter() - started])
        totals += times
        note = "" if figures[figure] == value else f"  {figure} {figures[figure]} ≠ {value}"
        print(_line(name, rows, *times) + note)
        if times[1] < times[0]:
            slower.append(name)
    print(_line("whole", rows, *totals))
    print(f"slower than pandas: {', '.join(slower) or 'none'}; target {TARGET:.0f}× in whole")
    return not slower and bool(totals[1] / totals[0] >= TARGET)


def _line(name: str, rows: int, ours: float, plain: float) -> str:
    return f"{name:22} {ours:8.2f} {rows / ours:12,.0f} {plain:9.2f} {plain / ours:6.1f}×"


def show_scale(root: Path, rows: int) -> None:
    """Run the whole audit at full size; print seconds, rows/s and the peak memory."""
    started, cpu_started = time.perf_counter(), time.process_time()
    with Audit(Storage.open(root), OPTIONS) as audit:
        print(f"{'inventory':22} {time.perf_counter() - started:8.2f} s")
        for name in check_names():
            cpu = time.process_time()
            finding = audit.check(name)
            cpu = time.process_time() - cpu
            assert "error" not in finding.figures, (name, finding.figures)
            if finding.verdict != "skip":
                print(
                    f"{name:22} {finding.seconds:8.2f} s {rows / finding.seconds:14,.0f} rows/s"
                    f"   CPU {cpu:7.2f} s"
                )
    total = time.perf_counter() - started
    print(f"CPU seconds in whole {time.process_time() - cpu_started:.1f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'whole':22} {total:8.2f} s {rows / total:14,.0f} rows/s; peak memory {peak:.2f} GiB")


def main() -> None:
    """Generate missing data, run the checks and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=12_400_000, help="0: skip the full size")
    parser.add_argument("--pandas-rows", type=int, default=1_000_000, help="0: skip pandas")
    parser.add_argument("--root", type=Path, help="keep the generated data here and reuse it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = options.root or Path(scratch)
        enough = True
        for rows, measure in ((options.rows, show_scale), (options.pandas_rows, compare)):
            root = base / str(rows)
            if rows and not root.exists():
                generate(root, rows)
            if rows:
                print(f"\n{rows:,} rows, {OPTIONS.threads} threads, {OPTIONS.memory} for DuckDB")
                enough = measure(root, rows) is not False and enough
    sys.exit(not enough)


if __name__ == "__main__":
    main()
