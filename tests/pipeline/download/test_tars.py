"""Webdataset tars, written by webdataset itself, as a source of pairs."""

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from codeseg.pipeline.download.members import read_members
from codeseg.pipeline.download.pairs import DownloadSettings
from codeseg.pipeline.download.ready import ReadyWorker
from codeseg.pipeline.download.tars import (
    TEXT_BYTES,
    Tars,
    read_samples,
)
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.manifests import parse_manifest
from codeseg.pipeline.schema import PAIRS
from codeseg.stages.download import ready_source


def jpeg(width, height):
    content = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(content, "JPEG")
    return content.getvalue()


def convert(tmp_path, **changes):
    place = str(tmp_path / "tars")
    source = Tars(place)
    download = asdict(DownloadSettings(**{"shard_size": 10, "min_size": 8, **changes}))
    root = tmp_path / "root"
    worker = ReadyWorker(str(root), {"source": source, "download": download})
    return root, [worker.process(shard, made_from) for shard, made_from in source.inputs.items()]


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
    found = [(s.name, s.image, next(iter(s.captions), None)) for s in samples(content)]
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
        Tars(str(tmp_path))


CAPTION = b"a red house and a lake"


def pairs(tmp_path, files, name="a.tar", pack=bytes, **settings):
    """Rows of a tar of these files: (url, caption, error)."""
    Storage.open(tmp_path).write_atomic(f"tars/{name}", pack(tar_of(files)))
    root, _ = convert(tmp_path, **settings)
    table = pq.read_table(root / "pairs/00000.parquet", columns=["url", "caption", "error"])
    return [tuple(row.values()) for row in table.to_pylist()]


def test_the_files_of_a_sample_need_not_lie_side_by_side(tmp_path):
    image = jpeg(40, 40)
    files = [(f"{k}.jpg", image) for k in range(6)] + [(f"{k}.txt", CAPTION) for k in range(6)]
    expected = [(f"a.tar#{k}", CAPTION.decode(), None) for k in range(6)]
    assert pairs(tmp_path, files) == expected


def test_a_base_name_may_have_dots(tmp_path):
    image = jpeg(40, 40)
    names = [f"IMG_2021.01.0{k}" for k in range(3)]
    files = [(f"{n}{e}", c) for n in names for e, c in ((".JPG", image), (".txt", CAPTION))]
    assert pairs(tmp_path, files) == [(f"a.tar#{n}", CAPTION.decode(), None) for n in names]


def test_a_second_picture_of_a_sample_is_told_and_not_lost(tmp_path):
    image = jpeg(40, 40)
    files = [("0.jpg", image), ("0.seg.png", image), ("0.png", image), ("0.txt", b"a"),
             ("0.cls", b"7"), ("._0.jpg", b"a resource fork")]  # fmt: skip
    assert pairs(tmp_path, files) == [
        ("a.tar#0", "a", None),
        ("a.tar#0.seg", None, "second_image"),
        ("a.tar#0.png", None, "second_image"),
    ]


def test_a_name_met_twice_is_two_tars_in_one(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tar is a broken tar: it holds 0\.jpg twice"):
        pairs(tmp_path, [("0.jpg", jpeg(40, 40)), ("1.jpg", b""), ("0.jpg", jpeg(40, 40))])


def test_every_format_of_the_one_list_is_taken_and_others_are_unsupported(tmp_path):
    files = []
    for ending, kind in (("GIF", "GIF"), ("jpeg", "JPEG"), ("Webp", "WEBP"), ("bmp", "BMP"),
                         ("png", "PNG"), ("avif", "AVIF"), ("tif", "TIFF")):  # fmt: skip
        content = io.BytesIO()
        Image.new("RGB", (40, 40), (9, 99, 199)).save(content, kind)
        files.append((f"{ending}.{ending}", content.getvalue()))
    errors = {url.partition("#")[2]: error for url, _, error in pairs(tmp_path, files)}
    assert errors == dict.fromkeys(("GIF", "jpeg", "Webp", "bmp", "png")) | {
        "avif": "unsupported",
        "tif": "unsupported",
    }


def test_captions_of_one_picture_share_its_bytes(tmp_path):
    (tmp_path / "tars").mkdir()
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(
        content, "PNG"
    )
    captions = [f"caption {i}" for i in range(5)]
    with webdataset.TarWriter(str(tmp_path / "tars/a.tar")) as tar:
        tar.write({"__key__": "x", "png": content.getvalue(), "json": {"caption": captions}})
    root, _ = convert(tmp_path)
    path = root / "pairs/00000.parquet"
    found = pq.read_table(path).to_pylist()
    assert [row["caption"] for row in found] == captions
    assert len({row["jpg"] for row in found}) == 1
    assert len(found[0]["jpg"]) < path.stat().st_size < 1.5 * len(found[0]["jpg"])


def test_a_folder_of_tars_is_listed_once(tmp_path, monkeypatch):
    (tmp_path / "tars").mkdir()
    with webdataset.TarWriter(str(tmp_path / "tars/a.tar")) as tar:
        tar.write({"__key__": "x", "jpg": jpeg(60, 40), "txt": "a field"})
    listed, honest = [], Storage.sizes
    monkeypatch.setattr(
        Storage, "sizes", lambda self, f: (listed.append(self.uri), honest(self, f))[1]
    )
    for form in ("webdataset", "tsv"):  # of a manifest whose --urls may be a list or tars
        text = f'name="t"\ntitle="T"\nurl_list="{tmp_path}/tars"\nformat="{form}"'
        source = ready_source(parse_manifest(text.encode(), "t"), str(tmp_path / "tars"), 10)
        assert isinstance(source, Tars) and listed.count(str(tmp_path / "tars")) == 1
        listed.clear()
    assert ready_source(parse_manifest(text.encode(), "t"), str(tmp_path / "no"), 10) is None


def test_several_captions_are_a_row_each(tmp_path):
    image = jpeg(40, 40)
    files = [("0.jpg", image), ("0.json", json.dumps({"caption": ["a", "b"]}).encode()),
             ("1.jpg", image), ("1.json", json.dumps({"captions": ["c", 5]}).encode()),
             ("2.jpg", image), ("2.txt", b"t"), ("2.json", b'{"caption": "j"}')]  # fmt: skip
    captions = [("0", "a"), ("0", "b"), ("1", "c"), ("2", "t")]
    assert pairs(tmp_path, files) == [(f"a.tar#{n}", caption, None) for n, caption in captions]


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "pack"), [("a.tar.gz", gzip.compress), ("A.TGZ", gzip.compress), ("a.tar.zst", zstd)]
)
def test_a_packed_tar_is_read_and_may_neither_be_cut_nor_a_bomb(tmp_path, name, pack):
    files = [("0.jpg", jpeg(40, 40)), ("0.txt", CAPTION)]
    assert pairs(tmp_path, files, name, pack) == [(f"{name}#0", CAPTION.decode(), None)]
    cut = pack(tar_of([("0.jpg", bytes(range(256)) * 400)] * 1))[:-20]
    with pytest.raises(ValueError, match=f"{name} is a broken tar"):
        read_samples(pa.BufferReader(cut), name, 1 << 20)
    bomb = pack(tar_of([("0.bin", bytes(32 << 20)), ("1.bin", bytes(32 << 20))]))
    with pytest.raises(ValueError, match="unpacks to over 200 times"):
        read_samples(pa.BufferReader(bomb), name, 1 << 20)


def header(name, size, kind=b"0"):
    """A header with a size as tarfile would not write it: negative, in base 256."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = kind
    block[124:136] = (size % (1 << 96)).to_bytes(12, "big") if size < 0 else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**records):
    text = b"".join(
        b"%d %s=%s\n" % (len(key) + len(value) + 5, key.encode(), value)
        for key, value in records.items()
    )
    return header("pax", len(text), b"x") + text.ljust(512, b"\0")


EVIL = {
    **{f"a negative size of kind {kind!r}": header("x.bin", -512, kind)
       for kind in (b"Z", b"0", b"L", b"x", b"V")},
    "a negative size in pax": pax(size=b"-512") + header("9.jpg", 0),
    "a pax header that is none": header("pax", 6, b"x") + b"0 x=y\n".ljust(512, b"\0"),
    "a name of gigabytes": header("x", 1 << 32, b"L"),
    "a file that the tar is too short for": header("9.jpg", 1 << 32, b"Z"),
}  # fmt: skip


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("place", [0, HEADER])
def test_a_tar_made_to_hang_or_to_fill_the_memory_is_refused(evil, place):
    """CVE-2025-8194: Python's tarfile goes backwards forever over the first of them."""
    content = tar_of(TEN)
    with pytest.raises(ValueError, match=r"t\.tar is a broken tar: "):
        samples(content[:place] + EVIL[evil] + content[place:])


def test_thousands_of_chained_headers_are_no_recursion():
    chain = pax(comment=b"x") * 3000
    assert len(samples(chain + tar_of(TEN))) == 10


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/."), min_size=1),
        st.binary(max_size=1500), min_size=1, max_size=6,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(1, 40),
)  # fmt: skip
def test_members_are_those_of_pythons_own_reader(files, form, folders):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo("/".join(["folder"] * folders + [name]))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        tar.addfile(tarfile.TarInfo("link"), None)
    content.seek(0)
    with tarfile.open(fileobj=content) as tar:
        theirs = [(m.name, m.size, tar.extractfile(m).read()) for m in tar]
    source = pa.BufferReader(content.getvalue())
    assert list(read_members(source, "t.tar", lambda *_: True)) == theirs


@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 20_000))
def test_any_bytes_are_a_tar_or_a_broken_one(junk, place):
    content = tar_of(TEN)
    for damaged in (junk, content[:place] + junk + content[place + len(junk) :]):
        try:
            samples(damaged)
        except ValueError as error:
            assert "t.tar is a broken tar: " in str(error)
