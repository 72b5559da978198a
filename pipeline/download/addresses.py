"""Resolve a host, refuse addresses that are not public, connect to exactly the one checked. Light.

Every name is resolved once per connection and the connection goes to the address that was checked,
so a second answer of the resolver (DNS rebinding) changes nothing. Host header, SNI and the
certificate check keep the name.
"""

import http.client
import io
import ipaddress
import socket
import ssl
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import lru_cache
from typing import Any

RESOLVER_THREADS = 32
CACHE_SECONDS = 60.0
CACHE_HOSTS = 4096
READ_BYTES = 64 << 10
HEADER_BYTES = 8 << 20  # what a response may send beside its body: http.client reads up to 6.5 MB
NOT_PUBLIC = tuple(  # by the registry they are, or Python does not know yet
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b::/96",  # NAT64 embeds any IPv4
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # the host agent of a cloud's virtual machines
        "3fff::/20",  # documentation
    )
)

Address = tuple[socket.AddressFamily, tuple[Any, ...]]


class PrivateAddressError(Exception):
    """The host has an address that is not public."""


class TooMuchError(Exception):
    """A response sends more bytes than it may."""


class DnsError(Exception):
    """The host's name has no address; `temporary` when asking again may help."""

    def __init__(self, message: str, temporary: bool) -> None:
        super().__init__(message)
        self.temporary = temporary


def is_public(address: str) -> bool:
    """Whether an address literal is a unicast address of the public internet.

    Private, loopback, link-local, multicast, reserved, unspecified, shared (CGNAT), documentation,
    IPv4-mapped and otherwise embedded IPv4 (6to4, Teredo, NAT64) are not.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip.is_site_local
    ):
        return False
    if any(ip in network for network in NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class Resolver:
    """Resolves with a time limit and a short memory; safe to share between threads."""

    def __init__(self, allow_private: bool = False) -> None:
        self._allow_private = allow_private
        self._pool = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")
        self._cache: dict[tuple[str, int], tuple[float, list[Address]]] = {}

    def resolve(self, host: str, port: int, timeout: float) -> list[Address]:
        """All addresses of the host, in the resolver's order.

        Raises:
            DnsError: when there is none.
            PrivateAddressError: when any of them is not public.
            TimeoutError: when the resolver does not answer in time.
        """
        known = self._cache.get((host, port))
        if known and time.monotonic() - known[0] < CACHE_SECONDS:
            return known[1]
        future: Future[list[Any]] = self._pool.submit(
            socket.getaddrinfo, host, port, type=socket.SOCK_STREAM
        )
        try:
            answers = future.result(timeout)
        except FutureTimeoutError:
            future.cancel()
            raise TimeoutError("the resolver does not answer") from None
        except socket.gaierror as error:
            raise DnsError(str(error), error.errno == socket.EAI_AGAIN) from None
        except (OSError, UnicodeError) as error:
            raise DnsError(str(error), False) from None
        addresses = [(family, sockaddr) for family, _, _, _, sockaddr in answers]
        if not self._allow_private:
            for _, sockaddr in addresses:
                if not is_public(str(sockaddr[0])):
                    raise PrivateAddressError(f"{host} is at {sockaddr[0]}")
        if len(self._cache) >= CACHE_HOSTS:
            self._cache.clear()
        self._cache[host, port] = (time.monotonic(), addresses)
        return addresses


def connect(
    scheme: str, host: str, port: int, addresses: list[Address], deadline: float, max_bytes: int
) -> http.client.HTTPConnection:
    """An HTTP connection to the first address that answers, its every read held to the limits.

    Reads of the response raise TooMuchError past `max_bytes` of body and HEADER_BYTES of the rest:
    http.client itself reads a chunk of a negative size to its end, whatever was asked for.

    Args:
        scheme: "http" or "https".
        host: for the Host header, SNI and the certificate.
        port: of the URL.
        addresses: already checked.
        deadline: on time.monotonic()'s clock; no single read may outlast it.
        max_bytes: of the response's body.

    Raises:
        OSError: when none answers, or TLS fails.
    """
    plain = connect_socket(addresses, deadline)
    try:
        stream = _tls().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain
    except BaseException:
        plain.close()
        raise
    standard = 443 if scheme == "https" else 80
    connection = http.client.HTTPConnection(host, port)
    # the Host header omits the scheme's own port, as every browser does
    connection.default_port = standard
    connection.sock = _GuardedSocket(stream, deadline, max_bytes + HEADER_BYTES)
    return connection


def connect_socket(addresses: list[Address], deadline: float) -> socket.socket:
    """A TCP connection to the first address that answers; a silent one has its share of the time.

    Raises:
        OSError: the last address's, when none answers.
    """
    failure: OSError = OSError("no address")
    for tried, (family, sockaddr) in enumerate(addresses):
        candidate = socket.socket(family, socket.SOCK_STREAM)
        try:
            candidate.settimeout(remaining(deadline) / (len(addresses) - tried))
            candidate.connect(sockaddr)
        except OSError as error:
            candidate.close()
            failure = error
        else:
            candidate.settimeout(remaining(deadline))
            return candidate
    raise failure


def remaining(deadline: float) -> float:
    """Seconds left.

    Raises:
        TimeoutError: when there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline")
    return left


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Verifies certificates and names; loading the authorities takes 20 ms, so once."""
    return ssl.create_default_context()


class _GuardedSocket:
    """The few socket methods http.client uses, each held to one deadline and one count of bytes."""

    def __init__(self, sock: socket.socket, deadline: float, max_bytes: int) -> None:
        self._sock = sock
        self._deadline = deadline
        self._max_bytes = max_bytes
        self._is_read = False

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(remaining(self._deadline))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        self._is_read = True
        raw = _GuardedReader(self._sock, self._deadline, self._max_bytes)
        return io.BufferedReader(raw, READ_BYTES)

    def close(self) -> None:
        """Leave it open for its reader: http.client closes before the body is read."""
        if not self._is_read:
            self._sock.close()


class _GuardedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float, max_bytes: int) -> None:
        self._sock = sock
        self._deadline = deadline
        self._left = max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(remaining(self._deadline))
        count = self._sock.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise TooMuchError
        return count

    def close(self) -> None:
        self._sock.close()
        super().close()
