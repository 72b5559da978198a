"""Features and vocabulary: what is written is what the CLIP says, and nothing is lost."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bench.make_nouns import make_nouns, write_table
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import TEMPLATES, template_embeddings
from codeseg.pipeline import schema
from codeseg.pipeline.audit.database import Audit
from codeseg.pipeline.audit.questions import check_names
from codeseg.pipeline.audit.views import AuditOptions
from codeseg.pipeline.engine.cluster import Resources
from codeseg.pipeline.engine.ledger import Ledger, from_json
from codeseg.pipeline.engine.stage import FEATURES, VOCABULARY
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features import encoder
from codeseg.pipeline.features.encoder import FAULTS, Encoder, find_faults, to_int8
from codeseg.pipeline.features.plan import FeatureOptions, clip_facts, make_plan, resolve_settings
from codeseg.pipeline.features.vocabulary import VocabularyWorker
from codeseg.pipeline.features.worker import FeaturesWorker, cut, features_schema
from codeseg.pipeline.stream import views
from codeseg.pipeline.stream.batches import FeatureStream
from codeseg.pipeline.stream.feature_settings import FeatureSettings
from codeseg.pipeline.stream.order import hash_numbers
from codeseg.stages.features import run_features
from tests.helpers.feature_stage import run_stage

TINY = str(Path(__file__).parents[2] / "data" / "tiny_clip.json")
WISHES = {"clip": TINY, "pretrained": "random:0", "batch_size": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nouns")
    make_nouns(folder)
    return folder


@pytest.fixture
def root(tmp_path, source):
    """A fresh root that shares the pairs and nouns."""
    for name in ("pairs", "nouns"):
        (tmp_path / name).symlink_to(source / name)
        (tmp_path / "ledger").mkdir(exist_ok=True)
        (tmp_path / "ledger" / name).symlink_to(source / "ledger" / name)
    return tmp_path


def options(root: Path | str, **wishes) -> dict:
    storage = Storage.open(root)
    facts = clip_facts(WISHES["clip"], WISHES["pretrained"])
    settings = resolve_settings(FeatureOptions(**(WISHES | wishes)), facts)
    shards = sorted(Ledger(storage).records("nouns"))
    return {"features": settings, "device": "cpu", "threads": 1, "shards": shards}


def run(root: Path | str, **wishes) -> dict:
    """The whole stage without Ray; returns the settings."""
    return run_stage(root, options(root, **wishes))


def rows_of(root: Path) -> dict[str, dict]:
    rows = {}
    for path in sorted((root / "features").glob("*.arrow")):
        rows |= {row["key"]: row for row in pa.ipc.open_file(path).read_all().to_pylist()}
    return rows


def nouns_of(root: Path) -> dict[str, dict]:
    rows = {}
    for path in sorted((root / "nouns").glob("*.parquet")):
        rows |= {row["key"]: row for row in pq.read_table(path).to_pylist()}
    return rows


def test_every_trainable_pair_comes_out_once_in_order(root):
    run(root)
    expected = [key for key, row in nouns_of(root).items() if row["rejected"] is None]
    assert list(rows_of(root)) == expected
    for record in Ledger(Storage.open(root)).records("features").values():
        assert (record.rows_in, record.rows_out, record.rejected) == (10, 10, {})


def test_features_are_what_the_clip_says(root, source):
    """Pixels are the keyed view, tokens the trunk's output, states the text tower's, to EOS."""
    settings = run(root, views=2)
    clip = FrozenClip.load(TINY, "random:0")
    pairs = pq.read_table(source / "pairs/00000.parquet").to_pylist()
    jpgs = {pair["key"]: pair["jpg"] for pair in pairs}
    nouns = nouns_of(root)
    for key, row in list(rows_of(root).items())[:5]:
        pixels = np.array(row["pixels"], np.uint8).reshape(2, 64, 64, 3)
        for v in range(2):
            bits = hash_numbers(settings.seed, schema.text_hash(key), v)
            image = views.decode(jpgs[key])
            expected = views.view(image, bits, size=64, crop_scale=(0.9, 1.0), flip=True)
            assert (pixels[v] == expected).all()
        images = clip.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        tokens = np.array(row["image_tokens"], np.float16).reshape(2, 17, 64)
        error = np.abs(clip.trunk(images).detach().numpy() - tokens.astype(np.float32))
        assert error.max() < 5e-3
        assert row["caption_tokens"] == nouns[key]["caption_tokens"]
        states = clip.text_states(torch.tensor([row["caption_tokens"]]))[0].detach().numpy()
        stored = np.array(row["caption_states"], np.float32).reshape(states.shape)
        assert np.abs(states - stored).max() < 5e-3
        assert row["noun_ids"] == [schema.text_hash(noun["text"]) for noun in nouns[key]["nouns"]]
        assert [(s["noun"], s["start"], s["end"]) for s in row["spans"]] == [
            (i, span["start"], span["end"])
            for i, noun in enumerate(nouns[key]["nouns"])
            for span in noun["spans"]
        ]


def test_clip_score_is_what_open_clip_says_of_the_stored_view_and_the_caption(root):
    run(root, views=2)
    ours = FrozenClip.load(TINY, "random:0")
    for row in rows_of(root).values():
        pixels = torch.tensor(row["pixels"], dtype=torch.uint8).view(2, 64, 64, 3)[:1]
        tokens = torch.zeros(1, ours.context_length, dtype=torch.int64)
        tokens[0, : len(row["caption_tokens"])] = torch.tensor(row["caption_tokens"])
        with torch.no_grad():
            image = ours.clip.encode_image(ours.normalize(pixels.permute(0, 3, 1, 2)))
            text = ours.clip.encode_text(tokens)
        assert torch.cosine_similarity(image, text).item() == pytest.approx(
            row["clip_score"], abs=1e-3
        )
    assert "clip_score" not in features_schema(options(root, image_tokens="none")["features"]).names


def test_an_older_root_without_scores_reads_as_it_was_written(root):
    whole = options(root)["features"].to_json()
    later = ("clip_score", "by_picture")
    older = {name: value for name, value in whole.items() if name not in later}
    read = from_json(FeatureSettings, older)
    assert read.to_json() == older and read.fingerprint() == FEATURES.fingerprint(older)


REPEATS = {4: 2, 5: 2, 6: 3, 9: 3, 10: 2, 11: 8}  # row -> the row whose picture it has
DISTINCT = [2, 3, 7, 8]  # of the trainable rows


@pytest.fixture
def repeating(root, source):
    """The root's first shard, where one picture is of several rows, side by side and far apart."""
    for name in ("pairs", "ledger/pairs", "nouns", "ledger/nouns"):
        (root / name).unlink()
        (root / name).mkdir()
    pairs = pq.read_table(source / "pairs/00000.parquet").to_pylist()
    for i, pair in enumerate(pairs):
        pair["jpg"] = pairs[REPEATS.get(i, i)]["jpg"]
        pair["sha256"] = pair["jpg"] and hashlib.sha256(pair["jpg"]).hexdigest()
    write_table(Storage.open(root), "pairs", 0, pairs, schema.PAIRS, input="urls")
    nouns = pq.read_table(source / "nouns/00000.parquet").to_pylist()
    write_table(Storage.open(root), "nouns", 0, nouns, schema.NOUNS)
    return root


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_a_picture_of_several_rows_is_encoded_and_stored_once(repeating, monkeypatch, kind):
    encoded = []
    honest = Encoder.image_tokens
    monkeypatch.setattr(
        Encoder, "image_tokens", lambda self, p: encoded.extend(p.numpy()) or honest(self, p)
    )
    settings = run(repeating, views=2, image_tokens=kind, batch_size=3)
    rows = list(rows_of(repeating).values())
    assert [int(row["key"][5:]) for row in rows] == list(range(2, 12))
    assert len(encoded) == len(DISTINCT)
    path = repeating / FEATURES.path(0)
    pixels = 2 * 64 * 64 * 3
    for i, row in zip(range(2, 12), rows, strict=True):
        first = rows[REPEATS.get(i, i) - 2]
        tensors = ("pixels", "image_tokens", *(["image_scales"] if kind == "int8" else []))
        assert all(row[name] == first[name] for name in tensors)
        assert (row["clip_score"] == first["clip_score"]) == (row["key"] == first["key"])
        shown = np.array(row["pixels"], np.uint8).reshape(2, 64, 64, 3)
        assert (shown == encoded[DISTINCT.index(REPEATS.get(i, i))]).all()
    reader = pa.ipc.open_file(path)
    stored = [len(reader.get_batch(b)["pixels"].values) // pixels for b in range(4)]
    assert stored == [2, 3, 3, 1] and [reader.get_batch(b).num_rows for b in range(4)] == [
        3,
        3,
        3,
        1,
    ]
    stream = FeatureStream(repeating, batch_size=10)
    batch = next(iter(stream))
    for key, view in zip(batch.keys, batch.pixels_BCHW, strict=True):
        options = np.array(rows[int(key[5:]) - 2]["pixels"]).reshape(2, 64, 64, 3)
        assert any((view.permute(1, 2, 0).numpy() == option).all() for option in options)
    assert stream.settings == settings
    with Audit(Storage.open(repeating), AuditOptions()) as audit:
        checks = [n for n in check_names() if n.startswith(("feature", "keys", "ledger_schemas"))]
        found = {finding.check: finding.verdict for finding in map(audit.check, checks)}
    assert set(found.values()) == {"pass"} and len(found) > 5, found


def test_views_of_a_picture_do_not_depend_on_which_of_its_rows_have_nouns(repeating):
    run(repeating)
    before = rows_of(repeating)
    nouns = pq.read_table(repeating / "nouns/00000.parquet").to_pylist()
    nouns[1]["rejected"] = "no_nouns"  # of the row that names the picture
    write_table(Storage.open(repeating), "nouns", 0, nouns, schema.NOUNS)
    run(repeating)
    after = rows_of(repeating)
    assert len(after) == len(before) - 1
    assert all(after[key]["pixels"] == before[key]["pixels"] for key in after)


def test_all_rows_of_a_faulty_picture_are_rejected(repeating, monkeypatch):
    honest = Encoder.image_tokens

    def spoiled(self, pixels):
        tokens = honest(self, pixels).clone()
        if len(tokens) == 3:
            tokens[0] = torch.inf
        return tokens

    monkeypatch.setattr(Encoder, "image_tokens", spoiled)
    record = FeaturesWorker(str(repeating), options(repeating, batch_size=3)).process(0, "input")
    assert record.rejected == {"non_finite": 4}
    assert [int(key[5:]) for key in rows_of(repeating)] == [3, 6, 7, 8, 9, 11]


@pytest.mark.parametrize("nouns", [1, 4])
def test_a_nouns_embedding_does_not_depend_on_its_corpus(
    root, tmp_path_factory, monkeypatch, nouns
):
    monkeypatch.setitem(encoder.NOUNS, "cpu", nouns)  # as many at a time as on a GPU
    smaller = tmp_path_factory.mktemp("smaller")
    make_nouns(smaller, rows=4, seed=5)
    found = []
    for place in (root, smaller):
        run(place)
        table = pa.ipc.open_file(place / "vocabulary/nouns.arrow").read_all().to_pylist()
        found.append({noun["text"]: noun["knowledge_embedding"] for noun in table})
    whole, part = found
    assert 0 < len(part) < len(whole)
    assert part == {text: whole[text] for text in part}
    alone = Encoder(options(root)["features"], "cpu")
    ids = alone.clip.tokenizer.encode
    assert all(alone.knowledge([ids(text)])[0].tolist() == whole[text] for text in whole)
    with torch.no_grad():  # each by itself, as open_clip's tokenizer reads the sentences
        plain = template_embeddings(alone.clip, list(whole)).mean(1)
    assert (torch.tensor(list(whole.values())) - plain).abs().max() < 1e-6


def test_the_vocabulary_is_the_unnormalised_mean_over_templates(root):
    run(root)
    clip = FrozenClip.load(TINY, "random:0")
    counts: dict[str, int] = {}
    for row in nouns_of(root).values():
        for noun in row["nouns"] if row["rejected"] is None else []:
            counts[noun["text"]] = counts.get(noun["text"], 0) + 1
    rows = pa.ipc.open_file(root / VOCABULARY.path(0)).read_all().to_pylist()
    assert {row["text"]: row["count"] for row in rows} == counts
    assert [row["id"] for row in rows] == sorted(schema.text_hash(text) for text in counts)
    for row in rows[:3]:
        tokens = open_clip.tokenize([template.format(row["text"]) for template in TEMPLATES])
        with torch.no_grad():
            mean = clip.clip.encode_text(tokens, normalize=True).mean(dim=0)
        assert torch.allclose(torch.tensor(row["knowledge_embedding"]), mean, atol=1e-5)
        assert mean.norm() < 0.999
        assert row["noun_tokens"] == open_clip.SimpleTokenizer().encode(row["text"])


@pytest.mark.parametrize("kind", ["fp16", "int8", "none"])
def test_the_same_command_writes_the_same_bytes_and_the_stream_reads_them(root, kind):
    run(root, image_tokens=kind)
    paths = [root / VOCABULARY.path(0), *(root / FEATURES.path(shard) for shard in (0, 1))]
    first = [path.read_bytes() for path in paths]
    for path in [*paths, *(root / "ledger").glob("[fv]*/0*.json")]:
        path.unlink()
    run(root, image_tokens=kind)
    assert [path.read_bytes() for path in paths] == first
    batch = next(iter(FeatureStream(root, batch_size=8)))
    assert len(batch.keys) == 8
    assert batch.pixels_BCHW.shape == (8, 3, 64, 64)


def test_cached_tokens_are_the_trunk_of_the_recomputed_pixels(tmp_path, source):
    """With augmentation off, "none" and "fp16" give the trunk the same pixels."""
    still = {"least_crop": 1.0, "flip": False}
    batches = {}
    for kind in ("fp16", "int8", "none"):
        root = tmp_path / kind
        root.mkdir()
        for name in ("pairs", "nouns"):
            (root / name).symlink_to(source / name)
            (root / "ledger").mkdir(exist_ok=True)
            (root / "ledger" / name).symlink_to(source / "ledger" / name)
        run(root, image_tokens=kind, **still)
        batches[kind] = next(iter(FeatureStream(root, batch_size=12)))
    clip = FrozenClip.load(TINY, "random:0")
    pixels = batches["none"].pixels_BCHW
    assert torch.equal(pixels, batches["fp16"].pixels_BCHW)
    assert torch.equal(pixels, batches["int8"].pixels_BCHW)
    with torch.no_grad():
        trunk = clip.trunk(clip.normalize(pixels))
    assert (batches["fp16"].image_tokens_BPD.float() - trunk).abs().max() < 5e-3
    scale = batches["int8"].image_token_scale_BP[..., None]
    error = (batches["int8"].image_tokens_int8_BPD * scale - trunk).norm(dim=-1)
    assert (error / trunk.norm(dim=-1)).max() < 0.02


def test_broken_images_and_missing_ones_are_rejections(root, source):
    for name in ("pairs", "ledger/pairs", "ledger/nouns"):
        (root / name).unlink()
        (root / name).mkdir()
    storage = Storage.open(root)
    pairs = pq.read_table(source / "pairs/00000.parquet").to_pylist()
    pairs[3]["jpg"] = pairs[3]["jpg"][:400]
    pairs[5]["jpg"] = b"<html>"
    pairs[7]["jpg"] = None
    write_table(storage, "pairs", 0, pairs, schema.PAIRS, input="urls")
    nouns = pq.read_table(source / "nouns/00000.parquet").to_pylist()
    (root / "nouns").unlink()
    write_table(storage, "nouns", 0, nouns, schema.NOUNS)
    chosen = options(root, min_nouns=3)
    record = FeaturesWorker(str(root), chosen).process(0, "input")
    few = sum(1 for row in nouns if not row["rejected"] and len(row["nouns"]) < 3)
    broken = [i for i in (3, 5) if len(nouns[i - 1]["nouns"]) >= 3]
    assert record.rejected.get("too_few_nouns", 0) == few
    assert record.rejected.get("broken_image", 0) == len(broken)
    assert record.rows_in == record.rows_out + sum(record.rejected.values()) == 10
    record = FeaturesWorker(str(root), options(root)).process(0, "input")
    assert record.rejected == {"broken_image": 2, "no_image": 1}
    sizes = pa.ipc.open_file(root / FEATURES.path(0))
    assert [sizes.get_batch(i).num_rows for i in range(sizes.num_record_batches)] == [4, 3]


def test_non_finite_features_are_rejected_by_row(root, monkeypatch):
    chosen = options(root)
    worker = FeaturesWorker(str(root), chosen)
    honest = Encoder.image_tokens

    def spoiled(self, pixels):
        tokens = honest(self, pixels).clone()
        tokens[1, 0, 3, 5] = torch.inf
        if len(tokens) > 2:
            tokens[2, 0, 3] = 0
        return tokens

    monkeypatch.setattr(Encoder, "image_tokens", spoiled)
    record = worker.process(0, "input")
    assert record.rejected == {"non_finite": 3, "zero_norm": 2}
    monkeypatch.setattr(Encoder, "image_tokens", lambda self, p: honest(self, p) * torch.nan)
    with pytest.raises(FloatingPointError, match="fp32"):
        worker.process(1, "input")
    assert Ledger(Storage.open(root)).record("features", 1) is None


def test_a_faulty_row_alone_in_its_block_is_a_rejection(root, monkeypatch):
    worker = FeaturesWorker(str(root), options(root, batch_size=3))
    honest = Encoder.image_tokens
    monkeypatch.setattr(
        Encoder,
        "image_tokens",
        lambda self, p: honest(self, p) * (torch.nan if len(p) == 1 else 1),
    )
    record = worker.process(0, "input")
    assert (record.rows_out, record.rejected) == (9, {"non_finite": 1})


def test_a_corpus_without_nouns_gives_an_empty_vocabulary_that_can_grow(root):
    chosen = options(root)
    assert VocabularyWorker(str(root), chosen | {"shards": []}).process(0, "none").rows_out == 0
    assert VocabularyWorker(str(root), chosen).process(0, "input").rows_out > 0


def test_changed_settings_make_shards_stale_and_moved_weights_do_not(root):
    settings = run(root)
    storage = Storage.open(root)
    same = make_plan(storage, settings)
    assert same.features.pending == same.vocabulary.pending == []
    moved = replace(settings, clip=replace(settings.clip, pretrained="/elsewhere/weights.pt"))
    again = make_plan(storage, moved)
    assert again.features.pending == again.vocabulary.pending == []
    views2 = options(root, views=2)["features"]
    changed = make_plan(storage, views2)
    assert sorted(changed.features.stale) == [0, 1]
    assert changed.vocabulary.pending == []


def test_a_damaged_file_is_made_again(root):
    settings = run(root)
    path = root / FEATURES.path(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="codeseg features"):
        FeatureStream(root, batch_size=4)
    work = make_plan(Storage.open(root), settings)
    assert work.features.pending == [1]
    run(root)
    assert path.read_bytes() == whole
    FeatureStream(root, batch_size=4)


def test_known_nouns_are_not_embedded_again(root, monkeypatch):
    chosen = options(root)
    worker = VocabularyWorker(str(root), chosen)
    worker.process(0, "input")
    first = (root / VOCABULARY.path(0)).read_bytes()
    embedded = []
    honest = VocabularyWorker._embed
    monkeypatch.setattr(
        VocabularyWorker,
        "_embed",
        lambda self, texts: embedded.extend(texts) or honest(self, texts),
    )
    worker.process(0, "input")
    assert embedded == []
    assert (root / VOCABULARY.path(0)).read_bytes() == first
    VocabularyWorker(str(root), chosen | {"shards": [0]}).process(0, "input")
    other = options(root, precision="bf16")
    VocabularyWorker(str(root), other).process(0, "input")
    assert len(embedded) == 9


def test_other_weights_on_a_worker_are_refused(root):
    chosen = options(root)
    honest = chosen["features"]
    other = replace(honest.clip, weights_sha256="0" * 64)
    chosen["features"] = replace(honest, clip=other)
    with pytest.raises(ValueError, match="differ"):
        FeaturesWorker(str(root), chosen)


def test_no_nouns_or_stale_nouns_say_what_to_run(tmp_path):
    settings = options(tmp_path)["features"]
    storage = Storage.open(tmp_path)
    with pytest.raises(ValueError, match="codeseg nouns"):
        make_plan(storage, settings)
    make_nouns(tmp_path, shards=1)
    write_table(storage, "pairs", 0, [], schema.PAIRS, input="urls")
    with pytest.raises(ValueError, match="codeseg nouns"):
        make_plan(storage, settings)


def test_wrong_wishes_name_the_option():
    with pytest.raises(ValueError, match="--image-tokens"):
        FeatureOptions(image_tokens="fp8")
    with pytest.raises(ValueError, match="--precision"):
        FeatureOptions(precision="double")


# -- small functions ------------------------------------------------------------------------------


def test_int8_tokens_are_within_half_a_step():
    tokens = torch.randn(3, 5, 16) * torch.logspace(-3, 2, 5)[:, None]
    rounded, scale = to_int8(tokens)
    assert rounded.dtype == torch.int8
    error = (rounded * scale[..., None] - tokens).abs()
    assert (error <= scale[..., None] * 0.5001).all()
    assert to_int8(torch.zeros(1, 1, 4))[0].abs().sum() == 0


def test_faults_are_found_by_row():
    tokens = torch.ones(3, 2, 4, 8, dtype=torch.float16)
    tokens[0, 1, 2, 3] = torch.nan
    tokens[2, 0, 1] = 0
    assert [FAULTS[i] for i in find_faults(tokens)] == ["non_finite", "", "zero_norm"]


def test_a_caption_longer_than_the_context_keeps_eos_and_whole_nouns():
    nouns = [
        {"text": "cat", "spans": [{"start": 1, "end": 2}, {"start": 6, "end": 7}]},
        {"text": "dog", "spans": [{"start": 3, "end": 5}]},
    ]
    row = {"caption_tokens": [90, 1, 2, 3, 4, 5, 6, 91], "nouns": nouns}
    assert cut(row, 8) == row
    short = cut(row, 5)
    assert short["caption_tokens"] == [90, 1, 2, 3, 91]
    assert short["nouns"] == [{"text": "cat", "spans": [{"start": 1, "end": 2}]}]


def test_declared_columns_are_those_of_the_schemas():
    assert set(FeaturesWorker.READS["pairs"]) <= set(schema.PAIRS.names)
    assert set(FeaturesWorker.READS["nouns"]) <= set(schema.NOUNS.names)


# -- the command -----------------------------------------------------------------------------------


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = ["features", str(root), "--clip", TINY, "--pretrained", "random:0", *arguments]
    return subprocess.run(
        [sys.executable, "-m", "codeseg", *line], capture_output=True, text=True, timeout=500
    )


@pytest.mark.slow
def test_the_command_writes_what_the_workers_write_and_then_has_nothing_to_do(root, tmp_path):
    first = command(root)
    assert first.returncode == 0, first.stderr
    assert "20 pairs in 2 shards" in first.stdout
    assert "GB free" in first.stdout
    made = (root / FEATURES.path(1)).read_bytes()
    for path in (root / "ledger/features").glob("0*.json"):
        path.unlink()
    worker = FeaturesWorker(str(root), options(root, batch_size=64))
    worker.process(1, "input")
    assert (root / FEATURES.path(1)).read_bytes() == made
    worker.process(0, "input")
    run(root, batch_size=64)
    again = command(root)
    assert again.returncode == 0
    assert "0 shards done" in again.stdout


def test_wrong_use_is_one_line_and_exit_code_2(tmp_path):
    result = command(tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "codeseg nouns" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_disk_that_is_too_small_is_refused(root, monkeypatch):
    monkeypatch.setattr(Storage, "free_bytes", lambda self: 1000)
    wishes = FeatureOptions(**WISHES)
    with pytest.raises(ValueError, match="--force"):
        run_features(Storage.open(root), wishes, Resources(cpus=1))
    assert not (root / "features").exists()
