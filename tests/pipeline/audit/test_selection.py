"""A selection keeps what its SQL says, names rows of the features, and goes stale with them."""

import dataclasses

import pytest
from typer.testing import CliRunner

from codeseg.pipeline.audit.database import Audit
from codeseg.pipeline.audit.selection import Condition, choose
from codeseg.pipeline.audit.views import AuditOptions
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.selection import read_selection
from codeseg.stages.cli import app
from tests.helpers.audit_data import make_root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("sound") / "root")


def chosen(root, **condition):
    with Audit(Storage.open(root), AuditOptions()) as audit:
        return choose(audit, Condition(**condition), [0, 1, 2, 3]), audit_keys(root)


def audit_keys(root):
    """Keys of the features shards, in the order of their files."""
    with Audit(Storage.open(root), AuditOptions()) as audit:
        rows = audit.query("SELECT key, tokens FROM trainable ORDER BY key").to_pylist()
    return [row["key"] for row in rows], {row["key"]: row["tokens"] for row in rows}


def keys_of(found, keys):
    by_shard = {shard: [k for k in keys if int(k[:5]) == shard] for shard in found.rows}
    return [by_shard[shard][row] for shard, rows in found.rows.items() for row in rows]


def test_a_condition_keeps_exactly_the_rows_that_fit_it(root):
    found, (keys, tokens) = chosen(root, where="tokens <= 12")
    assert keys_of(found, keys) == [key for key in keys if tokens[key] <= 12]
    assert found.after["pairs"] == len(keys_of(found, keys)) < found.before["pairs"] == len(keys)
    assert found.after["nouns"] <= found.before["nouns"]


def test_a_condition_may_ask_any_view(root):
    rare = "key IN (SELECT key FROM (SELECT key, unnest(nouns) AS noun FROM trainable) " \
        "WHERE noun IN (SELECT text FROM noun_counts WHERE captions < 14))"  # fmt: skip
    found, (keys, _) = chosen(root, where=rare)
    assert 0 < found.after["pairs"] < len(keys)


def test_the_top_share_has_the_highest_values(root):
    found, (keys, tokens) = chosen(root, top=("tokens", 0.25))
    kept = set(keys_of(found, keys))
    assert len(kept) == -(-len(keys) // 4)
    assert min(tokens[k] for k in kept) >= max(tokens[k] for k in keys if k not in kept)


def test_a_sample_is_the_same_again_and_another_with_another_seed(root):
    once, again, other = (chosen(root, sample=0.5, seed=seed)[0].rows for seed in (0, 0, 1))
    assert once == again != other
    assert 0.3 < sum(map(len, once.values())) / len(audit_keys(root)[0]) < 0.7


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--where", "tokens < 0"], "no trainable pair fits"),
        (["--where", "nosuch > 1"], "nosuch"),
        (["--where", "true); DROP VIEW pairs; SELECT (true"], "syntax error"),
        (["--sample", "0"], "above 0 and at most 1"),
        (["--top", "tokens", "1.5"], "above 0 and at most 1"),
    ],
)
def test_a_condition_that_does_not_do_is_refused_and_writes_nothing(root, words, line):
    result = CliRunner().invoke(app, ["select", str(root), "refused", *words])
    assert isinstance(result.exception, ValueError) and line in str(result.exception)
    assert not (root / "selections" / "refused.arrow").exists()


def test_a_name_cannot_leave_the_folder(root):
    result = CliRunner().invoke(app, ["select", str(root), "../elsewhere"])
    assert isinstance(result.exception, ValueError) and "'../elsewhere'" in str(result.exception)


def test_the_command_writes_what_the_trainer_reads_until_a_shard_is_redone(root):
    result = CliRunner().invoke(app, ["select", str(root), "short", "--where", "tokens <= 12"])
    assert result.exit_code == 0, result.output
    assert "train.selection=short" in result.output and "class names" in result.output
    storage, found = Storage.open(root), chosen(root, where="tokens <= 12")[0]
    features = Ledger(storage).records("features")
    selection = read_selection(storage, "short", features)
    assert {shard: rows.tolist() for shard, rows in selection.rows.items()} == found.rows
    assert "tokens <= 12" in selection.sql
    redone = {**features, 1: dataclasses.replace(features[1], output="other")}
    with pytest.raises(ValueError, match="older than the features"):
        read_selection(storage, "short", redone)
    with pytest.raises(FileNotFoundError, match=r"there are: short"):
        read_selection(storage, "long", features)
    (root / "selections" / "short.arrow").write_bytes(b"ARROW1\0\0 cut")
    with pytest.raises(ValueError, match="is damaged"):
        read_selection(storage, "short", features)
