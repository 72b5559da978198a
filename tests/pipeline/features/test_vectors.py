"""The table of a self-supervised ViT's vectors: content, bytes, ledger and what is refused."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import timm
import torch

from bench.make_nouns import make_nouns
from codeseg.model.align.backbone import Backbone, head_vectors
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.regions.config import Grouping
from codeseg.model.regions.grouping import group_patches
from codeseg.pipeline import schema
from codeseg.pipeline.audit.database import Audit
from codeseg.pipeline.audit.questions import check_names
from codeseg.pipeline.audit.views import AuditOptions
from codeseg.pipeline.engine.cluster import Resources
from codeseg.pipeline.engine.ledger import Ledger, from_json
from codeseg.pipeline.engine.overview import read_overview
from codeseg.pipeline.engine.stage import STAGES, state
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features import plan
from codeseg.pipeline.features.worker import FeaturesWorker, features_schema
from codeseg.pipeline.stream import views
from codeseg.pipeline.stream.batches import FeatureStream
from codeseg.pipeline.stream.feature_settings import FeatureSettings
from codeseg.pipeline.stream.order import hash_numbers
from codeseg.stages.features import run_features
from tests.helpers.feature_stage import VIT, run_stage, save_vit

TINY = str(Path(__file__).parents[2] / "data" / "tiny_clip.json")
WIDTH, HEADS = 64, 2  # of VIT; 16-pixel patches
ASKED = {"clip": TINY, "pretrained": "random:0", "batch_size": 4, "views": 2}


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    return save_vit(tmp_path_factory.mktemp("vit") / "vit.pt")


@pytest.fixture
def root(tmp_path):
    make_nouns(tmp_path / "root")
    return tmp_path / "root"


def options(root, vit_file, threads=1, **changes):
    """The options of a worker, as the command gives them."""
    asked = plan.FeatureOptions(**(ASKED | {"backbone": VIT, "weights": vit_file} | changes))
    clip = plan.clip_facts(asked.clip, asked.pretrained)
    settings = plan.resolve_settings(asked, clip)
    shards = sorted(Ledger(Storage.open(root)).records("nouns"))
    return {"features": settings, "device": "cpu", "threads": threads, "shards": shards}


def run(root, vit_file, **changes):
    """The whole stage without Ray; returns the settings."""
    return run_stage(root, options(root, vit_file, **changes))


def rows_of(root, table=f"features-{VIT}"):
    paths = sorted((root / table).glob("*.arrow"))
    return [row for path in paths for row in pa.ipc.open_file(path).read_all().to_pylist()]


def jpgs_of(root):
    paths = sorted((root / "pairs").glob("*.parquet"))
    pairs = [row for path in paths for row in pa.parquet.read_table(path).to_pylist()]
    return {row["key"]: row["jpg"] for row in pairs}


def expected_views(settings, key, jpg):
    """Both views of a picture, at the size of the ViT's patches."""
    made = [
        views.view(views.decode(jpg), hash_numbers(settings.seed, schema.text_hash(key), v),
                   size=settings.view_size, crop_scale=(0.9, 1.0), flip=True)
        for v in range(2)
    ]  # fmt: skip
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def test_vectors_are_the_patches_pooled_by_the_attention_of_each_head_and_view(root, vit_file):
    settings = run(root, vit_file)
    assert settings.view_size == 16 * 4  # as many patches as the CLIP, of the ViT's size
    vit, clip = Backbone(VIT, vit_file), FrozenClip.load(TINY, "random:0")
    jpgs, rows = jpgs_of(root), rows_of(root)
    assert len(rows) == 20
    for row in rows[:5]:
        pixels = expected_views(settings, row["key"], jpgs[row["key"]])
        patches, logits = vit.attend(pixels, (4, 4))
        stored = np.array(row["vectors"], np.float32).reshape(2, HEADS, WIDTH)
        np.testing.assert_allclose(stored, head_vectors(patches, logits), atol=2e-4)
    nouns = {row["key"]: row for p in sorted((root / "nouns").glob("*"))
             for row in pa.parquet.read_table(p).to_pylist()}  # fmt: skip
    for row in rows:
        tokens = torch.tensor([nouns[row["key"]]["caption_tokens"]])
        with torch.no_grad():
            text = clip.project_text(clip.text_states(tokens))[0, -1]
        np.testing.assert_allclose(row["caption_embedding"], text, atol=5e-3)
        assert row["noun_ids"] == [schema.text_hash(n["text"]) for n in nouns[row["key"]]["nouns"]]


def test_vectors_of_regions_are_the_means_of_their_patches(root, vit_file):
    settings = run(root, vit_file, pool="regions", grid=6)
    vit, jpgs = Backbone(VIT, vit_file), jpgs_of(root)
    for row in rows_of(root, f"features-{VIT}-regions")[:5]:
        patches = vit(expected_views(settings, row["key"], jpgs[row["key"]]), (6, 6))
        stored = np.array(row["vectors"], np.float32).reshape(2, 16, WIDTH)
        for view in range(2):
            regions = group_patches(patches[view], (6, 6), Grouping()).ravel()
            means = [patches[view, regions == r].mean(0).numpy() for r in range(regions.max() + 1)]
            np.testing.assert_allclose(stored[view, : len(means)], means, atol=3e-3)
            assert not stored[view, len(means) :].any()


@pytest.mark.parametrize("pool", ["heads", "regions"])
def test_any_number_of_threads_and_any_order_of_shards_write_the_same_bytes(root, vit_file, pool):
    settings = run(root, vit_file, pool=pool)
    paths = [root / settings.stage.path(shard) for shard in (0, 1)]
    first = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    worker = FeaturesWorker(str(root), options(root, vit_file, threads=2, pool=pool))
    for shard in (1, 0):
        worker.process(shard, "input")
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] == first


def test_a_picture_of_several_rows_is_pooled_and_stored_once(root, vit_file):
    path = root / "pairs/00000.parquet"
    pairs = pa.parquet.read_table(path).to_pylist()
    for pair in pairs[2:]:
        pair |= {"jpg": pairs[2]["jpg"], "sha256": "same"}
    pa.parquet.write_table(pa.Table.from_pylist(pairs, schema=schema.PAIRS), path)
    worker = FeaturesWorker(str(root), options(root, vit_file))
    assert worker.process(0, "input").rows_out == 10
    reader = pa.ipc.open_file(root / f"features-{VIT}/00000.arrow")
    assert [len(reader.get_batch(b)["vectors"].values) for b in range(3)] == [2 * HEADS * WIDTH] * 3
    rows = rows_of(root)
    assert all(row["vectors"] == rows[0]["vectors"] for row in rows)
    assert len({tuple(row["caption_embedding"]) for row in rows}) > 1


def test_several_backbones_lie_beside_the_clips_features_and_each_other(root, vit_file, tmp_path):
    plain = plan.FeatureOptions(**ASKED)
    made = {"plain": run(root, None, backbone=None)}
    before = (root / "ledger/features/settings.json").read_bytes()
    bytes_before = (root / "features/00000.arrow").read_bytes()
    made["heads"] = run(root, vit_file)
    made["regions"] = run(root, vit_file, pool="regions")
    assert plain.backbone is None
    assert (root / "ledger/features/settings.json").read_bytes() == before
    assert b"backbone" not in before
    assert (root / "features/00000.arrow").read_bytes() == bytes_before
    storage = Storage.open(root)
    for settings in made.values():
        found = state(storage, settings.stage, settings=settings.fingerprint())
        assert found.current == [0, 1] and not found.stale
        assert FeatureSettings.read(storage, settings.stage) == settings
    tables = [view.stage for view in read_overview(storage)]
    assert tables == [*list(STAGES)[1:], f"features-{VIT}", f"features-{VIT}-regions"]
    assert all(len(view.current) == 2 for view in read_overview(storage)[-2:])
    with Audit(storage, AuditOptions(hashes=True)) as audit:
        checks = [name for name in check_names() if name.startswith("ledger")]
        found = {finding.check: finding for finding in map(audit.check, checks)}
        assert {f.verdict for f in found.values()} == {"pass"}, found
        assert f"features-{VIT} 2" in found["ledger_complete"].figures["shards"]
    Ledger(storage).retract(f"features-{VIT}", 1)
    (root / f"features-{VIT}-regions/00000.arrow").write_bytes(bytes_before)
    with Audit(storage, AuditOptions(hashes=True)) as audit:
        assert audit.check("ledger_complete").keys == [f"features-{VIT}/00001"]
        assert audit.check("ledger_schemas").keys[0].startswith(f"features-{VIT}-regions/00000")
        assert audit.check("ledger_files").verdict == "fail"
    shutil.rmtree(root / f"ledger/features-{VIT}")
    with Audit(storage, AuditOptions()) as audit:
        extra = f"features-{VIT}/00000.arrow: extra: not in the ledger"
        assert extra in audit.check("ledger_files").keys


def test_other_weights_of_the_name_make_the_table_stale_and_another_place_does_not(
    root, vit_file, tmp_path
):
    settings = run(root, vit_file)
    moved = replace(settings, backbone=replace(settings.backbone, weights="/elsewhere"))
    assert moved.fingerprint() == settings.fingerprint()
    assert features_schema(moved) == features_schema(settings)
    assert features_schema(moved).metadata == features_schema(settings).metadata
    torch.manual_seed(1)
    torch.save(timm.create_model(VIT, num_classes=0).state_dict(), tmp_path / "other.pt")
    other = options(root, str(tmp_path / "other.pt"))["features"]
    work = plan.make_plan(Storage.open(root), other)
    assert sorted(work.features.stale) == [0, 1] and not work.vocabulary.pending
    wrong = {**options(root, vit_file), "features": replace(
        settings, backbone=replace(settings.backbone, weights_sha256="0" * 64))}  # fmt: skip
    with pytest.raises(ValueError, match="weights of test_vit on this machine differ"):
        FeaturesWorker(str(root), wrong)


def test_patches_that_are_not_finite_reject_their_rows_only(root, vit_file, monkeypatch):
    honest = Backbone.forward

    def spoiled(self, pixels, grid):
        patches = honest(self, pixels, grid).clone()
        if len(patches) == 4:
            patches[1, 3, 5] = torch.nan
            patches[2, 7] = 0
        return patches

    monkeypatch.setattr(Backbone, "forward", spoiled)
    for pool in ("heads", "regions"):
        worker = FeaturesWorker(str(root), options(root, vit_file, pool=pool))
        assert worker.process(0, "input").rejected == {"non_finite": 2, "zero_norm": 2}


def test_settings_survive_json_and_name_their_columns(root, vit_file):
    settings = options(root, vit_file)["features"]
    assert from_json(FeatureSettings, json.loads(json.dumps(settings.to_json()))) == settings
    Ledger(Storage.open(root)).write_settings("features-other_vit", settings.to_json())
    with pytest.raises(ValueError, match=r"features-other_vit \(they are of features-test_vit\)"):
        FeatureSettings.read(Storage.open(root), STAGES["features"].__class__(
            "features-other_vit", "features --backbone other_vit", ""))  # fmt: skip


def test_the_stream_yields_the_stored_vectors_captions_and_nouns(root, vit_file):
    run(root, vit_file)
    rows = {row["key"]: row for row in rows_of(root)}
    stream = FeatureStream(root, table=f"features-{VIT}", batch_size=20)
    batch = next(iter(stream))
    assert sorted(batch.keys) == sorted(rows)
    assert batch.vectors_BVD.shape == (20, HEADS, WIDTH)
    seen = set()
    for key, vectors, caption in zip(batch.keys, batch.vectors_BVD, batch.captions_BC, strict=True):
        stored = np.array(rows[key]["vectors"], np.float16).reshape(2, HEADS, WIDTH)
        seen.add([np.array_equal(vectors, view) for view in stored].index(True))
        assert caption.tolist() == rows[key]["caption_embedding"]
    assert seen == {0, 1}
    assert batch.noun_index_N.shape == (40,) and batch.knowledge_UC.shape[1] == 64
    assert not batch.pixels_BCHW.numel() and batch.image_tokens_BPD is None


def test_too_few_nouns_are_refused_with_the_command_of_the_table(root, vit_file):
    run(root, vit_file)
    with pytest.raises(ValueError, match=rf"`codeseg features --backbone {VIT} .* --min-nouns 3`"):
        FeatureStream(root, table=f"features-{VIT}", batch_size=4, nouns_per_image=3)


def test_a_corrupt_vector_names_file_and_key(root, vit_file, monkeypatch):
    run(root, vit_file)
    path = root / f"features-{VIT}/00000.arrow"
    content = bytearray(path.read_bytes())
    vectors = np.array(rows_of(root)[0]["vectors"], np.float16).tobytes()
    place = content.find(vectors)
    content[place : place + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(content)
    message = r"features-test_vit/00000\.arrow: .* not finite; .* `codeseg features --backbone test"
    with pytest.raises(ValueError, match=message):
        for _, _batch in zip(range(8), FeatureStream(root, table=f"features-{VIT}", batch_size=4),
                             strict=False):  # fmt: skip
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vit_of_nowhere"}, "unknown ViT 'vit_of_nowhere'"),
        ({"weights": "nowhere.pt"}, "were not found in nowhere.pt"),
        ({"pool": "patches"}, "--pool is heads, regions, not 'patches'"),
        ({"backbone": None}, "--weights, --pool and --grid are options of --backbone"),
        ({"image_tokens": "int8"}, "--image-tokens has no effect with --backbone"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_in_one_line(root, vit_file, changes, message):
    asked = {**ASKED, "backbone": VIT, "weights": vit_file, **changes}
    with pytest.raises(ValueError, match=message) as refused:
        run_features(Storage.open(root), plan.FeatureOptions(**asked), Resources(cpus=1))
    assert "\n" not in str(refused.value)


def test_a_vit_whose_attention_cannot_be_read_is_refused_before_the_work(root, vit_file):
    timm.layers.set_fused_attn(False)
    try:
        with pytest.raises(ValueError, match="class token cannot be read: pool by regions"):
            options(root, vit_file)
        assert options(root, vit_file, pool="regions")["features"].backbone.vectors == 16
    finally:
        timm.layers.set_fused_attn(True)


def test_tables_that_share_the_vocabulary_need_the_same_clip_and_precision(root, vit_file):
    run(root, vit_file)
    with pytest.raises(ValueError, match=rf"features-{VIT} of .* in fp32, shares the vocab"):
        run(root, None, backbone=None, weights=None, precision="bf16")
    run(root, vit_file, precision="bf16")  # a table alone may change
    run(root, None, backbone=None, weights=None, precision="bf16")


@pytest.mark.slow
def test_the_command_makes_the_same_bytes_by_ray_as_a_worker_alone(root, vit_file, tmp_path):
    shutil.copytree(root, tmp_path / "alone")
    table = run(tmp_path / "alone", vit_file).stage.table
    words = ["features", root, "--clip", TINY, "--pretrained", "random:0", "--batch-size", 4,
             "--views", 2, "--backbone", VIT, "--weights", vit_file, "--workers", 2]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "codeseg", *map(str, words)],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"train {root} RUN --recipe align_dinov2b --set model.backbone={VIT}" in done.stdout
    for shard in ("00000", "00001"):
        made = [folder / table / f"{shard}.arrow" for folder in (root, tmp_path / "alone")]
        assert made[0].read_bytes() == made[1].read_bytes()


def test_size_and_time_are_said_before_and_too_small_a_disk_is_refused(
    root, vit_file, monkeypatch, capsys
):
    monkeypatch.setattr(Storage, "free_bytes", lambda self: 1000)
    asked = plan.FeatureOptions(**ASKED, backbone=VIT, weights=vit_file)
    with pytest.raises(ValueError, match="use another root, or --force"):
        run_features(Storage.open(root), asked, Resources(cpus=1))
    assert f"features-{VIT}: 20 pairs in 2 shards, about" in capsys.readouterr().out
    settings = run(root, vit_file)
    records = Ledger(Storage.open(root)).records(settings.stage.table).values()
    assert sum(r.bytes for r in records) / 20 == pytest.approx(plan.row_bytes(settings), rel=0.6)
