"""Resolve a host and refuse addresses that are not public. Light.

In: a host and a port. Out: the addresses to connect to, or a FetchError. Every name is resolved
once per connection and libcurl gets the checked addresses, so a second answer of the resolver (DNS
rebinding) changes nothing; the socket's own address is checked again when it is opened.
"""

import ipaddress
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

RESOLVER_THREADS = 32
CACHE_SECONDS = 60.0
CACHE_HOSTS = 4096
NOT_PUBLIC = tuple(  # public by the registry, or not yet known to Python
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b::/96",  # NAT64 embeds any IPv4
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # the host agent of a cloud's virtual machines
        "3fff::/20",  # documentation
    )
)

Address = tuple[str, int]  # an IP address and a port


class FetchError(Exception):
    """A URL gave no image, for this `reason`, which groups such errors.

    `again` says whether a retry may help, `wait` how many seconds the server asks to wait first.
    """

    def __init__(self, reason: str, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again
        self.wait = wait


def is_public(address: str) -> bool:
    """Return whether an address literal is a unicast address of the public internet.

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
    """A resolver with a time limit and a short cache; safe to share between threads."""

    def __init__(self, allow_private: bool = False) -> None:
        self._allow_private = allow_private
        self._pool = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")
        self._cache: dict[Address, tuple[float, list[Address]]] = {}

    def resolve(self, host: str, port: int, timeout: float) -> list[Address]:
        """Return all addresses of the host, in the resolver's order.

        Raises:
            FetchError: dns if there is none, private_address if any of them is not public,
                timeout if the resolver does not answer in time.
        """
        known = self._cache.get((host, port))
        if known and time.monotonic() - known[0] < CACHE_SECONDS:
            return known[1]
        future: Future[list[Any]] = self._pool.submit(
            socket.getaddrinfo, host, port, type=socket.SOCK_STREAM
        )
        try:
            addresses = [answer[4][:2] for answer in future.result(timeout)]
        except TimeoutError:
            future.cancel()
            raise FetchError("timeout", again=True) from None
        except (OSError, UnicodeError) as error:
            temporary = getattr(error, "errno", None) == socket.EAI_AGAIN
            raise FetchError("dns", again=temporary) from None
        for address, _ in addresses:
            self.check(address)
        if len(self._cache) >= CACHE_HOSTS:
            self._cache.clear()
        self._cache[host, port] = (time.monotonic(), addresses)
        return addresses

    def check(self, address: str) -> None:
        """Refuse an address that is not public, unless all are allowed.

        Raises:
            FetchError: private_address.
        """
        if not (self._allow_private or is_public(address)):
            raise FetchError("private_address")
