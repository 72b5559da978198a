"""Folders of pictures and Parquet files with pictures, as datasets on the hub lay them out."""

import io
import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codeseg.pipeline.download.folders import PictureFolder, PictureParquet
from codeseg.pipeline.download.pairs import DownloadSettings
from codeseg.pipeline.download.ready import ReadyWorker


def picture(colour, form="JPEG", side=48):
    content = io.BytesIO()
    Image.new("RGB", (side, side), (colour, 30, 30)).save(content, form)
    return content.getvalue()


def rows_of(source, root, **changes):
    settings = asdict(DownloadSettings(**{"shard_size": 10, **changes}))
    worker = ReadyWorker(str(root), {"source": source, "download": settings})
    for shard, made_from in source.inputs.items():
        worker.process(shard, made_from)
    return [
        row
        for shard in source.inputs
        for row in pq.read_table(root / f"pairs/{shard:05d}.parquet").to_pylist()
    ]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    (place / "deep").mkdir(parents=True)
    (place / "a.jpg").write_bytes(picture(10))
    (place / "a.txt").write_text("a red field")
    (place / "b.PNG").write_bytes(picture(20, "PNG"))
    (place / "b.json").write_text(json.dumps({"captions": ["one", "two"], "url": "http://x/b"}))
    (place / "deep" / "c.jpg").write_bytes(picture(30))
    (place / "deep" / "d.jpg").write_bytes(b"broken")
    (place / "deep" / "d.txt").write_text("broken")
    (place / ".hidden.jpg").write_bytes(picture(40))
    return place


def test_captions_beside_pictures_give_a_row_each_and_every_picture_counts(folder, tmp_path):
    rows = rows_of(PictureFolder(str(folder), 10), tmp_path / "root")
    assert [(r["caption"], r["error"]) for r in rows] == [
        ("a red field", None), ("one", None), ("two", None), (None, None),
        ("broken", "not_an_image"),
    ]  # fmt: skip
    assert rows[1]["jpg"] == rows[2]["jpg"] and rows[1]["url"] == "http://x/b"
    assert rows[0]["url"].endswith("pictures#a.jpg")


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_metadata_file_names_the_captions(folder, tmp_path, form):
    lines = [("a.jpg", "first"), ("deep/c.jpg", "third"), ("a.jpg", "again")]
    if form == "jsonl":
        text = "".join(json.dumps({"file_name": f, "text": t}) + "\n" for f, t in lines)
    else:
        text = "file_name,text\n" + "".join(f"{f},{t}\n" for f, t in lines)
    (folder / f"metadata.{form}").write_text(text)
    rows = rows_of(PictureFolder(str(folder), 10), tmp_path / "root")
    captions = {}
    for row in rows:
        captions.setdefault(row["url"].rpartition("#")[2], []).append(row["caption"])
    assert captions["a.jpg"] == ["first", "again"] and captions["deep/c.jpg"] == ["third"]


@pytest.mark.parametrize("word", ["7", "2020-01-01", "true", "NA", "caf\ufffd", "a\u2028b", ""])
def test_a_caption_that_looks_like_something_else_is_a_caption(folder, word):
    raw = word.encode().replace(b"\xef\xbf\xbd", b"\xe9")  # one letter that is not UTF-8
    line = b'{"file_name": "a.jpg", "text": "%b"}\n\n'
    for name, text in (
        ("metadata.jsonl", b"\xef\xbb\xbf" + line % raw),
        ("metadata.csv", b"\xef\xbb\xbffile_name,text\r\na.jpg,%b\r\n" % raw),
    ):
        (folder / name).write_bytes(text)
        samples = PictureFolder(str(folder), 10).samples(0, 1 << 20, len, 10)
        assert samples[0].captions == [word], name
        (folder / name).unlink()


@pytest.mark.parametrize("text", ['a.jpg,"x\nb.jpg,y\n', 'a.jpg,"x\nb.jpg,"y"\n', "a.jpg,x,y\n",
                                  "a.jpg\n"])  # fmt: skip
def test_a_row_of_metadata_that_is_none_is_named(folder, text):
    (folder / "metadata.csv").write_text(f"file_name,text\nc.jpg,z\n{text}")
    with pytest.raises(ValueError, match=r"metadata.csv, after row 1: "):
        PictureFolder(str(folder), 10)
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "x"}\n["a.jpg"]\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl, after row 1: not a JSON object"):
        PictureFolder(str(folder), 10)


def test_a_new_picture_behind_all_others_leaves_full_shards_current(folder):
    before = PictureFolder(str(folder), 2).inputs
    (folder / "zz.jpg").write_bytes(picture(50))
    after = PictureFolder(str(folder), 2).inputs
    assert len(before) == 2 and len(after) == 3
    assert [before[0], before[1]] == [after[0], after[1]]
    (folder / "a.txt").write_text("another caption")
    assert PictureFolder(str(folder), 2).inputs[0] != before[0]


def test_what_is_no_folder_of_pictures_is_one_line(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        PictureFolder(str(tmp_path / "nothing"), 10)
    (folder / "metadata.csv").write_text("file,words\na.jpg,x\n")
    with pytest.raises(ValueError, match="has no columns file_name and caption"):
        PictureFolder(str(folder), 10)


def write_parquet(place, rows, **columns):
    place.mkdir(exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), *columns.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema), place / "train-0.parquet")


def test_parquet_with_pictures_becomes_pairs(tmp_path):
    rows = [
        {"image": {"bytes": picture(10), "path": "x.jpg"}, "caption": ["one", "two"]},
        {"image": {"bytes": None, "path": "y.jpg"}, "caption": ["gone"]},
        {"image": None, "caption": None},
        {"image": {"bytes": picture(20, side=8), "path": None}, "caption": ["small"]},
    ]
    write_parquet(tmp_path / "have", rows, caption=pa.list_(pa.string()))
    found = rows_of(PictureParquet(str(tmp_path / "have")), tmp_path / "root")
    assert [(r["caption"], r["error"]) for r in found] == [
        ("one", None), ("two", None), ("gone", "no_image"), (None, "no_image"),
        ("small", "too_small"),
    ]  # fmt: skip
    assert found[0]["url"] == "train-0.parquet#x.jpg"


def test_parquet_without_pictures_or_with_too_many_is_one_line(tmp_path):
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match="has no column of"):
        rows_of(PictureParquet(str(tmp_path)), tmp_path / "root")
    rows = [{"image": None, "text": "t"}] * 11
    write_parquet(tmp_path / "have", rows, text=pa.string())
    with pytest.raises(ValueError, match="more samples than --shard-size"):
        rows_of(PictureParquet(str(tmp_path / "have")), tmp_path / "root")
