"""A page -> a server that limits what a visitor may send, read and load; on loopback by default.

Gradio limits uploads and serves one folder, here a private one that is deleted at exit. It would
also fetch a URL that a request names, and open any path as a picture; this module refuses both.
"""

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TEMPORARY = TemporaryDirectory(prefix="codeseg-app-")
FOLDER = Path(TEMPORARY.name).resolve()  # uploads, results; no other file is opened or served
os.environ["GRADIO_TEMP_DIR"] = str(FOLDER)
LOOPBACK = ("127.0.0.1", "localhost")  # hosts that only this machine reaches
MAX_BYTES = 20_000_000  # of a picture file
MAX_EVENT = 64 << 10  # bytes of any other request: words, a caption, the name of an upload
# Paths that a browser may post to, and the maximum number of bytes; Gradio's others are closed.
BODIES = {f"/gradio_api/{to}": MAX_EVENT for to in ("queue/join", "run/predict", "cancel", "reset")}
BODIES["/gradio_api/upload"] = MAX_BYTES + MAX_EVENT
HEADERS = {  # a browser loads nothing from elsewhere
    "content-security-policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'",
    "x-content-type-options": "nosniff",
}


def guard(app: ASGIApp, loopback: bool) -> ASGIApp:
    """Check each request's host, path and size before Gradio, `app`, receives it."""

    async def judged(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        headers, path, arrived = Headers(scope=scope), scope["path"], 0
        host = headers.get("host", "")
        origin = urlsplit(headers.get("origin", f"//{host}")).netloc
        refused = ""
        # On loopback, refuse other host names (DNS rebinding) and other sites' scripts.
        if loopback and (re.sub(r":\d+$", "", host) not in LOOPBACK or origin != host):
            refused = "this page answers only this machine"
        elif "//" in path or b"deep_link" in path.encode() + scope["query_string"]:
            refused = "URLs are not fetched, and pages are not stored"  # Gradio would do both
        elif scope.get("method") == "POST" and path not in BODIES:
            refused = "there is nothing here"
        if refused:
            return await PlainTextResponse(refused, 403)(scope, receive, send)

        async def bounded() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > BODIES.get(path, MAX_EVENT):  # the length may be missing or wrong
                raise HTTPException(413, "the request is too large")
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, bounded, with_headers)

    return judged


class PageBlocks(gr.Blocks):
    """Blocks whose inputs may name only files in FOLDER."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **kw: Any) -> Any:
        """Refuse other paths and URLs before Gradio opens or fetches them."""
        if _names_another_file(inputs):
            raise gr.Error("this page accepts no paths or URLs", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *rest, **kw)


def _names_another_file(sent: Any) -> bool:
    """Return whether a JSON value holds, at any depth, a path that is not in FOLDER."""
    if isinstance(sent, dict):
        path = Path(str(sent.get("path", FOLDER)))
        return not path.resolve().is_relative_to(FOLDER) or _names_another_file([*sent.values()])
    return isinstance(sent, list) and any(map(_names_another_file, sent))


def serve(page: gr.Blocks, host: str, port: int) -> str:
    """Serve the page from a thread and return its URL; `page.block_thread()` waits for Ctrl-C.

    Refuse a port that is taken, or a host that is not this machine's.
    """
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            footer_links=[],
            max_file_size=MAX_BYTES,
            enable_monitoring=False,
            ssr_mode=False,
            theme=gr.themes.Default(font="system-ui", font_mono="monospace"),  # no remote fonts
            app_kwargs={"middleware": [Middleware(guard, loopback=host in LOOPBACK)]},
        )
    except OSError:  # Gradio raises the same for a taken port and a foreign address
        line = f"{host}:{port} is taken or not this machine's: choose another --port or --host"
        raise ValueError(line) from None
    return str(address)
