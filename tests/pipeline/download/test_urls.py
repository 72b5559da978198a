"""URL lists: any form, streamed into shards; swapped columns are refused."""

import gzip
import json
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codeseg.pipeline.download import lists, urls
from codeseg.pipeline.download.urls import cut_shards
from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.lock import StageLock
from codeseg.pipeline.engine.overview import read_overview
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.manifests import load_manifest, parse_manifest

ROWS = [(f"http://h/{i}.jpg", f'caption "{i}", é') for i in range(25)]


def manifest(form, extra):
    text = f'name="t"\ntitle="T"\nurl_list="l"\nformat="{form}"\n{extra}'
    return parse_manifest(text.encode(), "t")


def write_list(path, form):
    if form == "tsv":
        path.write_text("".join(f"{caption}\t{url}\n" for url, caption in ROWS))
        return manifest("tsv", 'header=false\ncolumns=["caption","url"]')
    if form == "csv":
        lines = ["id,link,text"]
        for i, (url, caption) in enumerate(ROWS):
            quoted = caption.replace('"', '""')
            lines.append(f'{i},{url},"{quoted}"')
        path.write_text("\n".join(lines))
        return manifest("csv", 'columns={url="link", caption="text"}')
    if form == "parquet":
        table = pa.table({"n": range(25), "url": [r[0] for r in ROWS], "cap": [r[1] for r in ROWS]})
        pq.write_table(table, path, row_group_size=7)
        return manifest("parquet", 'columns={url="url", caption="cap"}')
    lines = [json.dumps({"x": i, "url": u, "caption": c}) for i, (u, c) in enumerate(ROWS)]
    path.write_text("\n".join(lines))
    return manifest("jsonl", "")


def cut(tmp_path, form="tsv", limit=None, size=10, source=None):
    path = tmp_path / f"list.{form}"
    source = source or write_list(path, form)
    return cut_shards(source, str(path), Storage.open(tmp_path / "root"), size, limit)


def rows(tmp_path):
    folder = tmp_path / "root/urls"
    found = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return [(row["url"], row["caption"]) for table in found for row in table.to_pylist()]


@pytest.mark.parametrize("form", ["tsv", "csv", "parquet", "jsonl"])
def test_every_form_gives_the_same_shards(tmp_path, form):
    records = cut(tmp_path, form)
    assert [record.rows_out for record in records.values()] == [10, 10, 5]
    assert rows(tmp_path) == ROWS


def test_a_compressed_list_is_read(tmp_path):
    source = write_list(tmp_path / "plain", "tsv")
    (tmp_path / "l.tsv.gz").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    cut_shards(source, str(tmp_path / "l.tsv.gz"), Storage.open(tmp_path / "root"), 10, None)
    assert rows(tmp_path) == ROWS


def test_a_folder_of_lists_is_read_in_order(tmp_path):
    (tmp_path / "lists").mkdir()
    source = write_list(tmp_path / "lists/b.tsv", "tsv")
    (tmp_path / "lists/a.tsv").write_text("first\thttp://h/first.jpg\n")
    cut_shards(source, str(tmp_path / "lists"), Storage.open(tmp_path / "root"), 10, None)
    assert rows(tmp_path) == [("http://h/first.jpg", "first"), *ROWS]


def test_a_larger_limit_only_adds_and_a_smaller_takes_nothing_away(tmp_path):
    first = cut(tmp_path, limit=12)
    assert [record.rows_out for record in first.values()] == [10, 2]
    second = cut(tmp_path, limit=22)
    assert [record.rows_out for record in second.values()] == [10, 10, 2]
    assert second[0] == first[0] and second[1].output != first[1].output
    assert cut(tmp_path, limit=5) == second
    assert len(cut(tmp_path)) == 3 and rows(tmp_path) == ROWS


def test_a_complete_cut_does_not_read_the_list_again(tmp_path, monkeypatch):
    before = cut(tmp_path)
    monkeypatch.setattr(
        "codeseg.pipeline.download.urls.read_rows", lambda *a: pytest.fail("the list was read")
    )
    assert cut(tmp_path) == before


def test_how_many_lines_of_each_file_are_no_rows_is_kept(tmp_path):
    place = tmp_path / "lists"
    place.mkdir()
    (place / "a.tsv").write_text("a\thttp://h/a\nodd\nb\thttp://h/b\nodd\n")
    (place / "b.tsv").write_text("c\thttp://h/c\n")
    root, source = (
        Storage.open(tmp_path / "root"),
        manifest("tsv", "header=false\ncolumns=['caption','url']"),
    )
    first = cut_shards(source, str(place), root, 10, None)
    assert Ledger(root).read_settings("urls")["left_out"] == {"a.tsv": 2}
    assert read_overview(root)[0].left_out == {"a.tsv": 2}
    assert first[0].settings == stage.URLS.fingerprint(Ledger(root).read_settings("urls"))
    assert cut_shards(source, str(place), root, 10, None) == first
    with (place / "b.tsv").open("a") as file:
        file.write("odd\nd\thttp://h/d\n")
    cut_shards(source, str(place), root, 10, None)
    assert Ledger(root).read_settings("urls")["left_out"] == {"a.tsv": 2, "b.tsv": 1}


def test_an_interrupted_cut_goes_on(tmp_path):
    whole = cut(tmp_path)
    root = Storage.open(tmp_path / "root")
    ledger = Ledger(root)
    ledger.retract("urls", 1)
    ledger.write_settings("urls", {**ledger.read_settings("urls"), "complete": False})
    again = cut(tmp_path)
    assert {i: r.output for i, r in again.items()} == {i: r.output for i, r in whole.items()}


def test_a_lost_shard_of_the_list_is_cut_again(tmp_path):
    first = cut(tmp_path, limit=25)
    cut(tmp_path)
    everything = rows(tmp_path)
    (tmp_path / "root/urls/00000.parquet").unlink()
    (tmp_path / "root/urls/00002.parquet").write_bytes(b"PAR1")
    again = cut(tmp_path, limit=5)
    assert rows(tmp_path) == everything
    assert {i: r.output for i, r in again.items()} == {i: r.output for i, r in first.items()}


@pytest.mark.parametrize("count", [23, 20])
@pytest.mark.parametrize("end", ["\n", ""])
def test_rows_appended_to_a_list_leave_all_shards_but_the_last_as_they_were(tmp_path, count, end):
    lines = [f"caption {i}\thttp://h/{i}.jpg" for i in range(count)]
    place, root = tmp_path / "list.tsv", Storage.open(tmp_path / "root")
    source = manifest("tsv", "header = false\ncolumns = ['caption', 'url']")
    place.write_text("\n".join(lines) + end)
    before = cut_shards(source, str(place), root, 10, None)
    with place.open("a") as file:
        file.write(("" if end else " and more\n") + "last\thttp://h/last.jpg\n")
    after = cut_shards(source, str(place), root, 10, None)
    assert sum(record.rows_out for record in after.values()) == count + 1
    kept = range(len(before) - 1)
    assert [after[i] for i in kept] == [before[i] for i in kept]
    assert (after[1].output == before[1].output) == (count == 23 or end == "\n")
    assert cut_shards(source, str(place), root, 10, None) == after
    place.write_text(place.read_text().replace("caption 0", "caption O"))
    with pytest.raises(ValueError, match="was begun with another list"):
        cut_shards(source, str(place), root, 10, None)


def test_another_list_or_shard_size_is_refused(tmp_path):
    cut(tmp_path)
    with pytest.raises(ValueError, match="was begun with another --shard-size"):
        cut(tmp_path, size=5)
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a,b\n")
    with pytest.raises(ValueError, match="was begun with another list"):
        cut(tmp_path, "csv", source=manifest("csv", ""))


@pytest.mark.parametrize("name", ["cc3m", "cc12m"])
def test_swapped_columns_are_refused_with_the_reason(tmp_path, name):
    source = load_manifest(name)
    swapped = ["url", "caption"] if name == "cc3m" else ["caption", "url"]
    cells = {"url": "http://h/a.jpg", "caption": "a dog"}
    (tmp_path / "l.tsv").write_text("\t".join(cells[c] for c in swapped) + "\n")
    with pytest.raises(ValueError, match="the columns are swapped"):
        cut_shards(source, str(tmp_path / "l.tsv"), Storage.open(tmp_path / "r"), 10, None)
    assert not (tmp_path / "r/urls").exists()


def test_a_refused_list_does_not_claim_the_root(tmp_path):
    source, root = load_manifest("cc3m"), Storage.open(tmp_path / "r")
    (tmp_path / "l.tsv").write_text("http://h/a.jpg\ta dog\n")
    with pytest.raises(ValueError, match="the columns are swapped"):
        cut_shards(source, str(tmp_path / "l.tsv"), root, 10, None)
    (tmp_path / "l.tsv").write_text("a dog\thttp://h/a.jpg\n")
    assert cut_shards(source, str(tmp_path / "l.tsv"), root, 10, None)[0].rows_out == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\tc\n", "is not a tsv URL list"),
        ("no url\tnone either\n", "holds no http"),
        ("", "is not a tsv URL list"),
        ("caption\turl\na\thttp://x\n", "header = true"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, text, message):
    (tmp_path / "list.tsv").write_text(text)
    source = manifest("tsv", 'header=false\ncolumns=["caption","url"]')
    with pytest.raises(ValueError, match=message):
        cut(tmp_path, source=source)


def test_a_missing_column_and_a_missing_list_are_named(tmp_path):
    write_list(tmp_path / "list.csv", "csv")
    with pytest.raises(ValueError, match="nope"):
        cut(tmp_path, "csv", source=manifest("csv", 'columns={url="nope", caption="text"}'))
    with pytest.raises(FileNotFoundError, match=r"from https://.* --urls FILE .*\.tsv files"):
        cut_shards(load_manifest("cc3m"), str(tmp_path / "x.tsv"), Storage.open(tmp_path), 10, None)


def test_bytes_that_are_no_text_do_not_end_the_run(tmp_path):
    (tmp_path / "list.tsv").write_bytes(b"caf\xe9\thttp://h/1\nb\thttp://h/2\n")
    cut(tmp_path, source=manifest("tsv", 'header=false\ncolumns=["caption","url"]'))
    assert rows(tmp_path) == [("http://h/1", "caf�"), ("http://h/2", "b")]


def test_rows_without_the_columns_are_left_out_and_counted(tmp_path, capsys, monkeypatch):
    source = manifest("tsv", 'header=false\ncolumns=["caption","url"]')
    lines = [f"c {i}\thttp://h/{i}\n" for i in range(20)]
    lines[7:7] = ["one\rtwo\thttp://h/x\r\n", "a\tb\tc\n", "\x1b[2J\n", "\n"]
    (tmp_path / "list.tsv").write_text("".join(lines))
    cut(tmp_path, source=source)
    urls_cut = [url for url, _ in rows(tmp_path)]
    assert [url for url in urls_cut if url != "http://h/x"] == [f"http://h/{i}" for i in range(20)]
    out = capsys.readouterr().out
    assert (
        "list.tsv: left out 3 lines: line 9: 3 columns for 2 in 'a\\tb\\tc'; line 10: 1 col" in out
    )
    assert "\x1b" not in out, "data never reach a terminal raw"

    shutil.rmtree(tmp_path / "root")
    monkeypatch.setattr(lists, "MOST_ODD", 1)
    with pytest.raises(ValueError, match="is not a tsv URL list"):
        cut(tmp_path, source=source)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), "dictionary"])
def test_a_parquet_list_with_broken_strings_is_mended_while_it_is_cut(tmp_path, kind):
    captions = pa.array([b"caf\xe9", b"b", None]).view(pa.string())
    captions = captions.dictionary_encode() if kind == "dictionary" else captions.cast(kind)
    places = [f"http://h/{i}" for i in range(3)]
    pq.write_table(pa.table({"url": places, "caption": captions}), tmp_path / "list.parquet")
    cut(tmp_path, "parquet", source=manifest("parquet", ""))
    assert rows(tmp_path) == list(zip(places, ["caf\ufffd", "b", None], strict=True))


def test_more_shards_than_keys_have_digits_for_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"more than 100,000 shards; .*--shard-size"):
        cut(tmp_path, limit=200_001, size=2)
    assert not (tmp_path / "root/urls").exists(), "said before anything is cut"
    monkeypatch.setattr(urls, "MOST_SHARDS", 2)
    with pytest.raises(ValueError, match=r"more than 2 shards; .*--shard-size"):
        cut(tmp_path, size=10)


def test_what_a_killed_cut_left_is_removed(tmp_path):
    left = [
        tmp_path / f"root/{folder}/.killed.writing/.00000~abcdef.writing"
        for folder in ("urls", "ledger/urls")
    ]
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    with StageLock(Storage.open(tmp_path / "root"), "urls"):
        cut(tmp_path)
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name =", "manifest t:"),
        ('name="t"', "'title' is missing"),
        ('name="t"\ntitle="T"\nurl_list="l"\nformat="xls"', "format is one of"),
        ('name="t"\ntitle="T"\nurl_list="l"\nformat="tsv"\nheader=false', "columns is a list"),
        ('name="t"\ntitle="T"\nurl_list="l"\nformat="csv"\ncolumn="x"', "unknown key 'column'"),
        ('name="t"\ntitle="T"\nurl_list="l"\nformat="csv"\nimage_size="x"', "image_size"),
    ],
)
def test_a_wrong_manifest_is_one_clear_line(text, message):
    with pytest.raises(ValueError, match=message):
        parse_manifest(text.encode(), "t")


def test_an_unknown_dataset_names_those_there_are():
    with pytest.raises(ValueError, match=r"unknown dataset 'cc4m'; there are cc12m, cc3m"):
        load_manifest("cc4m")


@pytest.mark.slow
def test_planning_a_million_urls_stays_small(tmp_path):
    """CC12M in full takes 12 times as long and, since everything streams, no more memory."""
    with (tmp_path / "l.tsv").open("w") as file:
        for i in range(1_000_000):
            file.write(f"https://host{i % 1000}.example/{i}.jpg\ta caption about thing {i}\n")
    script = """
        import re, sys
        from codeseg.pipeline.manifests import load_manifest
        from codeseg.pipeline.engine.storage import Storage
        from codeseg.pipeline.download.urls import cut_shards
        root = Storage.open(sys.argv[2])
        cut = cut_shards(load_manifest("cc12m"), sys.argv[1], root, 10000, None)
        peak = re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
        print(len(cut), peak)
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in script.splitlines()),
         str(tmp_path / "l.tsv"), str(tmp_path / "root")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    shards, kilobytes = map(int, done.stdout.split())
    assert shards == 100
    assert kilobytes < 500_000


def test_a_question_mark_in_a_local_path_is_part_of_it(tmp_path):
    (tmp_path / "what?").mkdir()
    (tmp_path / "what?/LIST.CSV").write_text("caption,url\na dog,http://h/1\n")
    for place in ("what?/LIST.CSV", "what?"):
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        root = Storage.open(tmp_path / "root")
        cut_shards(manifest("csv", ""), str(tmp_path / place), root, 10, None)
        assert rows(tmp_path) == [("http://h/1", "a dog")]
