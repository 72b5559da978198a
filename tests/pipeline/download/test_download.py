"""Download through the real img2dataset from a loopback server."""

import hashlib
import io
from dataclasses import asdict

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codeseg.pipeline.download.fetch import Fetcher
from codeseg.pipeline.download.pairs import DownloadSettings, DownloadWorker
from codeseg.pipeline.download.urls import cut_shards
from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.cluster import Resources
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.shards import ShardError
from codeseg.pipeline.engine.stage import state
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.manifests import parse_manifest
from codeseg.pipeline.schema import PAIRS
from codeseg.stages.download import run_download, with_retries

MANIFEST = parse_manifest(
    b'name="t"\ntitle="T"\nurl_list="l.tsv"\nformat="tsv"\nheader=false\ncolumns=["caption","url"]',
    "t",
)


def settings(**changes):
    base = {"shard_size": 4, "threads": 4, "allow_private": True, "retries": 0, "deadline": 5.0}
    return DownloadSettings(**{**base, **changes})


def prepare(tmp_path, urls, **changes):
    """Cut a list of URLs; returns the root and a function that does one shard."""
    listed = tmp_path / "l.tsv"
    listed.write_text("".join(f"caption {i}\t{url}\n" for i, url in enumerate(urls)))
    root = Storage.open(tmp_path / "data")
    shard_size = settings(**changes).shard_size
    inputs = cut_shards(MANIFEST, str(listed), root, shard_size, None)

    def do(shard=0, **more):
        worker = DownloadWorker(root.uri, asdict(settings(**{**changes, **more})))
        return worker.process(shard, inputs[shard].output)

    return root, do


def rows(root, shard=0):
    return pq.read_table(root.open_input(f"pairs/{shard:05d}.parquet")).to_pylist()


def test_every_row_is_kept_in_order_with_its_image_or_its_reason(tmp_path, image_server):
    urls = [
        image_server.add_image("/big.jpg", 700, 400, seed=1),
        image_server.url + "/gone.jpg",
        image_server.add_image("/small.png", 50, 40, seed=2, image_format="PNG"),
        "file:///etc/passwd",
        image_server.url + "/text.jpg",
    ]
    image_server.pages["/text.jpg"] = (200, {}, b"<html>no image</html>")
    root, do = prepare(tmp_path, urls)
    record = do(0)
    assert (record.rows_in, record.rows_out) == (4, 2)
    assert record.rejected == {"bad_scheme": 1, "http_404": 1}
    assert do(1).rejected == {"not_an_image": 1}
    table = pq.read_table(root.open_input("pairs/00000.parquet"))
    assert table.schema.equals(PAIRS)
    found = table.to_pylist()
    assert [row["key"] for row in found] == ["000000", "000001", "000002", "000003"]
    assert rows(root, 1)[0]["key"] == "000010"
    assert [row["url"] for row in found] == urls[:4]
    assert [row["caption"] for row in found] == [f"caption {i}" for i in range(4)]
    big, gone, small, _ = found
    assert (big["width"], big["height"]) == (448, 256)
    assert (big["original_width"], big["original_height"]) == (700, 400)
    assert Image.open(io.BytesIO(big["jpg"])).size == (448, 256)
    served = image_server.pages["/big.jpg"][2]
    assert big["sha256"] == hashlib.sha256(served).hexdigest()
    assert (small["width"], small["height"]) == (50, 40), "a small image is not blown up"
    assert gone["jpg"] is None and gone["width"] is None


def test_a_fetch_that_raises_what_it_should_not_costs_one_row(tmp_path, image_server, monkeypatch):
    def fetch(self, url):
        if url.endswith("0.jpg"):
            raise ZeroDivisionError(url)
        return honest(self, url)

    honest = Fetcher.open
    monkeypatch.setattr(Fetcher, "open", fetch)
    root, do = prepare(tmp_path, [image_server.add_image(f"/{i}.jpg") for i in range(2)])
    do()
    assert [row["error"] for row in rows(root)] == ["internal", None]


def noise(image_server, path, seed):
    """Serve a picture that cannot be made small."""
    pixels = np.random.default_rng(seed).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    image_server.pages[path] = (200, {}, content.getvalue())
    return image_server.url + path


def test_a_url_of_several_rows_is_fetched_once_and_its_picture_is_stored_once(
    tmp_path, image_server
):
    encoded, second = (noise(image_server, f"/{i}%20.png", i) for i in range(2))
    first, again = encoded.replace("%20", " "), encoded.replace("http", "HTTP") + "#part"
    gone = image_server.url + "/gone"
    root, do = prepare(tmp_path, [first, second, first, again, gone, gone], shard_size=6)
    assert do().rejected == {"http_404": 2}
    assert dict(image_server.hits) == {"/0%20.png": 1, "/1%20.png": 1, "/gone": 1}
    found = rows(root)
    assert [row["url"] for row in found] == [first, second, first, again, gone, gone]
    assert [row["caption"] for row in found] == [f"caption {i}" for i in range(6)]
    assert [row["jpg"] == found[0]["jpg"] for row in found] == [1, 0, 1, 1, 0, 0]
    path = tmp_path / "data/pairs/00000.parquet"
    each = len(found[0]["jpg"])
    assert path.stat().st_size < 2 * each + 20_000 < 3 * each
    query = f"SELECT list(octet_length(jpg) ORDER BY key) FROM '{path}'"
    ((sizes,),) = duckdb.sql(query).fetchall()
    assert sizes[:4] == [each, len(found[1]["jpg"]), each, each]
    image_server.hits.clear()
    assert do(retry_failed=True).output == do().output and not image_server.hits


def test_a_shard_without_repeats_has_the_bytes_that_it_always_had(tmp_path, image_server):
    _, do = prepare(tmp_path, [noise(image_server, f"/{i}.png", i) for i in range(3)])
    do()
    file = pq.ParquetFile(tmp_path / "data/pairs/00000.parquet")
    column = file.metadata.row_group(0).column(PAIRS.names.index("jpg"))
    assert not column.has_dictionary_page and not any("DICT" in e for e in column.encodings)


def test_the_same_images_give_the_same_bytes(tmp_path, image_server):
    urls = [image_server.add_image(f"/{i}.jpg", 300 + i, 280, seed=i) for i in range(4)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        prepare(tmp_path / folder, urls, threads=1 if folder == "a" else 8)[1]()
    a, b = (tmp_path / f"{name}/data/pairs/00000.parquet" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_retry_failed_asks_only_for_rows_worth_it_and_keeps_the_others(tmp_path, image_server):
    urls = [image_server.add_image("/0.jpg"), *(f"{image_server.url}/{i}.jpg" for i in (1, 2, 3))]
    image_server.pages["/1.jpg"] = (503, {}, b"")
    image_server.pages["/2.jpg"] = (500, {}, b"")
    root, do = prepare(tmp_path, urls)
    first = do()
    assert first.rejected == {"http_404": 1, "http_500": 1, "http_503": 1}
    before = rows(root)
    inputs = {0: first.input}
    todo = state(root, stage.PAIRS, settings=settings().fingerprint(), inputs=inputs)
    assert todo.current == [0]
    assert list(with_retries(todo, True).stale) == [0]

    image_server.add_image("/1.jpg", seed=7)
    image_server.hits.clear()
    second = do(retry_failed=True)
    assert dict(image_server.hits) == {"/1.jpg": 1, "/2.jpg": 1}
    assert second.rejected == {"http_404": 1, "http_500": 1}
    after = rows(root)
    assert after[1]["status"] == "success"
    assert [after[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]


def test_a_shard_written_but_not_committed_is_adopted_without_a_request(tmp_path, image_server):
    root, do = prepare(tmp_path, [image_server.add_image(f"/{i}.jpg") for i in range(3)])
    first = do()
    Ledger(root).retract("pairs", 0)
    image_server.hits.clear()
    again = do()
    assert again.output == first.output
    assert not image_server.hits


def test_other_settings_fetch_everything_again(tmp_path, image_server):
    root, do = prepare(tmp_path, [image_server.add_image("/0.jpg", 300, 300)])
    do()
    do(image_size=64)
    assert image_server.hits["/0.jpg"] == 2
    assert rows(root)[0]["width"] == 64


def test_a_shard_under_the_success_floor_is_not_committed(tmp_path, image_server):
    urls = [image_server.url + f"/{i}.jpg" for i in range(60)]
    root, do = prepare(tmp_path, urls, shard_size=60)
    with pytest.raises(ShardError, match=r"only 0\.0% of 60 rows .* floor of 20% \(http_404 60\)"):
        do()
    assert Ledger(root).records("pairs") == {} and root.names("pairs") == []
    assert do(success_floor=0.0).rejected == {"http_404": 60}


def test_a_broken_earlier_file_is_no_obstacle(tmp_path, image_server):
    root, do = prepare(tmp_path, [image_server.add_image("/0.jpg")])
    good = do()
    root.write_atomic("pairs/00000.parquet", root.read_bytes("pairs/00000.parquet")[:-9])
    Ledger(root).retract("pairs", 0)
    assert do().output == good.output


@pytest.mark.slow
def test_the_stage_downloads_all_shards_and_a_rerun_asks_for_nothing(
    ray_session, tmp_path, image_server
):
    urls = [image_server.add_image(f"/{i}.jpg", seed=i) for i in range(10)]
    urls[3] = image_server.url + "/gone"
    listed = tmp_path / "l.tsv"
    listed.write_text("".join(f"c\t{url}\n" for url in urls))
    root = Storage.open(tmp_path / "root")
    report = run_download(MANIFEST, root, settings(), Resources(workers=2), urls=str(listed))
    assert report.failed == {}
    assert sorted((r.shard, r.rows_in, r.rows_out) for r in report.done) == [
        (0, 4, 3),
        (1, 4, 4),
        (2, 2, 2),
    ]
    image_server.hits.clear()
    again = run_download(MANIFEST, root, settings(), Resources(workers=1), urls=str(listed))
    assert again.done == [] and not image_server.hits
