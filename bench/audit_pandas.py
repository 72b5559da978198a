"""The audit's checks as one would write them in pandas, for the comparison in bench/audit.py.

In: a dataset root. Out: check name -> a function that reads the columns it needs and returns one
figure, named as in the check.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from codeseg.pipeline.audit.questions import class_names

OTHER_SCRIPT = r"[^\x00-\u024f\u2000-\u206f]"
FOREIGN = r"(?i)\b(?:der|die|das|und|mit|für|auf|ein|eine|von|le|la|les|des|une|dans|avec|pour|sur|el|los|las|del|con|para|una|por|il|della|nel|di|uma|com|dos|het|een|van|och|för)\b"  # noqa: E501, a list of words
ENGLISH = r"(?i)\b(?:the|of|and|with|in|on|a|an|for|to|is|at|by|from|as)\b"
BOILERPLATE = r"click (?:here|to)|stock (?:photo|image|vector|illustration|footage)|royalty[- ]free|all rights reserved|copyright|©|getty ?images|shutterstock|image may contain|free shipping|add to cart|\.(?:jpe?g|png|gif|webp)\b|^(?:img|dsc|dscn|image|photo|picture)[ _-]*[0-9]+$|https?://|www\."  # noqa: E501, a list of phrases
BROKEN = r"^[^a-z]*$|^[a-z]$|[<>{}\\|]|&[a-z#0-9]+;|�|Ã.|â€|https?:|www\."
NONVISUAL = ("photo", "image", "picture", "stock", "vector", "background", "time", "day", "idea")
RUN_TOGETHER = {
    "pottedplant": "potted plant", "diningtable": "dining table", "tvmonitor": "tv monitor",
    "playingfield": "playing field",
}  # fmt: skip
CONTEXT = 77


class PandasAudit:
    """Plain pandas checks; every public method is one and returns (figure's name, its value)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _pairs(self, *columns: str) -> pd.DataFrame:
        return pd.read_parquet(self._root / "pairs", columns=list(columns))

    def _alive(self, *columns: str) -> pd.DataFrame:
        pairs = self._pairs("status", *columns)
        return pairs[pairs.status == "success"]

    def _nouns(self, *columns: str) -> pd.DataFrame:
        return pd.read_parquet(self._root / "nouns", columns=list(columns))

    def _counts(self) -> pd.Series:
        nouns = self._nouns("nouns", "rejected")
        texts = nouns[nouns.rejected.isna()].nouns.map(lambda found: [n["text"] for n in found])
        return texts.explode().value_counts()

    def keys_unique(self) -> tuple[str, Any]:
        """Count keys that occur more than once."""
        repeated = sum(
            int((table.key.value_counts() > 1).sum())
            for table in (self._pairs("key"), self._nouns("key"))
        )
        return "repeated", repeated

    def keys_complete(self) -> tuple[str, Any]:
        """Count keys that occur only in pictures or only in nouns."""
        alive, nouns = self._alive("key").key, self._nouns("key").key
        return "missing", int((~alive.isin(nouns)).sum() + (~nouns.isin(alive)).sum())

    def pairs_errors(self) -> tuple[str, Any]:
        """Count distinct error reasons."""
        pairs = self._pairs("status", "error")
        return "reasons", len(pairs[pairs.status != "success"].error.value_counts())

    def pairs_fields(self) -> tuple[str, Any]:
        """Count rows whose fields contradict their status."""
        pairs = self._pairs(
            "key", "status", "url", "error", "width", "height", "original_width",
            "original_height", "sha256",
        )  # fmt: skip
        sizes = pairs[["width", "height", "original_width", "original_height"]]
        success = pairs.status == "success"
        incomplete = success & (
            pairs.error.notna() | sizes.isna().any(axis=1) | (sizes.min(axis=1) < 1)
            | pairs.sha256.isna()
        )  # fmt: skip
        wrong = ~pairs.status.isin(["success", "failed"]) | pairs.url.isna() | incomplete
        return "incomplete", int((wrong | (~success & pairs.error.isna())).sum())

    def pairs_hosts(self) -> tuple[str, Any]:
        """Count hosts, and check the success of each."""
        pairs = self._pairs("url", "status")
        hosts = pairs.url.str.split("/", n=3).str[2].str.split(":", n=1).str[0]
        success = (pairs.status == "success").groupby(hosts).agg(["size", "mean"])
        judged = success[success["size"] >= 50]
        assert not (judged["mean"] < 0.1).any()
        return "hosts", len(success)

    def pairs_success(self) -> tuple[str, Any]:
        """Count pictures."""
        return "pictures", int((self._pairs("status").status == "success").sum())

    def picture_aspect(self) -> tuple[str, Any]:
        """Return the share of extreme aspect ratios."""
        sides = self._alive("key", "original_width", "original_height")
        sides = sides[["original_width", "original_height"]]
        aspect = sides.max(axis=1) / sides.min(axis=1)
        aspect.median()
        return "extreme", round(float((aspect > 3).mean()), 4)

    def picture_resolution(self) -> tuple[str, Any]:
        """Return the share of small pictures."""
        alive = self._alive("key", "original_width", "original_height")
        side = alive[["original_width", "original_height"]].min(axis=1)
        side.median()
        return "small", round(float((side < 64).mean()), 4)

    def duplicates_exact(self) -> tuple[str, Any]:
        """Count pictures that repeat another."""
        return "repeats", int(self._alive("key", "sha256").sha256.duplicated().sum())

    def caption_boilerplate(self) -> tuple[str, Any]:
        """Count captions with stock phrases."""
        captions = self._alive("key", "caption").caption
        return "captions", int(captions.str.lower().str.contains(BOILERPLATE).sum())

    def caption_duplicates(self) -> tuple[str, Any]:
        """Count distinct captions."""
        return "distinct_captions", len(self._alive("key", "caption").caption.value_counts())

    def caption_language(self) -> tuple[str, Any]:
        """Return the share of captions not in English."""
        captions = self._alive("key", "caption").caption
        script = captions.str.contains(OTHER_SCRIPT)
        words = captions.str.contains(FOREIGN) & ~captions.str.contains(ENGLISH)
        assert not script.any()
        return "other_words", round(float(words.mean()), 4)

    def caption_length(self) -> tuple[str, Any]:
        """Return the mean number of words."""
        captions = self._alive("key", "caption").caption
        captions.str.len().median()
        return "mean_words", round(float(captions.str.split(" ").str.len().mean()), 1)

    def caption_tokens(self) -> tuple[str, Any]:
        """Count token lists without SOS or EOS, or of a wrong length."""
        nouns = self._nouns("key", "caption_tokens", "rejected")
        tokens = nouns[nouns.rejected.isna()].caption_tokens
        sos, eos = tokens.iloc[0][0], tokens.iloc[0][-1]
        right = tokens.map(
            lambda ids: (
                3 <= len(ids) <= CONTEXT
                and ids[0] == sos
                and ids[-1] == eos
                and (ids == eos).sum() == 1
            )
        )
        return "wrong", int((~right).sum())

    def caption_truncation(self) -> tuple[str, Any]:
        """Return the mean number of tokens per caption."""
        lengths = self._nouns("key", "caption_tokens").caption_tokens.map(len)
        return "mean_tokens", round(float(lengths.mean()), 1)

    def noun_broken(self) -> tuple[str, Any]:
        """Count nouns that are not words."""
        return "broken", int(self._counts().index.str.contains(BROKEN).sum())

    def noun_coverage(self) -> tuple[str, Any]:
        """Count class names that occur as a noun in fewer than ten captions."""
        names = [_written(name) for name in class_names(()).column("class").to_pylist()]
        wanted: dict[str, set[str]] = {}
        for name in set(names):
            for form in _forms(name.split(" ")[-1]):
                wanted.setdefault(form, set()).add(name)
        nouns = self._nouns("caption", "nouns", "rejected")
        nouns = nouns[nouns.rejected.isna()]
        counts: Counter[str] = Counter()
        for caption, found in zip(nouns.caption, nouns.nouns, strict=True):
            heads = [wanted[noun["text"]] for noun in found if noun["text"] in wanted]
            for name in set().union(*heads):
                counts[name] += " " not in name or name in caption
        return "uncovered", sum(counts[name] < 10 for name in names)

    def noun_frequent(self) -> tuple[str, Any]:
        """Return the share of captions with the most frequent noun."""
        nouns = self._nouns("rejected")
        share = self._counts().max() / nouns.rejected.isna().sum()
        return "share", round(float(share), 4)

    def noun_nonvisual(self) -> tuple[str, Any]:
        """Return the share of nouns that name nothing visible."""
        counts = self._counts()
        return "nonvisual", round(
            float(counts[counts.index.isin(NONVISUAL)].sum() / counts.sum()), 4
        )

    def noun_number(self) -> tuple[str, Any]:
        """Return the mean number of nouns per caption."""
        lengths = self._nouns("key", "nouns").nouns.map(len)
        return "mean", round(float(lengths.mean()), 2)

    def noun_rejections(self) -> tuple[str, Any]:
        """Count trainable captions."""
        return "trainable", int(self._nouns("rejected").rejected.isna().sum())

    def noun_spans(self) -> tuple[str, Any]:
        """Count captions with spans outside their tokens."""
        nouns = self._nouns("key", "nouns", "caption_tokens", "rejected")
        nouns = nouns[nouns.rejected.isna()]
        wrong = [
            any(
                len(noun["spans"]) == 0
                or any(
                    span["start"] < 1 or not span["start"] < span["end"] < len(tokens)
                    for span in noun["spans"]
                )
                for noun in found
            )
            for found, tokens in zip(nouns.nouns, nouns.caption_tokens, strict=True)
        ]
        return "wrong", sum(wrong)

    def noun_tail(self) -> tuple[str, Any]:
        """Count distinct nouns."""
        counts = self._counts().sort_values()
        (counts == 1).mean()
        return "distinct_nouns", len(counts)

    def checks(self) -> dict[str, Callable[[], tuple[str, Any]]]:
        """Return every check by its name."""
        names = [name for name in dir(self) if not name.startswith("_") and name != "checks"]
        return {name: getattr(self, name) for name in names}


def _written(name: str) -> str:
    """Return a class name as it is written in a caption."""
    name = RUN_TOGETHER.get(name, name.lower())
    name = re.sub("[-_]", " ", re.sub("-(other|stuff|merged)$", "", name)).strip()
    return re.sub(r" *\(.*\)", "", name)


def _forms(head: str) -> set[str]:
    """Return the singular and plural forms of a word."""
    plurals = (re.sub("y$", "ies", head), re.sub("person$", "people", head))
    return {head, head + "s", head + "es", *plurals, re.sub("man$", "men", head)}
