"""The Hugging Face hub's client, switched to offline mode when the hub cannot be reached.

In: the hub's address (HF_ENDPOINT or the public one). Out: the client, unchanged or offline. An
offline client reads its cache or fails at once, not after a minute of retries per file.
"""

import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

PATIENCE = 5.0  # seconds to resolve and connect; the client itself waits 10 and retries


@contextmanager
def hub_or_cache(*, cache_only: bool = False) -> Iterator[None]:
    """Limit the client to its cache inside the block if the hub's host cannot be reached.

    Behind a proxy the host's name need not resolve here, so the client is left unchanged.
    """
    was = constants.HF_HUB_OFFLINE
    if cache_only:
        constants.HF_HUB_OFFLINE = True
    elif not was and not urllib.request.getproxies():
        constants.HF_HUB_OFFLINE = not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was


def _answers(address: str) -> bool:
    """Return whether the host accepts connections."""
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), PATIENCE).close()
    except OSError:
        return False
    return True


def announce(place: str, name: str) -> None:
    """Print on stderr that weights will be downloaded, and their size, unless they are cached.

    `place` is "organization/repository/", or that and a file name, as in open_clip's tags; `name`
    is how the message calls the weights.
    """
    repository, _, file = place.rpartition("/")
    if not repository or constants.HF_HUB_OFFLINE:
        return
    file = file or "open_clip_model.safetensors"
    if isinstance(try_to_load_from_cache(repository, file), str):
        return
    with suppress(HfHubHTTPError, OSError):
        size = get_hf_file_metadata(hf_hub_url(repository, file)).size or 0
        line = f"fetching {name} once, {size / 1e6:.0f} MB, into {constants.HF_HUB_CACHE}"
        print(line, file=sys.stderr, flush=True)
