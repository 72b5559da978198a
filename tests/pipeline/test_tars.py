"""Webdataset tars, written by webdataset itself, as a source of pairs."""

import hashlib
import io
from dataclasses import asdict

import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.download import DownloadSettings
from pipeline.schema import PAIRS
from pipeline.storage import Storage
from pipeline.tars import TarWorker, list_tars, tar_inputs


def jpeg(width, height):
    content = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(content, "JPEG")
    return content.getvalue()


def convert(tmp_path, **settings):
    place = str(tmp_path / "tars")
    names = list_tars(place)
    download = asdict(DownloadSettings(shard_size=10, **settings))
    root = tmp_path / "root"
    worker = TarWorker(str(root), {"place": place, "names": names, "download": download})
    inputs = tar_inputs(place, names)
    return root, [worker.process(shard, inputs[shard]) for shard in names]


def test_every_sample_becomes_a_row_with_its_caption_or_its_reason(tmp_path):
    (tmp_path / "tars").mkdir()
    image = jpeg(600, 300)
    with webdataset.TarWriter(str(tmp_path / "tars/a.tar")) as tar:
        tar.write({"__key__": "x1", "jpg": image, "txt": "a red field"})
        tar.write({"__key__": "x2", "jpg": b"broken", "json": {"caption": "c", "url": "http://u"}})
        tar.write({"__key__": "x3", "txt": "no picture"})
    with webdataset.TarWriter(str(tmp_path / "tars/b.tar")) as tar:
        tar.write({"__key__": "y1", "png": image, "json": {"caption": "from json"}})
    root, records = convert(tmp_path)
    assert [(r.rows_in, r.rows_out) for r in records] == [(3, 1), (1, 1)]
    assert records[0].rejected == {"no_image": 1, "not_an_image": 1}
    table = pq.read_table(root / "pairs/00000.parquet")
    assert table.schema.equals(PAIRS)
    first, second, third = table.to_pylist()
    assert first["key"] == "000000" and first["caption"] == "a red field"
    assert (first["width"], first["height"], first["original_width"]) == (512, 256, 600)
    assert first["sha256"] == hashlib.sha256(image).hexdigest()
    assert first["url"] == "a.tar#x1" and second["url"] == "http://u"
    assert third["error"] == "no_image"
    assert pq.read_table(root / "pairs/00001.parquet")["caption"].to_pylist() == ["from json"]


def test_a_broken_tar_is_named(tmp_path):
    Storage.open(tmp_path).write_atomic("tars/a.tar", b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"a\.tar is a broken tar"):
        convert(tmp_path)


def test_a_folder_without_tars_is_one_clear_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.tar files in"):
        list_tars(str(tmp_path))
