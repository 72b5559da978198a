"""Send one HTTP request with libcurl to a checked address -> status, headers, body. Light.

libcurl enforces the deadline, decodes gzip and chunks, limits the headers (300 KB) and keeps
connections open. Proxies, redirects and other protocols are turned off.
"""

import ctypes
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import certifi
import pycurl

from codeseg.pipeline.download.addresses import Address, FetchError, Resolver

USER_AGENT = "codeseg"
AUTHORITIES = ssl.get_default_verify_paths().cafile or certifi.where()
SMALL_BYTES = 1 << 20  # a larger body needs one of the places
HELD_BYTES = 256 << 20  # of all places, which bound the number of large bodies
WEIRD_REPLY = pycurl.E_FTP_WEIRD_SERVER_REPLY  # also for HTTP, for example a NUL in a header
ARENA_MAX, ARENAS = -8, 2  # M_ARENA_MAX of glibc's malloc.h
SKIPPED_BYTES = 64 << 10  # of an error page, read so that the connection stays open
REASONS = {
    pycurl.E_URL_MALFORMAT: "bad_url",
    pycurl.E_COULDNT_RESOLVE_HOST: "dns",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_PEER_FAILED_VERIFICATION: "certificate",
    pycurl.E_FILESIZE_EXCEEDED: "too_large",
    **dict.fromkeys(
        (pycurl.E_COULDNT_CONNECT, pycurl.E_SSL_CONNECT_ERROR, pycurl.E_GOT_NOTHING,
         pycurl.E_PARTIAL_FILE, pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR),
        "connection",
    ),
}  # fmt: skip


class Body(BytesIO):
    """A body in memory; above SMALL_BYTES it holds one of the places until it is closed."""

    def __init__(self, places: threading.Semaphore, large: bool = False) -> None:
        super().__init__()
        self._places = places
        self._holds = large and places.acquire()

    def admit(self, size: int) -> bool:
        """Return whether the body may grow to this many bytes now."""
        self._holds = self._holds or (size > SMALL_BYTES and self._places.acquire(blocking=False))
        return self._holds or size <= SMALL_BYTES

    def close(self) -> None:
        """Free the memory and the place."""
        super().close()
        if self._holds:
            self._holds = False
            self._places.release()


class Answer:
    """The answer to a request; libcurl calls its methods as the answer arrives."""

    def __init__(self, body: Body, max_bytes: int, resolver: Resolver) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.fault: FetchError | None = None
        self.no_place = False
        self._body = body
        self.max_bytes = max_bytes
        self._resolver = resolver
        self._skipped = 0

    def open_socket(self, _: int, wanted: Any) -> socket.socket | int:
        """Open a socket for the address that libcurl connects to, if it is public."""
        family, kind, protocol, address = wanted
        try:
            self._resolver.check(str(address[0]))
        except FetchError as error:
            self.fault = error
            return int(pycurl.SOCKET_BAD)
        return socket.socket(family, kind, protocol)

    def header(self, line: bytes) -> None:
        """Handle a status line or a header, which many servers send in raw UTF-8."""
        if line.startswith(b"HTTP/"):
            self.status, self.headers = int(line.split()[1]), []
            return
        name, _, value = line.decode(errors="surrogateescape").partition(":")
        self.headers.append((name.lower(), value.strip()))

    def write(self, chunk: bytes) -> int:
        """Handle a chunk of the body; a result other than its length ends the transfer."""
        if self.status != 200:
            self._skipped += len(chunk)
            return len(chunk) if self._skipped <= SKIPPED_BYTES else 0
        size = self._body.tell() + len(chunk)
        if size > self.max_bytes:
            self.fault = FetchError("too_large")
            return 0
        self.no_place = not self._body.admit(size)
        return 0 if self.no_place else self._body.write(chunk)

    def values(self, name: str) -> list[str]:
        """Return the header's values, in order."""
        return [value for known, value in self.headers if known == name]


class Connections:
    """libcurl's handles, shared by all threads; each keeps its recent connections open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[str, pycurl.Curl]] = []
        if hasattr(libc := ctypes.CDLL(None), "mallopt"):
            # otherwise glibc keeps the freed bodies of each of 64 threads in a separate arena
            libc.mallopt(ARENA_MAX, ARENAS)

    def request(
        self, url: str, host: str, addresses: list[Address], answer: Answer, timeout: float
    ) -> None:
        """Send a GET for an ASCII URL to the checked addresses of its host, and fill the answer.

        Raises:
            FetchError: names the reason; "timeout" after this many seconds.
        """
        known = ",".join(f"[{ip}]" if ":" in ip else ip for ip, _ in addresses)
        with self._handle(host) as curl:
            for option, value in {
                pycurl.URL: url,
                pycurl.RESOLVE: [f"+{host}:{addresses[0][1]}:{known}"],
                pycurl.OPENSOCKETFUNCTION: answer.open_socket,
                pycurl.HEADERFUNCTION: answer.header,
                pycurl.WRITEFUNCTION: answer.write,
                pycurl.TIMEOUT_MS: max(1, int(timeout * 1000)),
                pycurl.MAXFILESIZE_LARGE: answer.max_bytes,
                pycurl.USERAGENT: f"{USER_AGENT} (image fetch)",
                pycurl.HTTPHEADER: ["Accept: image/*,*/*;q=0.5"],
                pycurl.ACCEPT_ENCODING: "identity",  # gzip is decoded anyway if a server sends it
                pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
                pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
                pycurl.PROXY: "",  # a proxy would connect to addresses that were not checked
                pycurl.CAINFO: AUTHORITIES,
                pycurl.NOSIGNAL: 1,
                pycurl.MAXCONNECTS: 4,
                pycurl.BUFFERSIZE: 128 << 10,
            }.items():
                curl.setopt(option, value)
            try:
                curl.perform()
            except pycurl.error as error:
                code, message = error.args
                if answer.fault or answer.no_place or (answer.status > 200 and code != WEIRD_REPLY):
                    return  # stopped by us, or in the middle of an error page
                # only the message distinguishes bad chunks and endless headers from a lost
                # connection
                wrong = "chunk" in message or "header" in message
                reason = "bad_response" if wrong else REASONS.get(code, "bad_response")
                raise FetchError(reason, again=reason in ("connection", "timeout")) from None

    @contextmanager
    def _handle(self, host: str) -> Iterator[pycurl.Curl]:
        """Yield an idle handle, preferably the one last used for the host."""
        with self._lock:
            last = [i for i, (known, _) in enumerate(self._idle) if known == host][-1:]
            curl = self._idle.pop(last[0] if last else 0)[1] if self._idle else pycurl.Curl()
        try:
            yield curl
        finally:
            curl.reset()  # only the options: connections stay open
            with self._lock:
                self._idle.append((host, curl))
