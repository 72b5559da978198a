"""The trainer's stream: what it yields is a pure function, and bad input is one clear line."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.make_features import TINY_CLIP, make_features, noun_text, noun_tokens
from codeseg.pipeline import schema
from codeseg.pipeline.audit.selection import Chosen, write_selection
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord
from codeseg.pipeline.engine.stage import FEATURES
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.batches import FeatureStream, Position, StreamBatch
from codeseg.pipeline.stream.order import WINDOW_BLOCKS, MixedOrder, RowOrder, hash_numbers, uniform

KINDS = ["fp16", "int8", "none"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    make_features(folder)
    return folder


def take(stream: FeatureStream, count: int) -> list[StreamBatch]:
    return list(itertools.islice(iter(stream), count))


def assert_equal(ours: StreamBatch, theirs: StreamBatch) -> None:
    assert ours.keys == theirs.keys
    assert ours.position == theirs.position
    one, other = vars(ours.to("cpu")), vars(theirs.to("cpu"))
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def table(root: Path) -> dict[str, dict]:
    """All rows of the features, by key, read without the code under test."""
    rows = {}
    for path in sorted((root / "features").glob("*.arrow")):
        rows |= {row["key"]: row for row in pa.ipc.open_file(path).read_all().to_pylist()}
    return rows


# -- order -----------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3 * WINDOW_BLOCKS),
    seed=st.integers(0, 2**62),
    epoch=st.integers(0, 1000),
    data=st.data(),
)
def test_every_epoch_is_a_permutation_and_any_piece_of_it_is_the_same(sizes, seed, epoch, data):
    order = RowOrder(np.array(sizes), seed)
    everything = order.rows_at(epoch, 0, order.rows)
    assert sorted(everything) == list(range(order.rows))
    first = data.draw(st.integers(0, order.rows - 1))
    count = data.draw(st.integers(1, order.rows - first))
    again = RowOrder(np.array(sizes), seed).rows_at(epoch, first, count)
    assert again.tolist() == everything[first : first + count].tolist()


def test_the_order_mixes_rows_of_the_whole_table():
    rows = 40_000
    order = RowOrder(np.full(rows // 8, 8), seed=0)
    place = order.rows_at(0, 0, rows)
    expected = (rows - 1) / 2
    for piece in np.split(place, 40):  # 1,000 rows each: their mean is within 4 standard errors
        # rows come in blocks of 8, so the error of a mean is that of 125 draws at worst
        assert abs(piece.mean() - expected) < 4 * rows / np.sqrt(12 * 125)
    assert (np.abs(np.diff(place)) == 1).mean() < 0.01


def test_hashes_are_the_same_on_every_machine_and_uniform():
    assert hash_numbers(0).tolist() == [0xE220A8397B1DCDAF]  # SplitMix64's first number from seed 0
    assert hash_numbers(1, 2, np.arange(2)).tolist() == [16613338946343043936, 13264548337748323810]
    draws = uniform(hash_numbers(7, np.arange(100_000)))
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * 100_000)
    assert np.abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02


# -- the stream ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_together_are_the_single_process(tmp_path, kind):
    make_features(tmp_path, image_tokens=kind)
    whole = take(FeatureStream(tmp_path, batch_size=12, seed=5), 25)
    shares = [
        take(FeatureStream(tmp_path, batch_size=4, seed=5, rank=rank, world_size=3), 25)
        for rank in range(3)
    ]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert batch.keys == [key for part in parts for key in part.keys]
        assert {part.position for part in parts} == {batch.position}
        assert torch.equal(batch.pixels_BCHW, torch.cat([part.pixels_BCHW for part in parts]))
        first, second = ([part.noun_index_N.chunk(2)[j] for part in parts] for j in (0, 1))
        knowledge = [
            part.knowledge_UC[index]
            for chunk in (first, second)
            for part, index in zip(parts, chunk, strict=True)
        ]
        assert torch.equal(batch.knowledge_UC[batch.noun_index_N], torch.cat(knowledge))
        for row, (part, i) in enumerate((part, i) for part in parts for i in range(4)):
            length = int(part.caption_lengths_B[i])
            assert torch.equal(batch.labels_BL[row, :length], part.labels_BL[i, :length])


@pytest.mark.parametrize("ahead", [{"prefetch": 0}, {"prefetch": 5, "threads": 4}])
def test_threads_and_batches_made_ahead_change_nothing(root, ahead):
    expected = take(FeatureStream(root, batch_size=7), 40)
    for ours, theirs in zip(
        take(FeatureStream(root, batch_size=7, **ahead), 40), expected, strict=True
    ):
        assert_equal(ours, theirs)


def test_padded_batches_have_few_sizes_none_of_1_and_hold_the_same(root):
    batches = zip(
        take(FeatureStream(root, batch_size=3), 40),
        take(FeatureStream(root, batch_size=3, pad=True), 40),
        strict=True,
    )
    for plain, padded in batches:
        L, (U, longest) = plain.labels_BL.shape[1], plain.noun_tokens_UM.shape
        assert padded.caption_tokens_BL.shape[1] % 8 == 0
        assert padded.noun_tokens_UM.shape[0] % 8 == padded.noun_tokens_UM.shape[1] % 4 == 0
        for name in ("caption_tokens_BL", "labels_BL", "caption_states_BLT"):
            assert torch.equal(getattr(padded, name)[:, :L], getattr(plain, name))
        assert (padded.labels_BL[:, L:] == -1).all()
        assert torch.equal(padded.noun_tokens_UM[:U, :longest], plain.noun_tokens_UM)
        assert torch.equal(padded.knowledge_UC[:U], plain.knowledge_UC)
        assert torch.equal(padded.noun_index_N, plain.noun_index_N)


@pytest.mark.parametrize("done", [1, 12, 13, 14, 29])  # 123 rows: an epoch is 13 batches of 9
def test_resuming_at_a_position_goes_on_exactly(root, done):
    batches = take(FeatureStream(root, batch_size=9), 32)
    start = batches[done - 1].position
    for ours, theirs in zip(
        take(FeatureStream(root, batch_size=9, start=start), 32 - done), batches[done:], strict=True
    ):
        assert_equal(ours, theirs)


def test_an_epoch_has_each_row_at_most_once_and_drops_less_than_a_batch(root):
    stream = FeatureStream(root, batch_size=9)
    epochs = [[], []]
    for batch in take(stream, 26):
        epochs[batch.position.epoch] += batch.keys
    for keys in epochs:
        assert len(set(keys)) == len(keys) == 117 == stream.rows - stream.rows % 9
    assert epochs[0] != epochs[1]
    other = [
        key for batch in take(FeatureStream(root, batch_size=9, seed=1), 13) for key in batch.keys
    ]
    assert other != epochs[0]


def test_nouns_vary_over_epochs_and_are_chosen_evenly(root):
    chosen: dict[str, list] = {}
    for batch in take(FeatureStream(root, batch_size=41), 3 * 60):
        index_JB = batch.noun_index_N.view(2, -1)
        ids = batch.noun_tokens_UM[:, 0].tolist()
        for key, pair in zip(batch.keys, index_JB.T.tolist(), strict=True):
            assert pair[0] != pair[1]
            chosen.setdefault(key, []).append((ids[pair[0]], ids[pair[1]]))
    rows = table(root)
    four = [key for key in chosen if len(rows[key]["noun_ids"]) == 4]
    counts: dict[int, int] = {}
    for key in four:
        names = sorted({noun for pair in chosen[key] for noun in pair})
        assert len(names) == 4
        for pair in chosen[key]:
            counts[names.index(pair[0])] = counts.get(names.index(pair[0]), 0) + 1
    share = np.array(list(counts.values())) / sum(counts.values())
    assert np.abs(share - 0.25).max() < 0.03


# -- one batch -------------------------------------------------------------------------------------


def test_labels_follow_the_reference_rule(root):
    """METHOD §4: selected nouns' tokens 1..J, other nouns' 0, everything else −1."""
    rows = table(root)
    by_id = {schema.text_hash(noun_text(i)): noun_tokens(i) for i in range(30)}
    for batch in take(FeatureStream(root, batch_size=9), 13):
        B = len(batch.keys)
        for b, key in enumerate(batch.keys):
            row, length = rows[key], int(batch.caption_lengths_B[b])
            assert batch.caption_tokens_BL[b, :length].tolist() == row["caption_tokens"]
            assert not batch.caption_tokens_BL[b, length:].any()
            states = np.array(row["caption_states"], np.float16).reshape(length, -1)
            assert torch.equal(batch.caption_states_BLT[b, :length], torch.from_numpy(states))
            assert not batch.caption_states_BLT[b, length:].any()
            selected = []
            for j in (0, 1):
                u = int(batch.noun_index_N[j * B + b])
                selected.append(batch.noun_tokens_UM[u, : batch.noun_lengths_U[u]].tolist())
            expected = [-1] * batch.labels_BL.shape[1]
            for span in row["spans"]:
                noun = by_id[row["noun_ids"][span["noun"]]]
                label = selected.index(noun) + 1 if noun in selected else 0
                expected[span["start"] : span["end"]] = [label] * len(noun)
            assert batch.labels_BL[b].tolist() == expected


def test_nouns_are_distinct_in_order_of_first_occurrence_with_their_knowledge(root):
    vocabulary = pa.ipc.open_file(root / "vocabulary/nouns.arrow").read_all().to_pylist()
    by_tokens = {tuple(row["noun_tokens"]): row for row in vocabulary}
    (batch,) = take(FeatureStream(root, batch_size=40), 1)
    index = batch.noun_index_N.tolist()
    assert list(dict.fromkeys(index)) == list(range(len(batch.noun_tokens_UM)))
    for u, length in enumerate(batch.noun_lengths_U.tolist()):
        row = by_tokens[tuple(batch.noun_tokens_UM[u, :length].tolist())]
        assert not batch.noun_tokens_UM[u, length:].any()
        assert torch.equal(batch.knowledge_UC[u], torch.tensor(row["knowledge_embedding"]))


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_pixels_and_tokens_are_those_of_the_same_stored_view(tmp_path, kind):
    make_features(tmp_path, image_tokens=kind, views=3)
    rows, seen = table(tmp_path), set()
    for batch in take(FeatureStream(tmp_path, batch_size=9), 13):
        tokens = batch.image_tokens_BPD if kind == "fp16" else batch.image_tokens_int8_BPD
        for b, key in enumerate(batch.keys):
            row = rows[key]
            pixels = np.array(row["pixels"], np.uint8).reshape(3, 32, 32, 3).transpose(0, 3, 1, 2)
            (view,) = (v for v in range(3) if (pixels[v] == batch.pixels_BCHW[b].numpy()).all())
            seen.add(view)
            stored = np.array(row["image_tokens"], tokens.numpy().dtype).reshape(3, 17, 16)
            assert (stored[view] == tokens[b].numpy()).all()
            if kind == "int8":
                scales = np.array(row["image_scales"], np.float32).reshape(3, 17)
                assert (scales[view] == batch.image_token_scale_BP[b].numpy()).all()
    assert seen == {0, 1, 2}


def test_batch_holds_none_of_what_the_table_lacks(tmp_path):
    make_features(tmp_path, image_tokens="none")
    (batch,) = take(FeatureStream(tmp_path, batch_size=4), 1)
    assert batch.trunk_tokens() is None and batch.regions_BQ is None
    assert batch.to("cpu").pixels_BCHW.shape == (4, 3, 32, 32)


# -- bad input -------------------------------------------------------------------------------------


def make(tmp_path: Path, **options) -> Path:
    make_features(tmp_path, rows=20, **options)
    return tmp_path


def open_stream(root: Path, **options) -> FeatureStream:
    return FeatureStream(root, **({"batch_size": 4} | options))


def assert_one_line(error: BaseException, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_folder_without_features_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        open_stream(tmp_path)
    assert_one_line(caught.value, str(tmp_path), "codeseg features")


def test_a_missing_shard_is_named(tmp_path):
    (make(tmp_path) / "ledger/features/00001.json").unlink()
    with pytest.raises(ValueError) as caught:
        open_stream(tmp_path)
    assert_one_line(caught.value, "00001", "missing", "codeseg features")


def test_a_shard_older_than_its_nouns_is_named(tmp_path):
    record = make(tmp_path) / "ledger/nouns/00002.json"
    text = record.read_text()
    output = text.split('"output": "')[1][:64]
    record.write_text(text.replace(output, "f" * 64))
    with pytest.raises(ValueError) as caught:
        open_stream(tmp_path)
    assert_one_line(caught.value, "00002", "its input changed", "codeseg features")


def test_shards_of_another_clip_are_refused(tmp_path):
    settings_file = make(tmp_path) / "ledger/features/settings.json"
    settings_file.write_text(settings_file.read_text().replace('"tiny"', '"ViT-B-16"'))
    with pytest.raises(ValueError) as caught:
        open_stream(tmp_path)
    assert_one_line(caught.value, "00000", "its settings changed", "codeseg features")


def test_a_truncated_file_is_named_and_skipped_only_when_asked(tmp_path):
    path = make(tmp_path) / FEATURES.path(1)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError) as caught:
        open_stream(tmp_path)
    assert_one_line(caught.value, str(path), "gone or damaged", "codeseg features")
    stream = open_stream(tmp_path, skip_corrupt=True)
    assert stream.rows == 20 + 22
    assert list(stream.skipped) == ["00001"]
    assert not {key[:5] for batch in take(stream, 20) for key in batch.keys} & {"00001"}


def test_a_file_damaged_inside_is_named_while_streaming(tmp_path):
    path = make(tmp_path, shards=1) / FEATURES.path(0)
    data = bytearray(path.read_bytes())
    middle = data.index(b"\xff\xff\xff\xff", 4000)  # a message's start
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        take(open_stream(tmp_path), 5)
    assert_one_line(caught.value, str(path), "corrupt", "codeseg features")


def test_non_finite_features_name_file_and_key(tmp_path):
    path = make(tmp_path, shards=1) / FEATURES.path(0)
    batch = pa.ipc.open_file(path).get_batch(0)
    value = batch.column("image_tokens").values.to_numpy()[5:9].tobytes()
    data = path.read_bytes()
    nan = np.full(4, np.nan, np.float16).tobytes()
    path.write_bytes(data.replace(value, nan))
    with pytest.raises(ValueError) as caught:
        take(open_stream(tmp_path), 5)
    assert_one_line(caught.value, str(path), "000000000", "not finite", "codeseg features")


def test_an_empty_vocabulary_and_a_stale_one_are_refused(tmp_path):
    make_features(tmp_path / "stale", rows=20)
    record = tmp_path / "stale/ledger/vocabulary/00000.json"
    record.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        open_stream(tmp_path / "stale")
    assert_one_line(caught.value, "vocabulary/nouns.arrow", "codeseg features")
    make_features(tmp_path / "other", rows=20, vocabulary=10)
    source, target = (tmp_path / name / "vocabulary/nouns.arrow" for name in ("other", "stale"))
    target.write_bytes(source.read_bytes())
    (tmp_path / "other/ledger/vocabulary/00000.json").rename(record)
    with pytest.raises(ValueError) as caught:
        take(open_stream(tmp_path / "stale"), 5)
    assert_one_line(caught.value, "lacks nouns", "codeseg features")


def test_more_images_or_nouns_than_there_are_is_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError) as caught:
        open_stream(tmp_path, batch_size=40, world_size=2)
    assert_one_line(caught.value, "63", "80")
    with pytest.raises(ValueError) as caught:
        open_stream(tmp_path, nouns_per_image=3)
    assert_one_line(caught.value, "--min-nouns 3")


def test_features_alone_without_the_other_tables_are_enough(tmp_path):
    make(tmp_path)
    for stage in ("pairs", "nouns"):
        for record in (tmp_path / "ledger" / stage).glob("*.json"):
            record.unlink()
    assert len(take(open_stream(tmp_path), 3)) == 3


def test_a_start_past_the_end_goes_on_with_the_next_epoch(root):
    (batch,) = take(FeatureStream(root, batch_size=9, start=Position(0, 120)), 1)
    assert batch.position == Position(1, 9)
    assert batch.pixels_BCHW.shape[-1] == TINY_CLIP["image_size"]


# -- selections ------------------------------------------------------------------------------------


def select(root: Path, name: str, keep: dict[int, list[int]]) -> None:
    records = features_of(root)
    chosen = Chosen({shard: keep.get(shard, []) for shard in records})
    write_selection(Storage.open(root), name, chosen, "SELECT …", records)


def features_of(root: Path) -> dict[int, ShardRecord]:
    return Ledger(Storage.open(root)).records("features")


def stored_keys(root: Path, shard: int) -> list[str]:
    return pa.ipc.open_file(root / FEATURES.path(shard)).read_all()["key"].to_pylist()


def test_an_epoch_of_a_selection_is_exactly_its_rows(root):
    keep = {0: [0, 3, 4, 11], 1: list(range(5, 20))}
    select(root, "some", keep)
    wanted = sorted(stored_keys(root, shard)[row] for shard, rows in keep.items() for row in rows)
    stream = FeatureStream(root, batch_size=1, selection="some")
    assert stream.rows == len(wanted)
    assert sorted(key for batch in take(stream, len(wanted)) for key in batch.keys) == wanted
    whole = FeatureStream(root, batch_size=1)
    assert stream.fingerprint != whole.fingerprint


def test_a_selection_of_everything_changes_no_batch(root):
    select(root, "all", {i: list(range(r.rows_out)) for i, r in features_of(root).items()})
    streams = FeatureStream(root, batch_size=4), FeatureStream(root, batch_size=4, selection="all")
    for ours, theirs in zip(*(take(stream, 5) for stream in streams), strict=True):
        assert_equal(ours, theirs)


# -- several roots ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two roots with nouns in common: 123 and 65 rows."""
    folder = tmp_path_factory.mktemp("roots")
    make_features(folder / "one", seed=1)
    make_features(folder / "two", shards=2, rows=32, vocabulary=45, seed=2)
    return [folder / "one", folder / "two"]


def test_an_epoch_of_two_roots_is_every_row_of_both_once(roots):
    stream = FeatureStream(roots, batch_size=4)
    keys = [key for batch in take(stream, stream.rows // 4) for key in batch.keys]
    assert stream.rows == 188 and len(set(keys)) == len(keys) == 188
    assert {key[:2] for key in keys} == {"0:", "1:"}


@pytest.mark.parametrize("weights", [None, (0.7, 0.3)])
def test_two_roots_are_the_same_on_any_ranks_threads_and_from_any_start(roots, weights):
    given = {"weights": weights, "seed": 3}
    whole = take(FeatureStream(roots, batch_size=12, **given), 40)
    parts = [
        take(FeatureStream(roots, batch_size=4, rank=rank, world_size=3, threads=3, **given), 40)
        for rank in range(3)
    ]
    for batch, *ranks in zip(whole, *parts, strict=True):
        assert batch.keys == [key for part in ranks for key in part.keys]
    later = take(FeatureStream(roots, batch_size=12, start=whole[9].position, **given), 30)
    for ours, theirs in zip(later, whole[10:], strict=True):
        assert_equal(ours, theirs)


def test_each_root_has_its_share_and_shows_all_its_rows_before_any_again(roots):
    stream = FeatureStream(roots, batch_size=10, weights=(0.25, 0.75))
    keys = [key for batch in take(stream, 18 * 12) for key in batch.keys]
    one = [key for key in keys if key.startswith("0:")]
    assert abs(len(one) / len(keys) - 0.25) < 0.02
    seen = [key for key in keys if key.startswith("1:")]
    assert len(set(seen[:65])) > 60  # what is dropped at an epoch's end may be missing


@settings(max_examples=60)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=40), min_size=2, max_size=4),
    data=st.data(),
)
def test_any_piece_of_a_mixed_order_is_the_same_and_each_table_is_a_permutation(sizes, data):
    weights = [data.draw(st.floats(0.05, 1)) for _ in sizes]
    order = MixedOrder([np.array(s) for s in sizes], weights, seed=7)
    count = data.draw(st.integers(1, 400))
    whole = order.rows_at(0, 0, order.rows)
    first = data.draw(st.integers(0, order.rows - 1))
    piece = min(count, order.rows - first)
    assert (order.rows_at(0, first, piece) == whole[first : first + piece]).all()
    starts = np.cumsum([0, *(sum(s) for s in sizes)])
    for table, rows in enumerate(map(sum, sizes)):
        mine = whole[(whole >= starts[table]) & (whole < starts[table + 1])]
        assert len(set(mine[:rows].tolist())) == len(mine[:rows])


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (1.0, 1e-9)])
def test_weights_that_do_not_do_are_refused(roots, weights):
    with pytest.raises(ValueError, match="weight"):
        FeatureStream(roots, batch_size=4, weights=weights)


def test_roots_of_different_kinds_are_refused_with_the_difference(roots, tmp_path):
    make_features(tmp_path, views=3)
    with pytest.raises(ValueError, match="differ in views 2 and 3"):
        FeatureStream([roots[0], tmp_path], batch_size=4)
