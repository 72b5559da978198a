"""Webdataset tars, written by webdataset itself, as a source of pairs."""

import hashlib
import io
import tarfile
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from codeseg.pipeline.download.pairs import DownloadSettings
from codeseg.pipeline.download.tars import (
    TEXT_BYTES,
    TarWorker,
    list_tars,
    read_samples,
    tar_inputs,
)
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.schema import PAIRS


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


def tar_of(files, encoding="utf-8"):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT, encoding=encoding) as t:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return content.getvalue()


def samples(content):
    return list(read_samples(pa.BufferReader(content), "t.tar", 1 << 20))


TEN = [(f"{i}.{e}", b"content") for i in range(10) for e in ("jpg", "txt")]
HEADER = 4 * 2 * 1024  # of the fifth sample: every file before it is a header and a block


def damaged_header(content):
    return content[: HEADER + 150] + b"\x7f" + content[HEADER + 151 :]


@pytest.mark.parametrize(
    "damage",
    [
        damaged_header,
        lambda content: content[:HEADER],
        lambda content: content[: HEADER + 200],
        lambda content: content[: HEADER + 512 + 3],
        lambda content: content[:HEADER] + bytes(1024) + content[HEADER + 1024 :],
    ],
    ids=["header", "cut before", "cut inside a header", "cut inside a file", "hole of zeros"],
)
def test_a_damaged_or_cut_tar_does_not_pass_for_a_shorter_one(damage):
    content = tar_of(TEN)
    assert len(samples(content)) == 10
    with pytest.raises(ValueError, match=r"t\.tar is a broken tar: "):
        samples(damage(content))


def test_a_tar_that_ends_in_a_single_block_of_zeros_is_whole():
    content = tar_of(TEN)
    assert len(samples(content[: len(TEN) * 1024 + 512])) == 10
    with pytest.raises(ValueError, match="no end marker"):
        samples(content[: len(TEN) * 1024])


def test_one_base_name_in_two_folders_is_two_samples():
    content = tar_of([("a/0.jpg", b"1"), ("a/0.txt", b"x"), ("b/0.jpg", b"2"), ("b/0.txt", b"y")])
    found = [(s.name, s.image, s.caption) for s in samples(content)]
    assert found == [("a/0", b"1", "x"), ("b/0", b"2", "y")]
    assert [s.name for s in samples(tar_of([("./0.jpg", b"1"), ("./0.txt", b"x")]))] == ["0"]


def test_a_file_that_is_too_large_or_not_used_is_not_read(tmp_path):
    files = [
        ("0.jpg", bytes(9_000)),
        ("1.jpg", jpeg(8, 8)),
        ("1.txt", bytes(TEXT_BYTES + 1)),
        ("2.jpg", jpeg(8, 8)),
        ("2.txt", b"c"),
        ("2.flac", bytes(9_000)),
    ]
    Storage.open(tmp_path).write_atomic("tars/a.tar", tar_of(files))
    _, records = convert(tmp_path, max_bytes=8_000)
    assert records[0].rejected == {"too_large": 1, "caption_too_large": 1}
    assert records[0].rows_out == 1


def test_a_sparse_file_of_gigabytes_is_refused():
    header = tarfile.TarInfo("0.jpg")
    header.type, header.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"%011o\0" % (6 << 30)
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(ValueError, match=r"0\.jpg is stored as a sparse file"):
        samples(bytes(block) + bytes(512 + 1024))


def test_text_that_is_none_spoils_no_other_sample(tmp_path):
    image = jpeg(8, 8)
    files = [
        ("caf\u00e8.jpg", image),
        ("caf\u00e9.jpg", image),
        ("2.jpg", image),
        ("2.json", b'{"caption": "a \\ud800 b \\ud83d\\ude00", "url": "http://\\udfff"}'),
        ("3.jpg", image),
        ("3.json", b"[" * 200_000),
    ]
    Storage.open(tmp_path).write_atomic("tars/a.tar", tar_of(files, "latin-1"))
    root, _ = convert(tmp_path)
    table = pq.read_table(root / "pairs/00000.parquet", columns=["url", "caption", "error"])
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert rows == [
        ("a.tar#caf\ufffd", None, None),
        ("a.tar#caf\ufffd", None, None),
        ("http://\ufffd", "a \ufffd b \U0001f600", None),
        ("a.tar#3", None, None),
    ]


class FailingStore(io.RawIOBase):
    """A tar on a store that fails in its middle."""

    def __init__(self, content):
        self._content = io.BytesIO(content)

    def size(self):
        return len(self._content.getvalue())

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, *where):
        return self._content.seek(*where)

    def readinto(self, target):
        if self._content.tell() > 2 << 20:
            raise OSError("the store does not answer")
        return self._content.readinto(target)


def test_a_store_that_fails_is_no_broken_tar():
    content = tar_of([(f"{i}.jpg", bytes(700_000)) for i in range(10)])
    with pytest.raises(OSError, match="does not answer"):
        list(read_samples(FailingStore(content), "t.tar", 1 << 20))


def test_a_folder_without_tars_is_one_clear_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.tar files in"):
        list_tars(str(tmp_path))
