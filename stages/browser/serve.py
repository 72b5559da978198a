"""Gradio, closed: blocks that take no files, served behind the guard, on loopback by default.

In: a page. Out: a server. No share link, no telemetry, no fonts or scripts from elsewhere.
"""

import os
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from starlette.middleware import Middleware

from codeseg.stages.browser.guard import LOOPBACK, Guard

SESSIONS = 32  # visitors whose masks are kept, at most 30 MB each


class PlainBlocks(gr.Blocks):
    """Blocks whose inputs are text, numbers and lists of them: never files.

    Gradio takes any JSON object with a path in any input for a file, and copies or downloads it
    before a component sees it. Here such a request ends before.
    """

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any
    ) -> Any:
        """Refuse objects, pass on the rest."""
        for sent in inputs:
            if _holds_object(sent):
                raise gr.Error(
                    "this page takes no files, paths or addresses", print_exception=False
                )
        return await super().preprocess_data(block_fn, inputs, *rest, **named)


def _holds_object(sent: Any) -> bool:
    """Return whether a JSON value is or holds an object; iterative, as nesting may be deep."""
    left = [sent]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            return True
        if isinstance(value, list):
            left.extend(value)
    return False


def serve(page: gr.Blocks, host: str, port: int) -> str:
    """Serve the page from a thread; `page.block_thread()` waits for Ctrl-C.

    Args:
        page: from `build`.
        host: 127.0.0.1, or an address that others reach.
        port: of that address.

    Returns:
        The page's address.

    Raises:
        ValueError: the port is taken, or the host not this machine's.
    """
    font = ("system-ui", "Segoe UI", "Noto Sans", "sans-serif")
    mono = ("ui-monospace", "monospace")
    theme = gr.themes.Default(primary_hue="blue", font=font, font_mono=mono)  # no remote fonts
    guard = Middleware(Guard, loopback=host in LOOPBACK)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            inbrowser=False,
            footer_links=[],
            allowed_paths=[],
            max_file_size=1,
            state_session_capacity=SESSIONS,
            enable_monitoring=False,
            run_history=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            theme=theme,
            css=(Path(__file__).parent / "app.css").read_text(),
            app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None},
        )
    except OSError:  # Gradio says the same of a taken port and of a foreign address
        raise ValueError(
            f"port {port} of {host} is taken, or {host} is not this machine's: choose another with "
            "--port or --host"
        ) from None
    return str(address)
