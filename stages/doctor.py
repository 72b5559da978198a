"""`codeseg doctor [ROOT]`: check this machine; print a line and a fix for each finding. Light.

Checks that may hang run in their own process: python -m codeseg.stages.doctor ask_host ADDRESS
"""

import logging
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import typer
from packaging.requirements import Requirement

from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.requirements import read_requirements
from codeseg.pipeline.engine.shards import one_line
from codeseg.pipeline.engine.storage import Storage, write_json
from codeseg.pipeline.features.plan import JPG_BYTES, FeatureOptions, resolve_settings, row_bytes
from codeseg.pipeline.nouns.tagger import resolve_tagger
from codeseg.pipeline.stream.feature_settings import ClipFacts
from codeseg.stages.options import RayAddress

COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}
DEFAULTS = FeatureOptions()
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader")


def doctor(
    root: Annotated[
        str | None, typer.Argument(help="Dataset root, existing or planned: a folder or a URI.")
    ] = None,
    clip: Annotated[
        str, typer.Option(help="open_clip model name, JSON config file, or storybook.")
    ] = DEFAULTS.clip,
    pretrained: Annotated[
        str, typer.Option(help="Weights: a tag of the model, a file, or storybook.")
    ] = DEFAULTS.pretrained,
    spacy_model: Annotated[str | None, typer.Option(help="Tagger: package or folder.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Images to plan the disk for.")] = None,
    image_tokens: Annotated[
        str, typer.Option(help="Form of the features to plan for: fp16, int8 or none.")
    ] = DEFAULTS.image_tokens,
    views: Annotated[int, typer.Option(min=1, help="Views per image.")] = DEFAULTS.views,
    ray_address: RayAddress = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the findings here as JSON.")
    ] = None,
) -> None:
    """Check this machine for missing requirements and print fixes.

    Exits with 1 if anything is missing; warnings do not count.
    Example: codeseg doctor data/cc3m --rows 3318333 --ray-address auto
    """
    options = FeatureOptions(
        clip=clip, pretrained=pretrained, image_tokens=image_tokens, views=views
    )
    findings = []
    for what, finding in examine(options, root, rows, spacy_model, ray_address):
        typer.secho(f"{finding.state:<8}", fg=COLOURS[finding.state], nl=False)
        typer.echo(f"{what}: {finding.found}")
        if finding.fix:
            typer.echo(f"{'':8}-> {finding.fix}")
        findings.append({"what": what, **asdict(finding)})
    missing = sum(finding["state"] == "missing" for finding in findings)
    if json_file is not None:
        write_json(json_file, {"missing": missing, "checks": findings})
    if missing:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    state: Literal["ok", "warn", "missing"]
    """missing: something will fail; warn: something is slower, or only an unused part fails."""
    found: str
    fix: str = ""
    """The command that fixes it, or what to do if no command can."""


def examine(
    options: FeatureOptions, root: str | None, rows: int | None, tagger: str | None, ray: str | None
) -> Iterator[tuple[str, Finding]]:
    """Run the checks one after another; an error in a check is also a finding."""
    checks: dict[str, Callable[[], Finding]] = {"Python": check_python}
    for extra, group in read_requirements().items():
        what, needed = f"packages [{extra}]" if extra else "packages", extra in ("", "pipeline")
        checks[what] = partial(check_packages, group, needed=needed)
    checks["tagger"] = partial(check_tagger, tagger)
    checks[f"CLIP {options.clip}"] = partial(check_clip, options.clip, options.pretrained)
    checks["GPUs"] = check_gpus
    fix = "set a resolver in /etc/resolv.conf; for large downloads, a local one (unbound)"
    checks["name resolution"] = partial(ask, ask_host, "huggingface.co", fix, 5, "warn")
    if root is not None and "://" in root:
        fix = "aws configure (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), and check the URI"
        checks[f"access to {root}"] = partial(ask, ask_storage, root, fix)
    elif root is not None:
        checks[f"disk of {root}"] = partial(check_disk, root, options, rows)
    if ray is not None:
        fix = "ray start --head there; the same Python and `pip install ray==…` on every node"
        checks[f"Ray at {ray}"] = partial(ask, ask_ray, ray, fix)
    for what, check in checks.items():
        try:
            yield what, check()
        except Exception as error:  # the doctor must answer in any state of the machine
            yield what, Finding("missing", one_line(error))


def check_python(running: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Warn about a Python on which img2dataset cannot be imported."""
    found = ".".join(map(str, running))
    if running < (3, 13):
        return Finding("ok", found)
    fix = "python3.12 -m venv .venv, and install codeseg there"
    return Finding("warn", f"{found}: `codeseg download` needs 3.11 or 3.12", fix)


def check_packages(requirements: Sequence[Requirement], *, needed: bool) -> Finding:
    """Compare requirements with the installed packages, without importing any."""
    short = {}
    for requirement in requirements:
        wanted = str(requirement).partition(";")[0]
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            short[wanted] = "not installed"
        else:
            if not requirement.specifier.contains(found, prereleases=True):
                short[wanted] = f"{found} is installed"
    if not short:
        return Finding("ok", f"{len(requirements)} fit")
    listed = ", ".join(f"{wanted} ({found})" for wanted, found in short.items())
    return Finding("missing" if needed else "warn", listed, f"pip install {shlex.join(short)}")


def check_tagger(name: str | None = None) -> Finding:
    """Find the spaCy tagger of `codeseg nouns`; the error says how to get one."""
    tagger = resolve_tagger(name)
    return Finding("ok", f"{tagger.tagger} {tagger.tagger_version}")


def check_clip(model: str, pretrained: str) -> Finding:
    """Find the CLIP's weights on this machine; a known tag is fetched only on first use."""
    import open_clip

    from codeseg.model.clip.hub import hub_or_cache
    from codeseg.model.clip.weights import find_weights, read_config

    read_config(model)
    if pretrained.split(":")[0] == "random":
        return Finding("ok", pretrained)
    try:
        with hub_or_cache(cache_only=True):
            return Finding("ok", f"{pretrained}: {find_weights(model, pretrained)[0]}")
    except ValueError:
        if not open_clip.get_pretrained_cfg(model, pretrained):
            raise
    fetch = f"open_clip.download_pretrained(open_clip.get_pretrained_cfg{model, pretrained})"
    reason = f"the weights {pretrained!r} are not cached; the first use fetches them"
    return Finding("warn", reason, f'python -c "import open_clip; {fetch}"')


def check_gpus(query: Sequence[str] = NVIDIA_SMI) -> Finding:
    """List the GPUs with their free memory, and check whether torch can use them."""
    if shutil.which(query[0]) is None:
        reason = "no NVIDIA GPU: everything runs on the CPU, too slowly for full-size training"
        return Finding("warn", reason, "train on a machine with a GPU and its driver")
    asked = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if asked.returncode or not asked.stdout.strip():
        reason = " ".join((asked.stderr or asked.stdout).split())
        return Finding("missing", f"nvidia-smi fails: {reason}", "reinstall the GPU's driver")
    import torch

    listed = "; ".join(f"{line} free" for line in asked.stdout.strip().splitlines())
    if torch.cuda.is_available():
        return Finding("ok", listed)
    reason = f"{listed}; but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use them"
    return Finding("missing", reason, "pip install --force-reinstall torch torchvision")


def check_disk(root: str, options: FeatureOptions, rows: int | None = None) -> Finding:
    """Compare free space with pairs and features still to write; rows: None = the ledger's."""
    storage = Storage.open(root)
    free, ledger = storage.free_bytes() or 0, Ledger(storage)
    pairs, nouns, features = (ledger.records(s).values() for s in ("pairs", "nouns", "features"))
    known = rows or sum(record.rows_out for record in nouns or pairs)
    if not known:
        return Finding("ok", f"{free / 1e9:,.1f} GB free, no size known: give --rows")
    from codeseg.model.clip.weights import read_config

    config = read_config(options.clip)
    vision, text = config["vision_cfg"], config["text_cfg"]
    sizes = {name: vision[name] for name in ("image_size", "patch_size", "width", "layers")}
    facts = ClipFacts(
        options.clip, options.pretrained, "", **sizes, text_width=text["width"],
        embed_dim=config["embed_dim"], context_length=text.get("context_length", 77),
    )  # fmt: skip
    planned = known * row_bytes(resolve_settings(options, facts)) - sum(
        record.bytes for record in features
    )
    if rows:
        planned += rows * JPG_BYTES - sum(record.bytes for record in pairs)
    found = f"{free / 1e9:,.1f} GB free, {max(planned, 0) / 1e9:,.1f} GB planned"
    fix = "a ROOT on a larger disk, or `codeseg features --image-tokens int8` (half) or `none`"
    return Finding("ok", found) if planned <= free else Finding("missing", found, fix)


def ask(
    probe: Callable[[str], str],
    address: str,
    fix: str,
    seconds: float = 60,  # S3 and Ray retry for a long time before they give up
    otherwise: Literal["warn", "missing"] = "missing",
) -> Finding:
    """Run a probe in its own process and end it if it does not answer in time."""
    command = [sys.executable, "-m", "codeseg.stages.doctor", probe.__name__, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Finding(otherwise, f"no answer in {seconds:g} s", fix)
    lines = (done.stderr if done.returncode else done.stdout).splitlines()
    last = lines[-1] if lines else f"it ended with code {done.returncode}"
    return Finding(otherwise, last, fix) if done.returncode else Finding("ok", last)


def ask_host(name: str) -> str:
    """Return a host's first address."""
    return str(socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)[0][4][0])


def ask_storage(uri: str) -> str:
    """List an object store's folder, write a small file to it and delete the file."""
    storage = Storage.open(uri)
    storage.names("")
    name = f".doctor-{uuid4().hex}"  # names that begin with a dot are never listed
    try:
        storage.write_atomic(name, b"written by codeseg doctor\n")
    finally:
        storage.delete(name)
    return "listed, written, deleted"


def ask_ray(address: str) -> str:
    """Join a cluster, which compares the versions of Ray and Python, and leave it."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if parts.hostname and parts.port:  # fails at once; Ray would retry for minutes
        socket.create_connection((parts.hostname, parts.port), 5).close()
    import ray

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    cluster: Any = ray  # two of its functions have no types
    have, nodes = cluster.cluster_resources(), sum(node["Alive"] for node in cluster.nodes())
    ray.shutdown()
    return (
        f"nodes: {nodes}, cores: {have.get('CPU', 0):g}, GPUs: {have.get('GPU', 0):g}; "
        f"Ray {ray.__version__} and Python {sys.version.split()[0]}, as here"
    )


if __name__ == "__main__":
    try:
        print(globals()[sys.argv[1]](sys.argv[2]))
    except Exception as error:
        sys.exit(one_line(error))
