"""Our noun stage against a bare `nlp.pipe` loop with the same components, and over processes.

    python -m bench.nouns [--captions 3000] [--rounds 9] [--processes 1 2]

Bare is `nlp.pipe` on raw captions and a loop over tokens, nothing else. Ours is everything that
NounWorker does between reading and writing a shard: cleaning, CLIP tokens, tagging, spans and
rejections. It leaves out spaCy's attribute_ruler where that cannot change a tag, and multiplies
matrices with NumPy. So there are three peers: tok2vec, tagger and attribute_ruler, as one would
write it; only the components that ours runs; and, for information, those with NumPy's products,
which shows what ours does besides tagging.
Captions are made from templates and all distinct. All peers run alternately in one thread and are
timed in CPU seconds, so that other load matters little; the median of the rounds' ratios counts.
The exit code is 1 if one of the first two ratios is under 0.95.
"""

import argparse
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import spacy

from codeseg.pipeline.nouns.tagger import NEEDED, NOUN_TAGS, NounTagger, NounWorker, resolve_tagger

TARGET = 0.95
THINGS = "house dog boat tree car street garden woman man child bridge mountain river table cake"
PLACES = "lake city night market beach wedding festival kitchen museum stadium forest harbour"
WORDS = "old red beautiful wooden modern small famous local traditional young happy green"


def make_captions(count: int, seed: int = 0) -> list[str]:
    """Return distinct captions of 6 to 20 words."""
    draw = random.Random(seed)
    things, places, words = THINGS.split(), PLACES.split(), WORDS.split()
    captions = []
    for i in range(count):
        parts = [f"a {draw.choice(words)} {draw.choice(things)} with {draw.choice(things)}s"]
        parts.append(f"and the {draw.choice(words)} {draw.choice(things)} number {i}")
        if draw.random() < 0.5:
            parts.append(
                f"near the {draw.choice(places)} during a {draw.choice(places)} in the sun"
            )
        captions.append(" ".join(parts))
    return captions


def bare_seconds(load: Callable[[], Any], captions: list[str]) -> float:
    """Time a bare loop over tagged tokens, in a new pipeline: spaCy caches words."""
    nlp = load()
    start = time.process_time()
    for doc in nlp.pipe(captions, batch_size=512):
        [token.text for token in doc if token.tag_ in NOUN_TAGS]
    return time.process_time() - start


def our_seconds(captions: list[str]) -> float:
    """Time the rows of a shard, without reading and writing."""
    worker = NounWorker("/nowhere", asdict(resolve_tagger()))
    keys = [f"{i:09d}" for i in range(len(captions))]
    start = time.process_time()
    worker.rows(keys, captions)
    return time.process_time() - start


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    arguments = parser.parse_args()
    captions = make_captions(arguments.captions)
    name = resolve_tagger().tagger
    every = spacy.load(name).pipe_names
    kept = NounTagger(name)._nlp.pipe_names
    bare = {
        ", ".join(NEEDED): lambda: spacy.load(name, exclude=set(every) - set(NEEDED)),
        ", ".join(kept): lambda: spacy.load(name, exclude=set(every) - set(kept)),
        ", ".join(kept) + ", numpy's products": lambda: NounTagger(name)._nlp,
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in ("ours", *bare)}
    for _ in range(arguments.rounds):
        for kind, load in bare.items():
            seconds[kind].append(bare_seconds(load, captions))
        seconds["ours"].append(our_seconds(captions))
    rate = len(captions) / statistics.median(seconds["ours"])
    print(f"ours {rate:.0f} captions/s")
    ratios = []
    for kind in bare:
        pairs = zip(seconds[kind], seconds["ours"], strict=True)
        ratios.append(statistics.median(theirs / own for theirs, own in pairs))
        rate = len(captions) / statistics.median(seconds[kind])
        print(f"bare nlp.pipe, {kind}: {rate:.0f} captions/s, median ratio {ratios[-1]:.2f}")
    print(f"all rounds, seconds of CPU: {seconds}")
    for processes in arguments.processes:
        parts = [captions[i::processes] for i in range(processes)]
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            slowest = max(pool.map(our_seconds, parts, chunksize=1))
        print(f"{processes} processes: {len(captions) / slowest:.0f} captions/s")
    sys.exit(min(ratios[:2]) < TARGET)


if __name__ == "__main__":
    main()
