"""Fetch an untrusted URL under guard: URL -> the bytes of an image, or a reason. Light.

The guard limits what a URL list can do to the machine that downloads it: http and https only,
public addresses only (checked again at each of at most five redirects), a total deadline, a limit
on bytes while they stream, a limit on pixels from the image's header before anything is decoded.
It limits the requests to each host and honors a publisher's X-Robots-Tag.
"""

import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urljoin, urlsplit

import idna

from codeseg.model.pictures.header import OTHER_PICTURES, HeaderError, read_header
from codeseg.pipeline.download.addresses import FetchError, Resolver
from codeseg.pipeline.download.outage import OutageWatch
from codeseg.pipeline.download.transfer import HELD_BYTES, USER_AGENT, Answer, Body, Connections

MAX_URL, MAX_HOST = 8192, 300  # characters; longer ones are never normalized
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
MAX_ALPHA_PIXELS = 16_000_000  # laying them over white takes 15 bytes per pixel
MAX_RATIO = 20  # of the sides: more would make rows of megabytes if the shorter side is not reduced
NETWORK = frozenset({"dns", "timeout", "connection"})  # reasons during an outage
REFUSED = frozenset(  # reasons that refuse the content of an answer
    {"not_an_image", "bomb", "too_small", "too_long", "too_large", "unsupported", "opt_out"}
)
PROBE_SECONDS = 3.0
KNOWN_HOSTS = 1024  # above this number, idle ones are forgotten
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_retryable(reason: str) -> bool:
    """Return whether `--retry-failed` should try a row that failed for this reason again."""
    status = re.fullmatch(r"http_(\d{3})", reason)
    if status:
        return int(status[1]) in RETRIED_STATUS or int(status[1]) >= 500
    return reason in NETWORK


@dataclass(frozen=True)
class FetchLimits:
    """The limits of one URL."""

    # seconds from the first lookup to the last byte, including redirects but not waits for a turn
    deadline: float = 20.0
    max_bytes: int = 32 << 20
    max_pixels: int = 64_000_000  # width x height by the header
    min_size: int = 32  # pixels of the shorter side; smaller ones are icons and trackers
    redirects: int = 5
    retries: int = 2  # after the first attempt, if a retry may help
    backoff: float = 0.5  # seconds before the first retry, doubling, with jitter
    host_connections: int = 8  # concurrent, to one host
    host_delay: float = 0.02  # seconds between the starts of two requests to one host
    workers: int = 1  # that share these two limits equally
    allow_private: bool = False  # also loopback and private addresses, without host limits


class Fetcher:
    """A fetcher of images by URL, shared by all threads of a worker."""

    def __init__(self, limits: FetchLimits, outage: OutageWatch | None = None) -> None:
        self._limits = limits
        self._resolver = Resolver(limits.allow_private)
        self._connections = Connections()
        self._places = threading.Semaphore(max(1, HELD_BYTES // limits.max_bytes))
        self._hosts = _Hosts(limits)
        self._outage = outage

    def open(self, url: str | None) -> Body:
        """Return the image at the URL, with its header checked; close it to free its memory.

        Raises:
            FetchError: names the reason, after the retries.
        """
        attempt, large = 0, False
        while True:
            body = Body(self._places, large)
            try:
                large = not self._attempt(url, body)
                if large:  # all places are taken: wait for one without an open connection
                    body.close()
                    continue
                check_image(body.getvalue(), self._limits.max_pixels, self._limits.min_size)
            except FetchError as error:
                body.close()
                if self._held_by_outage(url, error.reason):
                    continue  # an outage is not the URL's fault and does not count as an attempt
                tried = attempt == self._limits.retries or error.wait > self._limits.deadline
                if not error.again or tried:
                    raise
                # jitter affects only the time of a request, never a result
                pause = self._limits.backoff * 2**attempt * random.uniform(0.5, 1.5)
                time.sleep(max(error.wait, pause))
                attempt += 1
            else:
                self._held_by_outage(url, "success")
                body.seek(0)
                return body

    def answers(self, host: tuple[str, int]) -> bool:
        """Return whether a host accepts a connection, with the same checks as a fetch."""
        try:
            address = self._resolver.resolve(*host, PROBE_SECONDS)[0]
            socket.create_connection(address, PROBE_SECONDS).close()
        except (OSError, FetchError):
            return False
        return True

    def _held_by_outage(self, url: str | None, reason: str) -> bool:
        """Report the outcome to the outage watch; return whether an outage began and ended."""
        answered = reason in REFUSED or reason.startswith(("success", "http_"))
        if self._outage is None or not (answered or reason in NETWORK):
            return False
        _, host, port, _ = split_url(url or "")
        return self._outage.report((host, port), reason in NETWORK, self.answers)

    def _attempt(self, url: str | None, body: Body) -> bool:
        """Fill the body, following redirects, each checked like the first URL.

        Returns:
            Whether the body had room; if not, it must first hold one of the places.
        """
        deadline = time.monotonic() + self._limits.deadline
        current = url or ""
        for _ in range(self._limits.redirects + 1):
            with self._hosts.turn(split_url(current)[1]) as waited:
                deadline += waited
                answer = self._request(current, deadline, body)
            if answer.no_place:
                return False
            location = answer.values("location")
            if answer.status == 200:
                return True
            if answer.status not in (301, 302, 303, 307, 308) or not location:
                reason = f"http_{answer.status}"
                wait = retry_after(answer.values("retry-after"))
                raise FetchError(reason, is_retryable(reason), wait)
            try:
                current = urljoin(current, location[0])
            except ValueError:
                raise FetchError("bad_url") from None
        raise FetchError("too_many_redirects")

    def _request(self, url: str, deadline: float, body: Body) -> Answer:
        """Send one request to one checked address."""
        scheme, host, port, target = split_url(url)

        def left() -> float:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise FetchError("timeout", again=True)
            return seconds

        addresses = self._resolver.resolve(host, port, left())
        answer = Answer(body, self._limits.max_bytes, self._resolver)
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        url = f"{scheme}://{place}{target}"
        self._connections.request(url, host, addresses, answer, left())
        if answer.fault:
            raise answer.fault
        if answer.status == 200 and opted_out(answer.values("x-robots-tag")):
            raise FetchError("opt_out")
        return answer


def retry_after(values: list[str]) -> float:
    """Return the seconds that a Retry-After header asks for: a number, or a date; else 0."""
    text = values[0][:40] if values else ""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def split_url(url: str) -> tuple[str, str, int, str]:
    """Return scheme, ASCII host, port and request target of an http(s) URL.

    Raises:
        FetchError: empty_url, bad_scheme or bad_url.
    """
    url = url.strip()
    if not url:
        raise FetchError("empty_url")
    if not re.match(r"https?:", url, re.IGNORECASE):
        raise FetchError("bad_scheme")
    authority = re.match(r"[^/?#]*//([^/?#]*)", url)
    if len(url) > MAX_URL or authority is None or len(authority[1]) > MAX_HOST:
        raise FetchError("bad_url")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
        host = host if host.isascii() else _ascii_host(host)
        # encoded characters stay; real lists contain spaces and non-ASCII characters, and
        # redirects may contain bytes that are not UTF-8
        target = quote(parts.path or "/", "/%:@!$&'()*+,;=~", errors="surrogateescape")
        if parts.query:
            target += "?" + quote(parts.query, "/?%:@!$&'()*+,;=~[]", errors="surrogateescape")
    except ValueError:  # UnicodeError among them: half of a surrogate pair
        raise FetchError("bad_url") from None
    if not host or re.search(r"[\x00-\x20\x7f%/\\@]", host):
        raise FetchError("bad_url")
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80), target


def address(url: str | None) -> object:
    """Return a key that is equal for URLs with the same request to the same host."""
    try:
        return split_url(url or "")
    except FetchError:
        return url


def _ascii_host(host: str) -> str:
    """Return an international name in ASCII by IDNA 2008, as browsers do."""
    try:
        return idna.encode(host, uts46=True).decode()
    except idna.IDNAError:  # a symbol, which only IDNA 2003 allows
        return host.encode("idna").decode()


def opted_out(values: list[str]) -> bool:
    """Return whether X-Robots-Tag headers forbid the use, for everyone or for us by name.

    A header is `[AGENT:] DIRECTIVE[: VALUE], ...`; an agent applies until the next one.
    """
    for value in values:
        agent = USER_AGENT
        for part in value.lower().split(","):
            name, colon, rest = (text.strip() for text in part.partition(":"))
            # agents have no spaces, but the second half of a date with a comma has one
            if colon and " " not in name and name not in VALUED | OPT_OUTS:
                agent, name = name, rest.partition(":")[0].strip()
            if agent == USER_AGENT and name in OPT_OUTS:
                return True
    return False


def check_image(content: bytes, max_pixels: int, min_size: int) -> None:
    """Check by its header that a file is an image that may be trained on.

    Raises:
        FetchError: not_an_image; bomb; too_small; too_long, a strip; unsupported, a format that is
            not accepted, or more than 8 bits per sample, which img2dataset would turn white.
    """
    try:
        header = read_header(content)
    except HeaderError as error:
        other = "unsupported" if OTHER_PICTURES.match(content) else "not_an_image"
        raise FetchError("bomb" if error.bomb else other) from None
    shorter, longer = sorted((header.width, header.height))
    if shorter * longer > (min(max_pixels, MAX_ALPHA_PIXELS) if header.alpha else max_pixels):
        raise FetchError("bomb")
    if shorter < min_size:
        raise FetchError("too_small")
    if longer > MAX_RATIO * shorter:
        raise FetchError("too_long")
    if header.bits > 8:
        raise FetchError("unsupported")


@dataclass
class _Host:
    """The users of a host, and the time at which the next may start."""

    connections: threading.BoundedSemaphore
    users: int = 0  # with a connection or waiting for one
    next_start: float = 0.0  # on time.monotonic()'s clock


class _Hosts:
    """Limits of concurrent and per-second requests to each host: this worker's share."""

    def __init__(self, limits: FetchLimits) -> None:
        self._free = limits.allow_private
        self._most = max(1, limits.host_connections // limits.workers)
        self._delay = limits.host_delay * limits.workers
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}

    @contextmanager
    def turn(self, host: str) -> Iterator[float]:
        """Wait for a turn at the host; yield the seconds waited, which extend the deadline."""
        if self._free:
            yield 0.0
            return
        began = time.monotonic()
        with self._lock:
            if len(self._hosts) >= KNOWN_HOSTS:
                self._forget_idle()
            known = self._hosts.setdefault(host, _Host(threading.BoundedSemaphore(self._most)))
            known.users += 1
        try:
            with known.connections:
                with self._lock:
                    start = max(time.monotonic(), known.next_start)
                    known.next_start = start + self._delay
                time.sleep(max(0.0, start - time.monotonic()))
                yield time.monotonic() - began
        finally:
            with self._lock:
                known.users -= 1

    def _forget_idle(self) -> None:
        """Drop unused hosts that need no delay: a list names millions."""
        now = time.monotonic()
        known = self._hosts.items()
        self._hosts = {name: host for name, host in known if host.users or host.next_start > now}
