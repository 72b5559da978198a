"""`codeseg app`: a segmenter -> a page in the browser, on this machine alone unless told otherwise.

In: a RUN, a checkpoint or a hub id; none: the embedded CLIP. Out: a server until Ctrl-C.
"""

from typing import Annotated

import typer
from rich.console import Console

from codeseg.stages.browser.guard import LOOPBACK
from codeseg.stages.options import Clip, Device, Pretrained, prediction_settings


def app(
    run: Annotated[
        str | None,
        typer.Option(help="RUN, checkpoint or hub id (default: a CLIP alone)."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="code | maskclip | sclip | clearclip | naclip …")
    ] = None,
    clip: Clip = None,
    pretrained: Pretrained = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default serves this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    device: Device = "auto",
) -> None:
    """Serve a page that segments pictures in the browser: drop one, type words, see the masks.

    Example: codeseg app --run runs/code
    """
    from codeseg.model.inference.segmenter import Segmenter
    from codeseg.stages.browser.page import build
    from codeseg.stages.browser.serve import serve

    console = Console()
    segmenter = Segmenter.open(
        run, prediction_settings(method, None), clip=clip, pretrained=pretrained, device=device
    )
    if host not in LOOPBACK:
        console.print(
            f"warning: --host {host} lets everyone who reaches this machine use the page",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    page = build(segmenter, model_line(run, segmenter.clip.name, segmenter.settings.method))
    address = serve(page, host, port)
    console.print(f"open {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
    page.block_thread()


def model_line(run: str | None, clip: str, method: str) -> str:
    """Return which model the page shows, in a line."""
    if run is not None:
        return f"{run}, method {method}."
    if clip == "storybook":
        return f"The embedded storybook CLIP, untrained ({method}): it knows drawn things only."
    return f"{clip}, untrained ({method})."
