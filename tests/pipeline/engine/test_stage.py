"""stage: what status shows, a run does and the audit compares are one judgment."""

import json
from dataclasses import asdict
from hashlib import sha256
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeseg.pipeline.audit.inventory import take_inventory
from codeseg.pipeline.engine.ledger import Ledger, from_json
from codeseg.pipeline.engine.overview import read_overview
from codeseg.pipeline.engine.stage import (
    DAMAGED,
    FEATURES,
    NO_INPUT,
    REGIONS,
    STAGES,
    VOCABULARY,
    commit,
    state,
)
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.regions.settings import RegionSettings
from codeseg.pipeline.stream.feature_settings import FeatureSettings

SHARDS = 3
TODAY = {  # as the roots of the first releases have it; fingerprints computed by their code
    "clip": {
        "context_length": 77, "embed_dim": 64, "image_size": 64, "layers": 4, "model": "storybook",
        "patch_size": 8, "pretrained": "storybook", "text_width": 64, "weights_sha256": "ab" * 32,
        "width": 64,
    },
    "image_tokens": "fp16", "views": 2, "precision": "fp32", "block_rows": 64, "min_nouns": 2,
    "crop_scale": [0.9, 1.0], "flip": True, "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225], "seed": 0, "templates": 80,
}  # fmt: skip
FINGERPRINTS = ("9d05deec6c41c3d0", "a54795582f00c23a")  # of the features, of the vocabulary
REGIONS_FINGERPRINT = "af251dbe0f92a091"


def changed(stage, version):
    """Settings of a stage; another version, other settings."""
    if stage in (FEATURES, VOCABULARY):
        made = from_json(FeatureSettings, {**TODAY, "templates": version})
        return made.vocabulary() if stage is VOCABULARY else made.to_json()
    if stage is REGIONS:
        return asdict(RegionSettings(views=version))
    return {"fingerprint": str(version)} if stage.table != "urls" else {"list": version}


class Root:
    """A root whose stages are redone, changed and damaged as a test likes."""

    def __init__(self, folder):
        self.root = Storage.open(folder)
        self.versions = dict.fromkeys(STAGES, 1)
        self.content = 0
        for shard in range(SHARDS):
            self.redo("urls", shard)

    def settings(self, table):
        return changed(STAGES[table], self.versions[table])

    def plan(self, table):
        """As the command does it: with the fingerprint of its own settings."""
        stage = STAGES[table]
        return state(self.root, stage, settings=stage.fingerprint(self.settings(table)))

    def redo(self, table, shard):
        """One shard, as a run that is killed after it."""
        stage, todo = STAGES[table], self.plan(table)
        Ledger(self.root).write_settings(table, self.settings(table))
        shard = 0 if stage.whole else shard
        if table != "urls" and shard not in (todo.inputs or {}):
            return
        self.content += 1
        commit(
            self.root, stage, shard, (todo.inputs or {}).get(shard, "list"),
            stage.fingerprint(self.settings(table)),
            lambda sink: sink.write(str(self.content).encode()), rows_in=1, rejected={},
            start=0.0, versions={},
        )  # fmt: skip

    def finish(self, table):
        """A whole run."""
        for shard in self.plan(table).pending:
            self.redo(table, shard)

    def change(self, table, shard):
        self.versions[table] += 1
        self.redo(table, shard)

    def lose(self, table, shard):
        self.root.delete(STAGES[table].path(shard))

    def forget(self, table, shard):
        Ledger(self.root).retract(table, 0 if STAGES[table].whole else shard)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["redo", "finish", "finish", "change", "lose", "forget"]),
        st.sampled_from(list(STAGES)),
        st.integers(0, SHARDS - 1),
    ),
    max_size=25,
)


@given(STEPS)
@settings(deadline=None, max_examples=60)
@pytest.mark.slow
def test_status_says_what_a_run_would_do_after_anything(steps):
    with TemporaryDirectory() as folder:
        root = Root(folder)
        for step, table, shard in steps:
            getattr(root, step)(*([table] if step == "finish" else [table, shard]))
        shown = {view.stage: view for view in read_overview(root.root)}
        for table, view in shown.items():
            todo = root.plan(table)
            assert (view.current, view.stale) == (todo.current, todo.stale), table
            assert set(todo.pending) <= {*todo.missing, *todo.stale}
            assert not set(todo.pending) & set(todo.current)
        held = take_inventory(root.root).ledger.to_pylist()
        for row in held:
            inputs = root.plan(row["stage"]).inputs or {}
            assert row["expected_input"] == inputs.get(row["shard"])


def test_after_a_change_of_settings_the_redone_shards_are_current_and_the_others_stale(tmp_path):
    root = Root(tmp_path)
    for table in ("pairs", "nouns", "vocabulary", "features"):
        root.finish(table)
    root.change("features", 0)
    view = next(view for view in read_overview(root.root) if view.stage == "features")
    assert view.current == [0] and view.stale == dict.fromkeys([1, 2], "its settings changed")
    root.versions["features"] -= 1
    assert root.plan("features").pending == [0]


@pytest.mark.parametrize("table", ["nouns", "features", "regions"])
def test_a_shard_whose_input_is_gone_is_stale_but_no_run_can_do_it(tmp_path, table):
    root = Root(tmp_path)
    for name in STAGES:
        root.finish(name)
    root.forget(STAGES[table].inputs[0], 1)
    assert root.plan(table).stale == {1: NO_INPUT} and root.plan(table).pending == []
    root.lose(table, 2)
    assert root.plan(table).stale[2] == DAMAGED and root.plan(table).pending == [2]


def test_the_inputs_of_tars_are_known_from_the_settings(tmp_path):
    root = Storage.open(tmp_path)
    made = {"fingerprint": "s", "inputs": ["a", "b", "c"]}
    Ledger(root).write_settings("pairs", made)
    commit(root, STAGES["pairs"], 1, "b", "s", lambda sink: None, rows_in=0, rejected={},
           start=0.0, versions={})  # fmt: skip
    pairs = read_overview(root)[0]
    assert (pairs.shards, pairs.current, pairs.missing) == (3, [1], 2)


def test_the_settings_of_an_existing_root_keep_bytes_and_fingerprint():
    made = from_json(FeatureSettings, json.loads(json.dumps(TODAY)))
    assert made.to_json() == TODAY
    text = json.dumps(TODAY, sort_keys=True, separators=(",", ":")).replace(
        '"pretrained":"storybook",', ""
    )
    assert made.fingerprint() == sha256(text.encode()).hexdigest()[:16]
    assert (made.fingerprint(), made.vocabulary_fingerprint()) == FINGERPRINTS
    regions = RegionSettings(views=2, weights="/a/file", weights_sha256="cd" * 32)
    assert regions.fingerprint() == REGIONS_FINGERPRINT


@given(
    st.sampled_from(sorted(TODAY)),
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers(), max_size=3),
)
def test_features_settings_of_any_wrong_type_are_one_line(name, value):
    wrong = {**TODAY, name: value}
    try:
        assert from_json(FeatureSettings, wrong).to_json() == wrong
    except ValueError as error:
        assert "\n" not in str(error)
