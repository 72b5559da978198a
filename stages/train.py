"""`codeseg train ROOT [ROOT …] RUN`: features/ -> RUN, the trained segmenters."""

import os
from pathlib import Path
from typing import Annotated

import typer

from codeseg.stages.training.recipes import RECIPES, resolve


def train(
    root: Annotated[
        list[str],
        typer.Argument(help="One or more dataset roots with features: folders or s3:// URIs."),
    ],
    run: Annotated[Path, typer.Argument(help="Run folder; an existing one is resumed.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Named configuration (default: code_vitb16): " + ", ".join(RECIPES)),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="JSON or TOML configuration to use instead, such as RUN/config.json."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, as in train.steps=100.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE,SHARE…", help="Each root's share of the samples (default: by rows)."
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="OTHER_RUN",
            help="Start from another run's weights (fine-tuning), with a new schedule.",
        ),
    ] = None,
) -> None:
    """Train the segmenters on precomputed features.

    Ctrl-C and SIGTERM stop it after saving the current step. Rerun the same command to resume.
    """
    shares = [f"train.weights={weights}"] if weights else []
    wanted = resolve(recipe, config, [*(set_ or ()), *shares])
    from codeseg.stages.training.loop import fit  # late: refuse misspelled settings before torch

    if fit(root, run, wanted, from_) and os.environ.get("RANK", "0") == "0":  # once under torchrun
        typer.echo(f"next: codeseg evaluate {run} --benchmark NAME --data DIR")
