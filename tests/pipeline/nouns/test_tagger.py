"""Nouns: the real tagger on captions as people write them."""

import copy
from dataclasses import asdict, replace

import pyarrow.parquet as pq
import pytest

from codeseg.pipeline.download.pairs import write_pairs
from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.cluster import Resources
from codeseg.pipeline.engine.ledger import Ledger, ShardRecord
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.nouns.tagger import NounWorker, resolve_tagger
from codeseg.pipeline.schema import NOUNS, PAIRS
from codeseg.stages.nouns import run_nouns


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    return NounWorker(str(tmp_path_factory.mktemp("root")), asdict(resolve_tagger()))


def row(worker, caption):
    return worker.rows(["k"], [caption])[0]


def nouns(worker, caption):
    return [noun["text"] for noun in row(worker, caption)["nouns"]]


def test_nouns_are_distinct_in_order_and_lower_case(worker):
    assert nouns(worker, "A Dog chases the ball; the dog's owner is old") == [
        "dog",
        "ball",
        "owner",
    ]


def test_every_occurrence_of_a_noun_has_a_span(worker):
    found = row(worker, "a dog and another dog on the beach")
    spans = {noun["text"]: noun["spans"] for noun in found["nouns"]}
    assert spans["dog"] == [{"start": 2, "end": 3}, {"start": 5, "end": 6}]


def test_single_letters_and_markup_are_dropped(worker):
    text = "photo of <person> with a t-shirt, a <b>cake</b> with letter b, http://x.com/cat.jpg"
    found = nouns(worker, text)
    assert {"photo", "cake"} <= set(found)
    assert not {"person", "b", "t", "http://x.com/cat.jpg"} & set(found)


@pytest.mark.parametrize(
    ("caption", "some", "none"),
    [
        ("i <3 my dog and cat and horses > birds in the garden", "dog cat horses birds garden", ""),
        ("temperature < 5 degrees, dog and cat in snow, wind > 20", "dog cat snow wind", ""),
        ("dogs <and cats> in a garden", "dogs garden", ""),
        (
            '<img src="cat.jpg" alt=fox/> a dog<br/> in <!-- a bird --> snow',
            "dog snow",
            "cat fox bird",
        ),
        ("a d\u200bog and a c\u00adat on the sofa", "dog cat sofa", ""),
    ],
)
def test_only_what_is_markup_counts_as_markup(worker, caption, some, none):
    found = nouns(worker, caption)
    assert set(some.split()) <= set(found) and not set(none.split()) & set(found)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (None, "empty"),
        ("", "empty"),
        (" \n\t", "empty"),
        ("12 : 30 !!!", "not_text"),
        ("x" * 10_000, "not_text"),
        ("running quickly", "no_nouns"),
        ("a dog", "too_few_nouns"),
        ("a dog on the beach", None),
        ("كلب على الشاطئ مع كرة", None),
        ("a dog 😀😀 on the &quot;beach&quot;", None),
        ("a dog on the beach " * 600, None),
    ],
)
def test_rejections_have_their_reason(worker, caption, reason):
    found = row(worker, caption)
    if caption and caption.startswith("كلب"):  # English tags mean little here: any verdict will do
        assert found["rejected"] in (None, "no_nouns", "too_few_nouns")
    else:
        assert found["rejected"] == reason
    assert len(found["caption_tokens"]) <= 77


def test_equal_captions_are_tagged_once(worker, monkeypatch):
    seen = []
    tag = worker._tagger.nouns
    monkeypatch.setattr(
        worker._tagger, "nouns", lambda texts: tag(text for text in texts if not seen.append(text))
    )
    rows = worker.rows(["a", "b", "c"], ["A dog", "a  dog", "a cat"])
    assert len(seen) == 2
    assert rows[0] == {**rows[1], "key": "a"}


def test_a_missing_tagger_is_one_line_that_says_what_to_install():
    with pytest.raises(ValueError, match="no spaCy tagger 'xx_no_such' is installed: `pip install"):
        resolve_tagger("xx_no_such")


def test_another_tagger_makes_shards_stale(tmp_path):
    settings = resolve_tagger()
    assert settings.tagger_version and settings.tagset
    for change in ({"tagger_version": "0"}, {"tagset": "0"}, {"tagger": "x"}, {"min_nouns": 3}):
        assert replace(settings, **change).fingerprint() != settings.fingerprint()


def commit_pairs(root, captions):
    import pyarrow as pa

    failed = {"status": "failed", "error": "http_404"}
    rows = [
        {"key": f"00000{i:04d}", "caption": caption, "status": "success"}
        for i, caption in enumerate(captions)
    ]
    rows.insert(1, {"key": "000009999", "caption": "a failed picture", **failed})
    table = pa.Table.from_pylist([{**dict.fromkeys(PAIRS.names), **r} for r in rows], PAIRS)
    info = root.write_atomic("pairs/00000.parquet", lambda sink: write_pairs(table, sink))
    Ledger(root).commit(
        ShardRecord("pairs", 0, "i", "s", info.sha256, {}, len(rows), len(captions), {}, 1, 0.1, {})
    )


def test_the_stage_makes_a_row_per_successful_pair_and_a_rerun_does_nothing(ray_session, tmp_path):
    root = Storage.open(tmp_path)
    captions = ["a red house by the lake", "running", "a boat on the sea"]
    commit_pairs(root, captions)
    settings = resolve_tagger()
    report = run_nouns(root, settings, Resources(workers=1))
    assert report.failed == {}
    [record] = report.done
    assert (record.rows_in, record.rows_out, record.rejected) == (3, 2, {"no_nouns": 1})
    table = pq.read_table(tmp_path / "nouns/00000.parquet")
    assert table.schema.equals(NOUNS)
    assert table["caption"].to_pylist() == captions
    assert run_nouns(root, settings, Resources()).done == []
    commit_pairs(root, [*captions, "a kite"])
    todo = stage.state(root, stage.NOUNS, settings=settings.fingerprint())
    assert todo.stale == {0: "its input changed"}


def test_damaged_pairs_are_named_with_what_to_do(worker, tmp_path):
    root = Storage.open(tmp_path)
    root.write_atomic("pairs/00000.parquet", b"PAR1xx")
    broken = copy.copy(worker)
    broken._root = root
    with pytest.raises(ValueError, match=r"pairs/00000\.parquet is corrupt, delete it and run"):
        broken.process(0, "i")


def test_nouns_before_download_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="has no pairs yet: run codeseg download first"):
        run_nouns(Storage.open(tmp_path), resolve_tagger(), Resources())
