"""The regions stage on a small features root: what it writes, reads again, and refuses."""

import itertools
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp
from PIL import Image

from bench.make_features import make_features
from codeseg.model.align.backbone import Backbone
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.regions.config import Grouping
from codeseg.model.regions.grouping import group_patches
from codeseg.model.regions.patch_features import clip_keys
from codeseg.pipeline import schema
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.stage import FEATURES, REGIONS
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.regions.settings import RegionSettings, read_feature_settings, weights_sha256
from codeseg.pipeline.regions.sheet import contact_sheet, first_pictures, mean_colors
from codeseg.pipeline.regions.worker import RegionsWorker
from codeseg.pipeline.stream.batches import FeatureStream
from codeseg.pipeline.stream.feature_table import Block
from codeseg.pipeline.stream.region_table import RegionTable, decode_map, encode_map

TINY = str(Path(__file__).parents[2] / "data" / "tiny_clip.json")
SETTINGS = RegionSettings(views=2, grouping=Grouping(regions=5, min_patches=2))


def tiny_clip_settings():
    clip = FrozenClip.load(TINY, "random:1")
    names = ("weights_sha256", "image_size", "patch_size", "width", "text_width", "embed_dim")
    names += ("layers", "context_length")
    return {
        "model": TINY,
        "pretrained": "random:1",
        **{name: getattr(clip, name) for name in names},
    }


def make_root(folder, image_tokens="fp16"):
    make_features(
        folder, shards=2, rows=5, block_rows=4, image_tokens=image_tokens, clip=tiny_clip_settings()
    )
    return Storage.open(folder)


def do_all(root, settings=SETTINGS):
    Ledger(root).write_settings("regions", asdict(settings))
    worker = RegionsWorker(root.uri, asdict(settings))
    features = Ledger(root).records("features")
    return [worker.process(shard, record.output) for shard, record in features.items()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = make_root(tmp_path_factory.mktemp("regions"))
    do_all(root)
    return root


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_map_survives_png(regions):
    np.testing.assert_array_equal(decode_map(encode_map(regions)), regions)


def test_map_of_vit_b16_is_compact():
    noise = np.random.default_rng(0).integers(0, 16, (14, 14), dtype=np.uint8)
    assert len(encode_map(noise)) < 300


def test_every_view_of_every_row_has_regions_in_the_features_order(root):
    for shard, rows in ((0, 5), (1, 6)):
        table = pq.read_table(root.local_path / REGIONS.path(shard))
        assert table.schema.equals(schema.REGIONS)
        keys = [f"{shard:05d}{row:04d}" for row in range(rows) for _ in range(2)]
        assert table.column("key").to_pylist() == keys
        assert table.column("view").to_pylist() == [0, 1] * rows
        maps = [decode_map(png) for png in table.column("regions").to_pylist()]
        assert all(m.shape == (4, 4) and m.dtype == np.uint8 and m.max() < 5 for m in maps)
        record = Ledger(root).record("regions", shard)
        assert record.rows_in == record.rows_out == table.num_rows
        assert record.input == Ledger(root).record("features", shard).output


def test_rerun_writes_identical_bytes(root, tmp_path):
    again = do_all(make_root(tmp_path))
    assert [r.output for r in again] == [r.output for r in Ledger(root).records("regions").values()]


def test_int8_tokens_give_regions_too(tmp_path):
    root = make_root(tmp_path, "int8")
    assert [record.rows_out for record in do_all(root)] == [10, 12]


def test_table_finds_the_map_of_a_key_and_view(root):
    table = pq.read_table(root.local_path / REGIONS.path(1)).to_pydict()
    regions = RegionTable(root)
    for row in (0, 5, 11):
        found = regions.regions(table["key"][row], table["view"][row])
        np.testing.assert_array_equal(found, decode_map(table["regions"][row]))
    with pytest.raises(ValueError, match="lacks view 2 of 000010000"):
        regions.regions("000010000", 2)


def test_regions_follow_the_features_of_their_own_view(root):
    """Grouping the stored tokens by hand gives the stored map."""
    features = read_feature_settings(root)
    clip = FrozenClip.load(TINY, "random:1")
    reader = pa.ipc.open_file(root.open_input(FEATURES.path(1)))
    block = Block(reader.get_batch(1), features)  # rows 4 and 5
    tokens = torch.from_numpy(block.image_tokens_KVPD[1, 1].astype(np.float32))
    with torch.no_grad():
        keys = clip_keys(clip, tokens[None])[0]
    expected = group_patches(keys, (4, 4), SETTINGS.grouping)
    np.testing.assert_array_equal(RegionTable(root).regions("000010005", 1), expected)


def test_clip_keys_are_the_last_blocks_keys():
    clip = FrozenClip.load(TINY, "random:1")
    tokens = torch.randn(2, 17, 64)
    attention = clip.last_block.attn
    normed = clip.last_block.ln_1(tokens)
    weight, bias = attention.in_proj_weight.chunk(3)[1], attention.in_proj_bias.chunk(3)[1]
    torch.testing.assert_close(clip_keys(clip, tokens), (normed @ weight.T + bias)[:, 1:])


def test_settings_fingerprint_tells_weights_apart_but_not_their_place():
    one = RegionSettings(weights="/a", weights_sha256="x")
    assert one.fingerprint() == replace(one, weights="/b").fingerprint()
    assert one.fingerprint() != replace(one, weights_sha256="y").fingerprint()
    assert one.fingerprint() != replace(one, grouping=Grouping(seed=1)).fingerprint()


def test_batches_carry_the_regions_of_the_view_they_chose(root):
    settings = read_feature_settings(root)
    pictures = {}
    for shard in (0, 1):
        reader = pa.ipc.open_file(root.open_input(FEATURES.path(shard)))
        for number in range(reader.num_record_batches):
            block = Block(reader.get_batch(number), settings)
            for row in range(block.rows):
                pictures[block.key(row)] = block.pixels_KVHWC[block.picture_R[row]].copy()
    table = RegionTable(root)
    stream = FeatureStream(root.uri, batch_size=3, regions=True, prefetch=0)
    seen = set()
    for batch in itertools.islice(stream, 6):
        for i, key in enumerate(batch.keys):
            pixels = batch.pixels_BCHW[i].permute(1, 2, 0).numpy()
            view = next(v for v in (0, 1) if np.array_equal(pictures[key][v], pixels))
            seen.add(view)
            expected = table.regions(key, view).ravel()
            np.testing.assert_array_equal(batch.regions_BQ[i].numpy(), expected)
    assert seen == {0, 1}


@pytest.mark.slow
def test_other_regions_are_other_data(root, tmp_path):
    """A run that resumes must notice that the regions changed."""
    other = make_root(tmp_path)
    do_all(other, replace(SETTINGS, grouping=Grouping(regions=2)))
    one, two = (FeatureStream(r.uri, batch_size=2, regions=True) for r in (root, other))
    assert one.fingerprint != two.fingerprint
    bare = FeatureStream(root.uri, batch_size=2)
    assert bare.fingerprint == FeatureStream(other.uri, batch_size=2).fingerprint


# -- self-supervised ViT ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("vit") / "vit.pt"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), file)
    return str(file)


def test_vit_patches_lie_on_the_clips_grid(vit_file):
    vit = Backbone("vit_tiny_patch16_224", vit_file)
    pixels = torch.randint(256, (2, 3, 40, 60), dtype=torch.uint8)
    assert vit(pixels, (4, 6)).shape == (2, 24, 192)


def test_regions_by_a_vit_from_a_file(vit_file, tmp_path):
    root = make_root(tmp_path)
    by_vit = replace(
        SETTINGS,
        group_by="vit_tiny_patch16_224",
        weights=vit_file,
        weights_sha256=weights_sha256(vit_file),
    )
    assert [record.rows_out for record in do_all(root, by_vit)] == [10, 12]


def test_regions_by_the_embedded_vit(tmp_path):
    root = make_root(tmp_path)
    assert [r.rows_out for r in do_all(root, replace(SETTINGS, group_by="storybook"))] == [10, 12]


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("vit_of_nowhere", None, "unknown ViT 'vit_of_nowhere': use storybook"),
        ("vit_tiny_patch16_224.augreg_in21k", None, "were not found on the hub"),
        ("vit_tiny_patch16_224", "BROKEN", "were not found in"),
        ("resnet18", "BROKEN", "no single grid of patch tokens"),
    ],
)
def test_vits_that_cannot_be_had_are_refused_in_one_line(name, weights, message, tmp_path):
    if weights:
        weights = str(tmp_path / "weights.pt")
        Path(weights).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=message) as refused:
        Backbone(name, weights)
    assert "\n" not in str(refused.value)


def test_missing_weights_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"no weights file nowhere\.pt"):
        weights_sha256("nowhere.pt")


# -- bad input --------------------------------------------------------------------------------


def test_features_that_are_not_finite_name_file_and_key(tmp_path):
    root = make_root(tmp_path)
    file = tmp_path / FEATURES.path(0)
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_file(source).read_all().to_pylist()
    table[3]["image_tokens"][16 * 64 + 5] = float("nan")
    schema = pa.ipc.open_file(root.open_input(FEATURES.path(0))).schema

    def write(sink):
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(pa.Table.from_pylist(table, schema=schema), max_chunksize=4)

    root.write_atomic(FEATURES.path(0), write)
    with pytest.raises(ValueError, match=r"00000\.arrow: 000000003: patch features hold NaN"):
        RegionsWorker(root.uri, asdict(SETTINGS)).process(0, "input")


def test_root_without_features_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run `codeseg features"):
        read_feature_settings(Storage.open(tmp_path))


def test_features_without_fixed_views_are_refused(tmp_path):
    root = make_root(tmp_path, "none")
    with pytest.raises(ValueError, match="stores no fixed views"):
        read_feature_settings(root)


def test_another_clip_than_the_features_is_refused(tmp_path):
    clip = {**tiny_clip_settings(), "weights_sha256": "0" * 64}
    make_features(tmp_path, shards=1, rows=2, clip=clip)
    with pytest.raises(ValueError, match="not those the features were made with"):
        RegionsWorker(str(tmp_path), asdict(SETTINGS))


def test_table_refuses_missing_and_stale_and_corrupt_regions(tmp_path):
    root = make_root(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no regions; run `codeseg regions"):
        RegionTable(root)
    _, last = do_all(root)
    ledger = Ledger(root)
    ledger.commit(replace(last, input="older"))
    with pytest.raises(
        ValueError, match=r"regions/00001\.parquet: its input changed; run `codeseg regions"
    ):
        RegionTable(root)
    ledger.retract("regions", 1)
    with pytest.raises(ValueError, match=r"regions/00001\.parquet: it is missing"):
        RegionTable(root)
    ledger.commit(last)
    file = tmp_path / REGIONS.path(1)
    size = file.stat().st_size
    file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"00001\.parquet: its file is gone or damaged"):
        RegionTable(root)
    file.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=r"00001\.parquet is corrupt"):
        RegionTable(root).regions("000010000", 0)


# -- the picture ------------------------------------------------------------------------------


def test_mean_colors_are_the_regions_means():
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    filled = mean_colors(pixels, np.array([[0, 1]], dtype=np.uint8))
    expected = pixels[:, :2].reshape(-1, 3).mean(0).round()
    np.testing.assert_array_equal(filled[:, :2], np.broadcast_to(expected, (4, 2, 3)))


def test_contact_sheet_shows_pictures_and_boundaries(root, tmp_path):
    pictures = first_pictures(root, 7)
    assert len(pictures) == 7
    contact_sheet(pictures).save(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (4 * 336 + 8, 2 * 168 + 8)
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    halves = np.array([[0, 1]], dtype=np.uint8)
    cell = np.asarray(contact_sheet([(black, halves)]))[8:168, 8:168]
    white = (cell == 255).all(axis=(0, 2))
    assert white[78:82].any()  # a line between the halves, all the way down
    assert not white[:78].any()
    assert not white[82:].any()
