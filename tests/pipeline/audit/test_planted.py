"""Defects planted at known keys: the audit finds each one there, and nothing else."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codeseg.pipeline.audit.database import Audit, Finding
from codeseg.pipeline.audit.questions import check_names
from codeseg.pipeline.audit.views import AuditOptions
from codeseg.pipeline.engine.storage import Storage
from tests.helpers.audit_data import EMBED_DIM, EOS, Rows, Spoils, make_root, picture, recommit

MANIFEST = """
name = "planted"
title = "Planted"
background = false
images = 3
classes = ["cat", "dog", "traffic light", "bus", "boat"]
palette = [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]
[layout]
images = "images/{id}.jpg"
labels = "labels/{id}.png"
[labels]
rule = "identity"
"""
# one planted row among 340 is enough
LIMITS = dict.fromkeys(
    ("small_share", "aspect_share", "bytes_share", "blank_share", "caption_length_share",
     "truncated_share", "foreign_share", "boilerplate_share", "few_nouns_share", "hapax_share",
     "nonvisual_share", "rejected_share"), 0.001
) | {"success_warn": 0.845, "retryable_share": 0.01, "host_rows": 5, "caption_top_share": 0.01,
     "bytes_high": 30_000, "top_noun_share": 0.35}  # fmt: skip


def key(row: int) -> str:
    return f"00000{row:04d}"


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def spoil_pairs(rows: Rows) -> None:
    rows[9]["key"] = key(3)  # both failed, so no later table has it
    for row in range(203, 215, 2):  # alive or not: none is now
        dead = {name: None for name in rows[row] if name not in ("key", "url", "caption")}
        rows[row] |= dead | {"status": "failed", "error": "dns"}
        rows[row]["url"] = f"https://dead.example.org/{row}.jpg"
    rows[4]["width"] = None
    rows[5] |= {"original_width": 40, "original_height": 30}
    rows[6] |= {"original_width": 1000, "original_height": 100}
    noise = np.random.default_rng(7).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    rows[7] |= {"jpg": jpeg(Image.fromarray(noise), 95), "width": 200, "height": 200}
    rows[8]["jpg"] = jpeg(Image.new("RGB", (96, 80), (200, 30, 30)), 95)
    rows[10]["jpg"] = b"no picture" * 50
    rows[11]["height"] = 81
    rows[13]["sha256"] = rows[12]["sha256"]
    again = Image.open(io.BytesIO(rows[14]["jpg"]))
    rows[15]["jpg"] = jpeg(again, 60)
    rows[16]["caption"] = "boat"
    rows[18]["caption"] = "fengate barridge " + "the " * 80
    for row in (30, 31, 32, 34):
        rows[row]["caption"] = "the fengate by a barridge"
    rows[20]["caption"] = "der fengate und das barridge"
    rows[21]["caption"] = "собака fengate barridge"
    rows[22]["caption"] = "fengate barridge stock photo"
    rows[39]["sha256"] = sha256(picture(5039))  # a benchmark image, see `benchmark`


def spoil_nouns(rows: Rows) -> None:
    by_key = {row["key"]: row for row in rows}
    by_key[key(24)]["key"] = "000009999"
    by_key[key(25)]["caption_tokens"][2] = EOS
    by_key[key(26)]["nouns"][0]["text"] = "<b>"
    for row in (27, 28):
        by_key[key(row)]["nouns"][0]["text"] = "idea"
    by_key[key(35)]["nouns"][0]["spans"][0]["end"] = 60
    for row in rows:  # cat is now in two captions of five, dog in none
        for noun in row["nouns"]:
            noun["text"] = "cat" if noun["text"] == "dog" else noun["text"]


def spoil_vocabulary(rows: Rows) -> None:
    by_text = {row["text"]: row for row in rows}
    by_text["fengate"]["knowledge_embedding"] = np.full(EMBED_DIM, np.nan)
    by_text["barridge"]["knowledge_embedding"] = np.full(EMBED_DIM, 1.0)


def spoil_features(rows: Rows) -> None:
    del rows[-1]  # the last trainable caption
    by_key = {row["key"]: row for row in rows}
    by_key[key(40)]["image_scales"][2] = np.inf
    by_key[key(41)]["caption_states"][3] = np.nan
    by_key[key(42)]["image_scales"][:] = 0
    by_key[key(44)]["image_scales"] *= 1000
    by_key["000010000"]["caption_states"] = by_key["000010000"]["caption_states"][:-1]
    by_key[key(46)]["image_tokens"][:80] = 127
    by_key[key(47)]["noun_ids"][0] = 12345
    by_key[key(48)]["spans"][0]["end"] = 1
    by_key[key(50)]["caption_tokens"] = [*by_key[key(50)]["caption_tokens"][:-1], 9, EOS]
    by_key[key(50)]["caption_states"] = np.ones(
        len(by_key[key(50)]["caption_tokens"]) * 8, np.float16
    )


@pytest.fixture
def benchmark(tmp_path: Path) -> tuple[str, Path]:
    """Three images: one fresh, one of the data byte for byte, one of the data encoded again."""
    data = tmp_path / "benchmark"
    for folder in ("images", "labels"):
        (data / folder).mkdir(parents=True)
    near = jpeg(Image.open(io.BytesIO(picture(51))), 75)
    for name, content in (("fresh", picture(6000)), ("exact", picture(5039)), ("near", near)):
        (data / "images" / f"{name}.jpg").write_bytes(content)
        Image.new("L", (96, 80)).save(data / "labels" / f"{name}.png")
    manifest = tmp_path / "planted.toml"
    manifest.write_text(MANIFEST)
    return str(manifest), data


def findings(root: Path, **options: Any) -> dict[str, Finding]:
    with Audit(Storage.open(root), AuditOptions(**options)) as audit:
        return {finding.check: finding for finding in map(audit.check, check_names())}


def test_every_planted_row_is_found_and_nothing_else(
    tmp_path: Path, benchmark: tuple[str, Path]
) -> None:
    spoils = Spoils(spoil_pairs, spoil_nouns, spoil_features, spoil_vocabulary)
    root = make_root(tmp_path / "root", spoils, tokens="int8")
    (tmp_path / "run").mkdir()
    losses = pa.table({"step": [10, 20], "total": [1.0, np.nan], "data_wait_share": [0.0, 0.1]})
    pq.write_table(losses, tmp_path / "run" / "metrics.parquet")
    found = findings(
        root, limits=LIMITS, benchmarks=(benchmark,), run=tmp_path / "run", hashes=True
    )
    planted: dict[str, tuple[str, list[str]]] = {
        "keys_unique": ("fail", [f"{key(3)} in pairs"]),
        "keys_complete": ("fail", [
            f"{key(24)} no row in nouns", "000009999 in nouns without a picture",
            "000030099 no row in features"]),
        "ledger_balance": ("fail", ["features/00003"]),
        "pairs_success": ("warn", []),
        "pairs_errors": ("warn", ["http_404 58", "dns 6"]),
        "pairs_hosts": ("warn", ["dead.example.org 6"]),
        "pairs_fields": ("fail", [key(4)]),
        "picture_resolution": ("warn", [key(5)]),
        "picture_aspect": ("warn", [key(6)]),
        "picture_bytes": ("warn", [key(7)]),
        "picture_blank": ("warn", [key(8)]),
        "picture_decoding": ("fail", [key(10), key(11)]),
        "duplicates_exact": ("warn", [f"{key(12)} ×2"]),
        "duplicates_near": ("warn", [f"{key(14)} ~ {key(15)}"]),
        "leakage_exact": ("fail", [f"{key(39)} = exact.jpg"]),
        "leakage_near": ("fail", [f"{key(51)} ~ near.jpg"]),
        "caption_length": ("warn", [key(16)]),
        "caption_truncation": ("warn", [key(18)]),
        "caption_duplicates": ("warn", [f"{key(30)} ×4"]),
        "caption_language": ("warn", [key(20), key(21)]),
        "caption_boilerplate": ("warn", [key(22)]),
        "caption_tokens": ("fail", [key(25)]),
        "noun_rejections": ("warn", ["too_few_nouns 1"]),
        "noun_number": ("warn", [key(16)]),
        "noun_broken": ("warn", ["<b> 1"]),
        "noun_nonvisual": ("warn", ["idea 2"]),
        "noun_frequent": ("warn", ["cat 153"]),
        "noun_tail": ("warn", ["<b>"]),
        "noun_spans": ("fail", [key(35)]),
        "noun_coverage": ("warn", [f"{benchmark[0]}: dog 0"]),
        "vocabulary_entries": ("fail", ["barridge", "fengate"]),
        "feature_finite": ("fail", [key(40), key(41)]),
        "feature_norms": ("fail", [key(42), key(44)]),
        "feature_shapes": ("fail", ["000010000"]),
        "feature_saturation": ("warn", [key(46)]),
        "feature_links": ("fail", [key(35), key(47), key(48), key(50)]),
        "metrics_finite": ("fail", ["step 20: total"]),
    }  # fmt: skip
    wrong = {n: (f.verdict, f.keys, f.figures) for n, f in found.items() if f.verdict != "pass"}
    assert {name: value[:2] for name, value in wrong.items()} == planted, wrong


def test_every_planted_file_is_found_and_nothing_else(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    recommit(root, "pairs", 0, files={"pairs/00000.parquet": _info(root, sha256="0" * 64)})
    recommit(root, "pairs", 3, versions={"codeseg": "0.0.9"})
    recommit(root, "nouns", 1, input="older")
    recommit(root, "nouns", 0, settings="other")
    recommit(root, "nouns", 2, rows_out=5)
    narrow = pq.read_table(root / "nouns/00002.parquet").drop(["rejected"])
    pq.write_table(narrow, root / "nouns/00002.parquet")
    recommit(root, "nouns", 2, files={"nouns/00002.parquet": _info(root, "nouns/00002.parquet")})
    footer = bytearray((root / "nouns/00003.parquet").read_bytes())
    footer[-30:-8] = b"\xff" * 22
    (root / "nouns/00003.parquet").write_bytes(footer)
    (root / "features/00001.arrow").unlink()
    whole = (root / "features/00002.arrow").read_bytes()
    (root / "features/00002.arrow").write_bytes(whole[: len(whole) // 2])
    (root / "ledger/features/00003.json").unlink()
    (root / "pairs/00009.parquet").write_bytes(b"left behind")
    found = findings(root, hashes=True)
    files = found["ledger_files"]
    assert files.keys[0] == "features/00001.arrow: missing"
    assert files.keys[1].startswith("features/00002.arrow: unreadable")
    assert files.keys[2].startswith("nouns/00003.parquet: unreadable")
    assert files.keys[3:] == ["pairs/00000.parquet: changed bytes",
                              "features/00003.arrow: extra: not in the ledger"]  # fmt: skip
    planted: dict[str, tuple[str, list[str]]] = {
        "ledger_files": ("fail", files.keys),
        "ledger_balance": ("fail", ["features/00002", "nouns/00002"]),
        "ledger_complete": ("warn", ["features/00003"]),
        "ledger_fresh": ("warn", ["nouns/00001"]),
        "ledger_schemas": ("fail", ["nouns/00002.parquet: no column rejected"]),
        "ledger_settings": ("fail", [
            "nouns: 1 shards with other, first 00000", found["ledger_settings"].keys[1]]),
        "ledger_versions": ("warn", [
            "pairs: 1 shards with {codeseg=0.0.9}, first 00003",
            "pairs: 3 shards with {codeseg=0.1.0}, first 00000"]),
    }  # fmt: skip
    wrong = {n: (f.verdict, f.keys) for n, f in found.items() if f.verdict in ("warn", "fail")}
    assert wrong == planted
    assert files.figures | {"bytes": 0} == {
        "files": 14, "bytes": 0, "hashed": 13, "missing": 1, "extra": 2, "damaged": 3,
    }  # fmt: skip


def _info(root: Path, path: str = "pairs/00000.parquet", **changes: Any) -> dict[str, Any]:
    content = (root / path).read_bytes()
    return {"bytes": len(content), "sha256": sha256(content)} | changes
