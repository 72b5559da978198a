"""The parsers of lists: every line is in a row or left out and counted; no quote swallows rows."""

import bz2
import csv
import gzip
import io
import json
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeseg.pipeline.download import lists
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.manifests import parse_manifest

HEADERLESS = 'header=false\ncolumns=["caption","url"]'
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\t"), max_size=30)


def manifest(form, extra=""):
    text = f'name="t"\ntitle="T"\nurl_list="l"\nformat="{form}"\n{extra}'
    return parse_manifest(text.encode(), "t")


def read(folder, form, content, extra="", ending=""):
    """Rows of a list as (url, caption)."""
    name = f"l.{form}{ending}"
    (folder / name).write_bytes(content)
    batches = lists.read_rows(manifest(form, extra), Storage.open(folder), name, Counter())
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


def left_out(printed):
    found = re.search(r"left out ([\d,]+) lines", printed)
    return int(found[1].replace(",", "")) if found else 0


def http(rows):
    """Rows with a URL, as a list needs one; numbered, so that none can stand for another."""
    return [(f"http://h/{i}", caption) for i, caption in enumerate(["first", *rows])]


@given(
    captions=st.lists(TEXT), odd=st.lists(st.integers(0, 20)), end=st.sampled_from(["\n", "\r\n"])
)
def test_every_line_of_a_tsv_is_a_row_or_left_out(tmp_path_factory, captions, odd, end):
    rows = http(captions)
    lines = [f"{caption}\t{url}" for url, caption in rows]
    for place in odd:
        lines.insert(place, "no columns")
    content = end.join([*lines, ""]).encode()
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        assert read(tmp_path_factory.mktemp("l"), "tsv", content, HEADERLESS) == rows
    assert left_out(printed.getvalue()) == len(odd)


@given(
    captions=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
)
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory, captions):
    """Quotes, commas and lines inside of captions included, in either order of columns."""
    rows = http(captions)
    for names, order in (("url,caption", (0, 1)), ("caption,url", (1, 0))):
        content = io.StringIO()
        csv.writer(content, lineterminator="\n").writerows([row[i] for i in order] for row in rows)
        text = f"{names}\n{content.getvalue()}".encode()
        assert read(tmp_path_factory.mktemp("l"), "csv", text) == rows


@given(
    captions=st.lists(
        st.sampled_from(["a dog", '"5 inch nail', 'nail 5"', '"a" b', '5" nail', '"'])
    )
)
def test_no_quote_swallows_the_rows_after_it(tmp_path_factory, captions):
    """Bare quotes as nobody should write them: every line is still a row of its own."""
    rows = http(captions)
    content = "caption,url\n" + "".join(f"{caption},{url}\n" for url, caption in rows)
    assert [u for u, _ in read(tmp_path_factory.mktemp("l"), "csv", content.encode())] == [
        url for url, _ in rows
    ]


def test_a_lone_quote_costs_at_most_its_own_line(tmp_path):
    lines = [f"a red house beside lake {i},http://h/{i}" for i in range(60_000)]
    lines[10] = '"5 inch nail in the wall,http://h/10'
    rows = read(tmp_path, "csv", "\n".join(["caption,url", *lines, ""]).encode())
    assert len(rows) == 60_000
    assert rows[10] == ("http://h/10", '"5 inch nail in the wall')


def test_a_quote_without_end_and_without_columns_is_named(tmp_path, capsys):
    content = b'caption,url\na,http://h/1\n"b\nc,http://h/2\n'
    assert [u for u, _ in read(tmp_path, "csv", content)] == ["http://h/1", "http://h/2"]
    assert "left out 1 lines: line 3: 1 columns for 2 in '\"b'" in capsys.readouterr().out


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(odd=st.lists(JSON | st.fixed_dictionaries({"caption": JSON, "url": JSON})))
def test_every_line_of_a_jsonl_is_a_row_or_left_out(tmp_path_factory, odd):
    lines = [{"caption": "a", "url": "http://h/"}] * 2 + odd
    content = "".join(json.dumps(value) + "\n" for value in lines).encode()
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        rows = read(tmp_path_factory.mktemp("l"), "jsonl", content)
    assert len(rows) + left_out(printed.getvalue()) == len(lines)


def test_an_odd_line_of_a_jsonl_is_left_out_and_shown(tmp_path, capsys):
    good = [json.dumps({"caption": f"c{i}", "url": f"http://h/{i}"}) for i in range(1000)]
    odd = [
        '{"caption": ["a", "b"], "url": "http://h/"}',
        '{"caption": 5, "url": "http://h/"}',
        '{"caption": ',
        "[" * 100_000,
        '{"caption": "\\ud800", "url": "http://h/s"}',
    ]
    rows = read(tmp_path, "jsonl", "\n".join([*good[:3], *odd, *good[3:]]).encode())
    assert len(rows) == 1001 and ("http://h/s", "\ufffd") in rows
    out = capsys.readouterr().out
    assert "left out 4 lines: line 4: list instead of a text in '{" in out
    assert "line 5: int instead" in out and "line 6: not a JSON object" in out


@given(st.lists(st.none() | TEXT, max_size=20))
def test_every_row_of_a_parquet_is_kept(tmp_path_factory, captions):
    rows = [("http://h/", "first"), *((None, caption) for caption in captions)]
    content = io.BytesIO()
    urls, texts = zip(*rows, strict=True)
    pq.write_table(pa.table({"url": pa.array(urls), "caption": pa.array(texts)}), content)
    assert read(tmp_path_factory.mktemp("l"), "parquet", content.getvalue()) == rows


@pytest.mark.parametrize("empty", [None, "", "N/A"])
def test_first_rows_without_a_url_do_not_decide(tmp_path, empty):
    urls = [empty] * 20_000 + [f"http://h/{i}" for i in range(50)]
    content = io.BytesIO()
    pq.write_table(pa.table({"url": urls, "caption": ["c"] * len(urls)}), content)
    assert len(read(tmp_path, "parquet", content.getvalue())) == len(urls)


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstd)]
)
@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl"])
def test_a_compressed_list_has_the_same_rows_and_may_not_be_cut(tmp_path, form, ending, pack):
    rows = http([f"caption {i}" for i in range(3000)])
    line = {
        "tsv": lambda url, caption: f"{url}\t{caption}",
        "csv": lambda url, caption: f'{url},"{caption}"',
        "jsonl": lambda url, caption: json.dumps({"url": url, "caption": caption}),
    }[form]
    head = {"tsv": "url\tcaption\n", "csv": "url,caption\n", "jsonl": ""}[form]
    content = pack((head + "".join(line(*row) + "\n" for row in rows)).encode())
    assert read(tmp_path, form, content, ending=ending) == rows
    with pytest.raises(OSError, match=f"l.{form}{ending}: "):
        read(tmp_path, form, content[: len(content) // 2], ending=ending)


def test_a_line_of_megabytes_costs_itself_alone(tmp_path, capsys):
    content = b"a\thttp://h/1\n" + b"x" * (3 << 20) + b"\nb\thttp://h/2\n"
    assert [c for _, c in read(tmp_path, "tsv", content, HEADERLESS)] == ["a", "b"]
    assert "left out 1 lines: line 2: over 64 KB in 'xxx" in capsys.readouterr().out


def test_many_odd_lines_are_another_form_of_list_but_few_in_a_hundred_are_not(tmp_path):
    good = [f"a\thttp://h/{i}\n" for i in range(200_000)]
    few = [line if i % 150 else "odd\n" for i, line in enumerate(good)]
    assert len(read(tmp_path, "tsv", "".join(few).encode(), HEADERLESS)) == 200_000 - 1334
    many = [line if i % 50 else "odd\n" for i, line in enumerate(good)]
    with pytest.raises(ValueError, match=r"l\.tsv is not a tsv URL list: 1,\d+ of its first"):
        read(tmp_path, "tsv", "".join(many).encode(), HEADERLESS)


def test_a_byte_order_mark_and_old_line_ends_are_no_text(tmp_path):
    content = b"\xef\xbb\xbfurl,caption\r\nhttp://h/1,a dog\r\n"
    assert read(tmp_path, "csv", content) == [("http://h/1", "a dog")]
