"""An HTTP request on its way to Gradio -> the same request, or a refusal before Gradio sees it.

Gradio serves files, takes uploads, fetches addresses and has an API for programs. The page needs
none of it: pictures come and go as text inside events. So only the page's own addresses are open;
bodies are bounded while they arrive; and the browser is told to load from and talk to this server
only, whatever the page may ask for.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from codeseg.stages.browser.inputs import MAX_BYTES

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
        r"|/(assets|static)(/[\w.-]+)+"
        r"|/gradio_api/(queue/data|startup-events|app_id|heartbeat/\w+)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|reset|cancel)"),
}
"""What the page itself asks for; no /file=, /proxy=, /upload, /run, /call, /component_server …"""
QUERY = re.compile(r"(v=\w+|__theme=\w+|__lang=[\w-]+|__sign=[\w.-]+|session_hash=\w+|view=\w+|&)*")
"""Parameters that are kept; Gradio's deep links would name a file."""
MAX_BODY = MAX_BYTES * 4 // 3 + 1_000_000
"""Of a request: the largest picture as base64, and the rest of its event."""
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Gradio compiles its event handlers in the page, hence unsafe-eval; nothing comes from outside."""
LOOPBACK = {"127.0.0.1", "localhost"}
"""Hosts that only this machine reaches."""


class Guard:
    """ASGI middleware in front of Gradio."""

    def __init__(self, app: App, loopback: bool = True) -> None:
        """Wrap an app.

        Args:
            app: Gradio's.
            loopback: answer only requests that name this machine as their host, so that no other
                site's name can be pointed here (DNS rebinding).
        """
        self.app = app
        self.loopback = loopback

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        headers = {name.lower(): value for name, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused:
            return await _answer(send, *refused)
        try:
            return await self.app(scope, _bounded(receive), _with_policy(send))
        except TooLarge:
            return await _answer(send, 413, "the request is too large")

    def _refusal(self, scope: Message, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self.loopback and re.sub(r":\d+$", "", host).lower() not in LOOPBACK:
            return 421, "this page is bound to this machine alone"
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        path = unquote(scope["path"])
        known = OPEN.get(method)
        if known is None or not known.fullmatch(path) or ".." in path:
            return 404, "there is nothing here"
        if not QUERY.fullmatch(scope["query_string"].decode("latin-1")):
            return 404, "there is nothing here"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return 413, "the request is too large"
        return None


class TooLarge(Exception):
    """A body went beyond MAX_BODY while it arrived."""


def _bounded(receive: Receive) -> Receive:
    """Count a body's bytes as they come: a length need not be told, or true."""
    arrived = 0

    async def counted() -> Message:
        nonlocal arrived
        message = await receive()
        arrived += len(message.get("body", b""))
        if arrived > MAX_BODY:
            raise TooLarge
        return message

    return counted


def _with_policy(send: Send) -> Send:
    """Add to every answer what the browser may load and do."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                (b"content-security-policy", POLICY.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
            ]
        await send(message)

    return add


async def _answer(send: Send, status: int, line: str) -> None:
    """Say no in one line."""
    body = json.dumps({"detail": line}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
