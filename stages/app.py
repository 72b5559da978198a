"""`codeseg app`: a segmenter -> a page in the browser, by default only on this machine.

In: a RUN, a checkpoint, a hub id or a CLIP. Out: a server that runs until Ctrl-C.
"""

from typing import Annotated

import typer

from codeseg.stages.options import Clip, Device, Pretrained, VitWeights, prediction_settings


def app(
    run: Annotated[str | None, typer.Option(help="RUN, checkpoint or hub id.")] = None,
    method: Annotated[str | None, typer.Option(help="code | align | naclip | scg …")] = None,
    clip: Clip = None,
    pretrained: Pretrained = None,
    weights: VitWeights = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on (127.0.0.1: only this machine).")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    device: Device = "auto",
) -> None:
    """Serve a page in the browser: drop a picture, type words, see the masks.

    Example: codeseg app --run runs/code
    """
    from codeseg.model.inference.segmenter import Segmenter
    from codeseg.stages.browser.page import build
    from codeseg.stages.browser.serve import LOOPBACK, serve

    settings = prediction_settings(method, None)
    page = build(
        Segmenter.open(
            run, settings, clip=clip, pretrained=pretrained, weights=weights, device=device
        )
    )
    if host not in LOOPBACK:
        typer.echo(f"warning: --host {host} lets anyone who can reach this machine use the page")
    typer.echo(f"open {serve(page, host, port)} (Ctrl-C ends it)")
    page.block_thread()
