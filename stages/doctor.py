"""`codeseg doctor [ROOT]`: what this machine lacks, and the command that mends it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from codeseg.pipeline.engine.doctor import (
    Finding,
    check_clip,
    check_disk,
    check_gpus,
    check_names,
    check_packages,
    check_python,
    check_tagger,
    is_remote,
)
from codeseg.pipeline.engine.doctor_reach import check_access, check_ray
from codeseg.pipeline.engine.requirements import read_requirements
from codeseg.pipeline.engine.shards import describe
from codeseg.pipeline.features.plan import Wishes
from codeseg.stages.options import RayAddress
from codeseg.stages.score import write_json

COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}
DEFAULTS = Wishes()


def doctor(
    root: Annotated[
        str | None, typer.Argument(help="Dataset root that is or will be: a folder or s3:// URI.")
    ] = None,
    clip: Annotated[
        str, typer.Option(help="open_clip model name, a JSON config, or storybook.")
    ] = DEFAULTS.clip,
    pretrained: Annotated[
        str, typer.Option(help="Weights: a tag of the model, a file, storybook.")
    ] = DEFAULTS.pretrained,
    spacy_model: Annotated[
        str | None, typer.Option(help="The tagger: a spaCy package or folder.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Images of the dataset, to plan the disk for.")
    ] = None,
    image_tokens: Annotated[
        str, typer.Option(help="fp16, int8 or none: the form of the features to plan for.")
    ] = DEFAULTS.image_tokens,
    views: Annotated[
        int, typer.Option(min=1, help="Views of each image to plan for.")
    ] = DEFAULTS.views,
    ray_address: RayAddress = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the same there as JSON.")
    ] = None,
) -> None:
    """Say what this machine lacks before anything runs, and the command that mends each.

    Exits with 1 when anything is missing; a warning is no failure.
    Example: codeseg doctor data/cc3m --rows 3318333 --ray-address auto
    """
    wishes = Wishes(clip=clip, pretrained=pretrained, image_tokens=image_tokens, views=views)
    console = Console()
    findings = []
    for finding in examine(wishes, root, rows, spacy_model, ray_address):
        show(console, finding)
        findings.append(finding)
    counts = Counter(finding.state for finding in findings)
    if json_file is not None:
        checks = [asdict(finding) for finding in findings]
        write_json(json_file, {"missing": counts["missing"], "checks": checks})
    if counts["missing"]:
        raise typer.Exit(1)


def examine(
    wishes: Wishes,
    root: str | None,
    rows: int | None,
    spacy_model: str | None,
    ray_address: str | None,
) -> Iterator[Finding]:
    """Run the checks one after the other; a check that cannot be made is a finding, too."""
    checks: list[tuple[str, Callable[[], Finding]]] = [("Python", check_python)]
    try:
        for extra, group in read_requirements().items():
            checks.append((f"packages [{extra}]", partial(check_packages, extra, group)))
    except ValueError as error:
        yield Finding("packages", "missing", str(error), "pip install 'codeseg[pipeline]'")
    checks += [
        ("tagger", lambda: check_tagger(spacy_model)),
        ("CLIP", lambda: check_clip(wishes.clip, wishes.pretrained)),
        ("GPUs", check_gpus),
        ("name resolution", check_names),
    ]
    if root is not None:
        checks.append(("disk", lambda: check_disk(root, wishes, rows)))
        if is_remote(root):
            checks.append(("access", lambda: check_access(root)))
    if ray_address is not None:
        checks.append(("Ray", lambda: check_ray(ray_address)))
    for what, check in checks:
        try:
            yield check()
        except Exception as error:  # the doctor answers whatever state the machine is in
            yield Finding(what, "missing", f"cannot be checked: {describe(error)}")


def show(console: Console, finding: Finding) -> None:
    """Print a finding on a line, and below it what mends it."""
    line = Text.assemble(
        (f"{finding.state:<8}", COLOURS[finding.state]), f"{finding.what}: {finding.found}"
    )
    console.print(line, soft_wrap=True)
    if finding.mend:
        console.print(Text(f"{'':8}-> {finding.mend}"), soft_wrap=True)
