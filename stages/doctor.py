"""`codeseg doctor [ROOT]`: this machine -> a line per check, with a fix. Light."""

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Literal
from uuid import uuid4

import typer
from packaging.requirements import Requirement

from codeseg.pipeline.engine.requirements import read_requirements
from codeseg.pipeline.engine.shards import one_line
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.nouns.tagger import resolve_tagger
from codeseg.stages.options import ClipModel, ClipWeights

COLORS = {"ok": "green", "warn": "yellow", "missing": "red"}


def doctor(
    root: Annotated[
        str, typer.Argument(help="Dataset root, existing or planned: a folder or a URI.")
    ] = ".",
    clip: ClipModel = "ViT-B-16",
    pretrained: ClipWeights = "openai",
) -> None:
    """Check this machine for missing requirements and print fixes.

    Exits with 1 if anything is missing; warnings do not count.
    Example: codeseg doctor data/cc3m
    """
    checks: dict[str, Callable[[], Finding]] = {"Python": check_python}
    for extra, group in read_requirements().items():
        what, needed = f"extra {extra}" if extra else "packages", extra in ("", "pipeline")
        checks[what] = partial(check_packages, group, needed=needed)
    checks |= {
        "tagger": check_tagger,
        "GPUs": check_gpus,
        f"CLIP {clip}/{pretrained}": partial(check_clip, clip, pretrained),
        f"space of {root}": partial(check_space, root),
    }
    missing = False
    for what, check in checks.items():
        try:
            finding = check()
        except Exception as error:  # a broken machine must not break the doctor
            finding = Finding("missing", one_line(error))
        missing = missing or finding.state == "missing"
        typer.secho(f"{finding.state:<8}", fg=COLORS[finding.state], nl=False)
        typer.echo(f"{what}: {finding.found}")
        if finding.fix:
            typer.echo(f"{'':8}-> {finding.fix}")
    if missing:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Finding:
    """The result of one check, and how to fix it."""

    state: Literal["ok", "warn", "missing"]  # warn: something is slow, or fails only if used
    found: str
    fix: str = ""


def check_python(running: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Warn about a Python on which img2dataset cannot be imported."""
    fix = "" if running < (3, 13) else "python3.12 -m venv .venv, and install codeseg there"
    found = f"{running[0]}.{running[1]}; `codeseg download` needs 3.11 or 3.12"
    return Finding("warn" if fix else "ok", found, fix)


def check_packages(requirements: Sequence[Requirement], *, needed: bool) -> Finding:
    """Compare requirements with the installed packages, without importing any."""
    short = {}
    for requirement in requirements:
        wanted = str(requirement).partition(";")[0]
        try:
            found = version(requirement.name)
            if not requirement.specifier.contains(found, prereleases=True):
                short[wanted] = f"{found} is installed"
        except PackageNotFoundError:
            short[wanted] = "not installed"
    if not short:
        return Finding("ok", f"{len(requirements)} fit")
    listed = ", ".join(f"{wanted} ({found})" for wanted, found in short.items())
    return Finding("missing" if needed else "warn", listed, f"pip install {shlex.join(short)}")


def check_tagger() -> Finding:
    """Find the spaCy tagger of `codeseg nouns`, or raise an error that says how to get one."""
    tagger = resolve_tagger()
    return Finding("ok", f"{tagger.tagger} {tagger.tagger_version}")


def check_gpus(driver: str = "nvidia-smi") -> Finding:
    """Check whether torch can use this machine's GPUs."""
    import torch

    built = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("ok", f"{built}: {', '.join(names)}")
    if shutil.which(driver):
        fix = f"{driver}, which shows the driver; pip install --force-reinstall torch torchvision"
        return Finding("missing", f"{built} cannot use the NVIDIA GPU", fix)
    fix = "train at real size on a machine with a GPU and its driver"
    return Finding("warn", f"{built} finds no GPU: everything runs on the CPU", fix)


def check_clip(model: str, pretrained: str) -> Finding:
    """Find the CLIP's weights on this machine, or else check whether the hub can be reached."""
    import open_clip
    from huggingface_hub import constants

    from codeseg.model.clip.hub import hub_or_cache
    from codeseg.model.clip.weights import find_weights, read_config

    read_config(model)
    try:
        with hub_or_cache(cache_only=True):
            return Finding("ok", f"{pretrained}: {find_weights(model, pretrained)[0]}")
    except ValueError:
        if not open_clip.get_pretrained_cfg(model, pretrained):
            raise
    with hub_or_cache():
        if constants.HF_HUB_OFFLINE:
            fix = "connect to a network, check HF_ENDPOINT, or use a file with --pretrained FILE"
            return Finding("warn", f"not cached, and cannot reach {constants.ENDPOINT}", fix)
    fetch = f"open_clip.download_pretrained(open_clip.get_pretrained_cfg{model, pretrained})"
    return Finding("warn", "the first use fetches it", f'python -c "import open_clip; {fetch}"')


def check_space(root: str) -> Finding:
    """Return a root's free space; in an object store, write a small file and delete it."""
    storage = Storage.open(root)
    if (free := storage.free_bytes()) is not None:
        return Finding("ok", f"{free / 1e9:,.1f} GB free (`codeseg features` prints its need)")
    name = f".doctor-{uuid4().hex}"  # names that begin with a dot are never listed
    storage.write_atomic(name, b"")
    storage.delete(name)
    return Finding("ok", "written and deleted")
