"""Kill -9 at random moments, over all offline stages; then every table must be as if undisturbed.

    python -m tests.kills [--kills 100] [--seed 0] [--scenes 60] [--scheduler ray|none] [--folder D]

Draws a storybook world, serves it on loopback, and runs download, nouns, features, features of a
random self-supervised ViT, and regions once undisturbed. Then rounds on fresh folders: each stage
is started and killed again and again, at most `KILLS_A_STAGE` times, then left to end; until the
kills asked for are spent. Half of the moments are spread over the whole run of a stage, half fall
shortly after a shard's commit.

With `ray` the commands run as users run them; half of the kills take the command alone, as
`kill -9` does, and Ray's processes live on into the next run; half take them too, as a power cut
does. With `none` the command does its shards itself, all else the same: many more kills a minute.
After every round all tables must equal the undisturbed ones byte for byte, and all ledger records
but for their seconds and owner. Exits 1 when they do not.
"""

import argparse
import contextlib
import importlib
import os
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import timm
import torch

from bench.soak import FORK, family, kill_all, outcome, serve
from codeseg.pipeline.engine import cluster, shards
from codeseg.pipeline.storybook import scenes as storybook
from codeseg.stages.cli import main as main_of_codeseg

STAGES = ("download", "nouns", "features", "vectors", "regions")
VIT = "test_vit"  # of timm, for tests
TABLES = ("urls", "pairs", "nouns", "vocabulary", "features", f"features-{VIT}", "regions")
# the ledger's folder, where it is not named as the command
COMMITS = {"download": "pairs", "vectors": f"features-{VIT}"}
KILLS_A_STAGE = 7
SHARD_SIZE = 6
# the heavy ones, so that a fork is at work at once
IMPORTED_BEFORE = (
    "ray.data",
    "spacy",
    "img2dataset.downloader",
    "open_clip",
    "codeseg.pipeline.features.worker",
    "timm",
)


def start(stage, root, world, scheduler):
    """Start a stage as a user would, but in a fork that has the libraries imported already."""
    clip = ["--clip", "storybook", "--pretrained", "storybook", "--views", 2]
    options = {
        "download": ["storybook", root, "--urls", world / "urls.tsv", "--allow-private-hosts"],
        "nouns": [root],
        "features": [root, *clip],
        "vectors": [root, *clip, "--backbone", VIT, "--weights", world / "vit.pt"],
        "regions": [root],
    }[stage]
    if stage == "download":
        options += ["--shard-size", SHARD_SIZE]
    words = ["features" if stage == "vectors" else stage, *map(str, options), "--workers", "2"]
    process = FORK.Process(target=command, args=(words, f"{root}.log", scheduler))
    process.start()
    return process


def command(words, log, scheduler):
    """Be the command `codeseg WORDS`, in a session of its own."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if scheduler == "none":
        for module in (cluster, shards):
            module.ray_session = contextlib.nullcontext
            module.fit_workers = lambda resources, memory: resources
            module.most_workers = lambda tasks, resources: 1
        shards._answers = one_by_one
    sys.argv = ["codeseg", *words]
    main_of_codeseg()


def one_by_one(tasks, constructor, resources, in_flight):
    """In place of Ray: the worker that it would run, here."""
    worker = shards._RayWorker(**constructor)
    for task in tasks:
        answer = worker({"shard": [task["shard"]], "input": [task["input"]]})
        yield answer["shard"][0], answer["error"][0]


def commits(root, stage):
    """Number and newest time of the stage's records."""
    folder = root / "ledger" / COMMITS.get(stage, stage)
    moments = []
    for path in folder.glob("[0-9]*.json"):
        with suppress(OSError):
            moments.append(path.stat().st_mtime_ns)
    return len(moments), max(moments, default=0)


def wait_for_moment(process, root, stage, draw, seconds):
    """Wait for a random moment of the stage; False when it ended first."""
    if draw.random() < 0.5:
        until, commit = draw.uniform(0, seconds), None
    else:
        until, commit = draw.uniform(0, seconds / 20), commits(root, stage)
    begun = None if commit else time.monotonic()
    while process.is_alive():
        if begun is None and commits(root, stage) != commit:
            begun = time.monotonic()
        if begun is not None and time.monotonic() - begun >= until:
            return True
        time.sleep(0.01)
    return False


def undisturbed(root, world, scheduler):
    """Run every stage; seconds of each."""
    seconds = {}
    for stage in STAGES:
        begin = time.monotonic()
        process = start(stage, root, world, scheduler)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{stage} failed: see {root}.log")
        seconds[stage] = time.monotonic() - begin
    print("undisturbed, seconds:", {s: round(t, 1) for s, t in seconds.items()}, flush=True)
    return seconds


def tormented(root, world, scheduler, draw, seconds, kills):
    """Run every stage, killing it up to `KILLS_A_STAGE` times; kills by (stage, kind)."""
    done = {}
    for stage in STAGES:
        orphans = []
        times = 0
        while True:
            process = start(stage, root, world, scheduler)
            kind = draw.choice(("command", "all")) if scheduler == "ray" else "all"
            spent = sum(done.values()) >= kills or times == KILLS_A_STAGE
            if spent or not wait_for_moment(process, root, stage, draw, seconds[stage]):
                process.join()
                kill_all(orphans)
                if process.exitcode:
                    raise RuntimeError(f"{stage} failed with {process.exitcode}: see {root}.log")
                break
            before = family(process.pid)
            process.kill()
            if kind == "all":
                kill_all(before)
            process.join()
            kill_all(orphans)  # those of the kill before this: they have met a whole run
            orphans = before if kind == "command" else []
            times += 1
            done[stage, kind] = done.get((stage, kind), 0) + 1
            left = f"{commits(root, stage)[0]} shards done"
            print(f"{root.name} {stage}: killed ({kind}), {left}", flush=True)
    return done


def main():
    """Rounds until the kills are spent; compare after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--scheduler", choices=("ray", "none"), default="ray")
    parser.add_argument("--folder", type=Path, help="kept for a look; a temporary one without it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        world = folder / "world"
        captions = storybook.write_world(world / "images", arguments.scenes)
        storybook.write_url_list(world / "urls.tsv", serve(world / "images"), captions)
        vit = timm.create_model(VIT, num_classes=0)
        torch.save(vit.state_dict(), world / "vit.pt")
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        for module in IMPORTED_BEFORE:
            importlib.import_module(module)
        seconds = undisturbed(folder / "clean", world, arguments.scheduler)
        expected = outcome(folder / "clean", TABLES)
        draw = random.Random(arguments.seed)
        total, rounds = {}, 0
        while sum(total.values()) < arguments.kills:
            rounds += 1
            left = arguments.kills - sum(total.values())
            root = folder / f"round-{rounds}"
            for key, count in tormented(
                root, world, arguments.scheduler, draw, seconds, left
            ).items():
                total[key] = total.get(key, 0) + count
            found = outcome(root, TABLES)
            names = sorted(expected.keys() | found.keys())
            differing = [name for name in names if expected.get(name) != found.get(name)]
            print(f"round {rounds}: {len(found)} files, differing: {differing or 'none'}")
            if differing:
                sys.exit(1)
            print(f"{sum(total.values())} kills so far: {total}", flush=True)


if __name__ == "__main__":
    main()
