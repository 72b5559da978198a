"""The guarded fetch: nobody is let in, nothing is unbounded, every failure has its reason."""

import contextlib
import gzip
import ipaddress
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeseg.pipeline.download import fetch as fetch_module
from codeseg.pipeline.download.addresses import FetchError, Resolver, is_public
from codeseg.pipeline.download.fetch import (
    KNOWN_HOSTS,
    Fetcher,
    FetchLimits,
    _Hosts,
    is_retryable,
    opted_out,
    split_url,
)
from codeseg.pipeline.download.outage import OutageWatch
from codeseg.pipeline.download.pairs import DownloadSettings, DownloadWorker
from codeseg.pipeline.download.transfer import SMALL_BYTES


def fetch(url, **limits):
    return read(Fetcher(FetchLimits(**{"allow_private": True, "retries": 0, **limits})), url)


def read(fetcher, url):
    with fetcher.open(url) as body:
        return body.getvalue()


def reason(url, **limits):
    with pytest.raises(FetchError) as caught:
        fetch(url, **limits)
    return caught.value.reason


def test_an_image_is_fetched_as_served(image_server):
    url = image_server.add_image("/a b/ü.jpg?", 400, 300)
    image_server.pages["/a%20b/%C3%BC.jpg"] = image_server.pages.pop("/a b/ü.jpg?")
    assert fetch(url) == image_server.pages["/a%20b/%C3%BC.jpg"][2]


PRIVATE = [
    "127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
    "::1", "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::1",
    "fe80::1%eth0", "not an address",
    "192.0.0.192", "192.88.99.1", "168.63.129.16", "3fff::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_refused(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "151.101.1.140", "2606:4700::6810:84e5"])
def test_public_addresses_are_allowed(address):
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_no_private_ipv4_hides_in_an_ipv6_form(address):
    number = int(address)
    for form in (0xFFFF << 32, 0x64FF9B << 96, 0x2002 << 112):
        shift = 80 if form == 0x2002 << 112 else 0
        assert not is_public(str(ipaddress.IPv6Address(form | number << shift)))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "0"])
def test_loopback_in_any_spelling_is_a_private_address(image_server, host):
    image_server.add_image("/a.jpg")
    url = f"http://{host}:{image_server.port}/a.jpg"
    assert reason(url, allow_private=False) == "private_address"
    assert not image_server.hits


def test_a_redirect_is_checked_like_the_first_url(image_server, monkeypatch):
    """The first host is taken for public, the second is a real private address."""
    image_server.pages["/to"] = (302, {"Location": "http://10.1.2.3/secret"}, b"")
    image_server.pages["/file"] = (301, {"Location": "file:///etc/passwd"}, b"")
    monkeypatch.setattr(
        "codeseg.pipeline.download.addresses.is_public",
        lambda address: address == "127.0.0.1" or is_public(address),
    )
    assert reason(image_server.url + "/to", allow_private=False) == "private_address"
    assert reason(image_server.url + "/file", allow_private=False) == "bad_scheme"


def test_the_connection_goes_to_the_address_that_was_checked(image_server, monkeypatch):
    """DNS rebinding: the resolver's second answer is never asked for."""
    asked = []

    def rebinding(host, port, **options):
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "10.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    image_server.add_image("/a.jpg")
    assert fetch(f"http://rebinding.example:{image_server.port}/a.jpg")
    assert asked == ["rebinding.example"]


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    answers = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
        for address in ("8.8.8.8", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: answers)
    with pytest.raises(FetchError, match="private_address"):
        Resolver().resolve("mixed.example", 80, 1.0)


def test_five_redirects_are_followed_and_six_are_not(image_server):
    image_server.add_image("/0")
    for i in range(1, 7):
        image_server.pages[f"/{i}"] = (302, {"Location": f"/{i - 1}"}, b"")
    assert fetch(image_server.url + "/5")
    assert reason(image_server.url + "/6") == "too_many_redirects"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///etc/passwd", "bad_scheme"),
        ("data:image/png;base64,AAAA", "bad_scheme"),
        ("ftp://example.com/a.jpg", "bad_scheme"),
        ("", "empty_url"),
        (None, "empty_url"),
        ("  ", "empty_url"),
        ("http://", "bad_url"),
        ("http://[::1", "bad_url"),
        ("http://a:99999999/", "bad_url"),
        ("http://a/\ud800", "bad_url"),
        ("http://127.0.0.1\x00.example/", "bad_url"),
        ("no url at all", "bad_scheme"),
    ],
)
def test_what_is_no_web_address_is_refused(url, expected):
    assert reason(url) == expected


def test_a_path_cannot_smuggle_a_header():
    _, _, _, target = split_url("http://host/a\r\nX-Evil: 1?q=\r\nb")
    assert "\r" not in target and "\n" not in target and " " not in target


def test_statuses_group(image_server):
    for status in (403, 404, 410, 429, 500, 503):
        image_server.pages["/x"] = (status, {}, b"")
        assert reason(image_server.url + "/x") == f"http_{status}"


def test_a_body_larger_than_the_cap_is_never_read_whole(image_server):
    image_server.pages["/announced"] = (200, {"Content-Length": str(10**12)}, b"")
    assert reason(image_server.url + "/announced") == "too_large"
    sent = []

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(10_000):
            handler.wfile.write(bytes(65536))
            sent.append(65536)

    image_server.pages["/endless"] = endless
    assert reason(image_server.url + "/endless", max_bytes=1 << 20) == "too_large"
    assert sum(sent) < 64 << 20


def test_a_body_that_is_cut_off_is_a_connection_error(image_server):
    image_server.add_image("/whole.jpg", 200, 200)
    body = image_server.pages["/whole.jpg"][2]
    image_server.pages["/cut"] = (200, {"Content-Length": str(len(body))}, body[: len(body) // 2])
    assert reason(image_server.url + "/cut") == "connection"


@pytest.mark.parametrize("location", ["http://[", "//[x", "http://a:b/", "http://\x00/"])
def test_a_redirect_to_nonsense_is_a_bad_url(image_server, location):
    image_server.pages["/to"] = (302, {"Location": location}, b"")
    expected = "bad_response" if "\0" in location else "bad_url"  # libcurl takes no NUL in a header
    assert reason(image_server.url + "/to") == expected


def send_chunked(image_server, path, body):
    """Serve raw bytes as a chunked body, right or wrong."""

    def send(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in body:
            handler.wfile.write(part)

    image_server.pages[path] = send
    return image_server.url + path


def test_a_chunk_of_a_negative_size_is_a_bad_response(image_server):
    assert reason(send_chunked(image_server, "/negative", [b"-5\r\nabc"])) == "bad_response"


def test_a_chunked_body_that_is_cut_off_is_tried_again(image_server):
    url = send_chunked(image_server, "/cut", [b"5\r\nab"])
    assert reason(url, retries=1, backoff=0.01) == "connection"
    assert image_server.hits["/cut"] == 2


def test_a_chunk_without_end_cannot_pass_the_cap(image_server):
    sent = []

    def endless():
        yield b"ffffffff\r\n"
        for _ in range(1000):
            yield bytes(65536)
            sent.append(65536)

    url = send_chunked(image_server, "/endless", endless())
    assert reason(url, max_bytes=1 << 20) == "too_large"
    assert sum(sent) < 32 << 20


def test_an_address_that_does_not_answer_leaves_time_for_the_next(image_server, monkeypatch):
    image_server.add_image("/a.jpg")
    with socket.create_server(("127.0.0.2", image_server.port), backlog=0) as silent:
        waiting = [socket.socket() for _ in range(3)]  # a full backlog ignores who comes next
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(silent.getsockname())
        answers = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, image_server.port))
            for address in ("127.0.0.2", "127.0.0.1")
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: answers)
        assert fetch(f"http://two.example:{image_server.port}/a.jpg", deadline=4)
        for client in waiting:
            client.close()


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_trickle_is_stopped_by_the_total_deadline(image_server, part):
    over = threading.Event()

    def trickle(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if part == "body" else b"X: "))
        while not over.wait(0.05):
            handler.wfile.write(b"x")

    image_server.pages["/slow"] = trickle
    start = time.monotonic()
    assert reason(image_server.url + "/slow", deadline=0.6) == "timeout"
    assert time.monotonic() - start < 5
    over.set()


def test_a_resolver_that_hangs_is_a_timeout(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: over.wait(20))
    assert reason("http://slow.example/", deadline=0.3) == "timeout"
    over.set()


def test_an_unknown_host_is_dns(monkeypatch):
    def unknown(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert reason("http://no.such.host/") == "dns"


def test_a_closed_port_is_a_connection_error():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert reason(f"http://127.0.0.1:{port}/") == "connection"


def png(width, height, bits=8, colour=2):
    """A PNG of a few hundred bytes that claims any size."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(9000, 9000), (65_000, 65_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_seen_in_its_header(image_server, size):
    image_server.pages["/bomb.png"] = (200, {}, png(*size))
    assert reason(image_server.url + "/bomb.png") == "bomb"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(8000, 8000), None),
        (png(4000, 4000, colour=6), None),
        (png(4001, 4000, colour=6), "bomb"),
        (png(2000, 100), None),
        (png(2001, 100), "too_long"),
        (png(100, 2001), "too_long"),
        (png(100, 100, bits=16), "unsupported"),
        (png(32, 32), None),
        (png(31, 32), "too_small"),
        (png(1, 1), "too_small"),
        (b"\0\0\0\x20ftypavif", "unsupported"),
        (b"II*\0", "unsupported"),
    ],
)
def test_a_picture_that_the_resizer_cannot_take_is_refused_by_its_header(
    image_server, content, expected
):
    """Transparent ones need eight times the memory, strips stay long, 16 bits turn white."""
    image_server.pages["/a.png"] = (200, {}, content)
    url = image_server.url + "/a.png"
    assert (reason(url) if expected else fetch(url)) == (expected or content)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"%PDF-1.4"])
def test_what_is_no_image_is_refused(image_server, content):
    image_server.pages["/x.jpg"] = (200, {}, content)
    assert reason(image_server.url + "/x.jpg") == "not_an_image"


@given(st.binary(max_size=300))
def test_any_bytes_are_an_image_or_a_reason(content):
    from codeseg.pipeline.download.fetch import check_image

    try:
        check_image(b"\x89PNG\r\n\x1a\n" + content, 1000, 2)
        check_image(content, 1000, 2)
    except FetchError as error:
        kinds = ("not_an_image", "bomb", "too_small", "too_long", "unsupported")
        assert error.reason in kinds


@pytest.mark.parametrize(
    ("header", "refused"),
    [
        ("noai", True),
        ("noindex, NoImageAI", True),
        ("codeseg: noai", True),
        ("googlebot: noindex", False),
        ("none", True),
        ("noindex, max-image-preview:none", True),
        ("max-snippet:-1, noimageai", True),
        ("noai, unavailable_after: 25 Jun 2026", True),
        ("unavailable_after: 25 Jun 2026 15:00:00 PST, noai", True),
        ("unavailable_after: Thu, 25 Jun 2026 15:00:00 PST, noai", True),
        ("CodeSeg: max-snippet:-1, noai", True),
        ("otherbot: nofollow, codeseg: noai", True),
        ("otherbot: noai", False),
        ("otherbot: noindex, noai", False),
        ("codeseg: nofollow, otherbot: noai", False),
        ("max-image-preview:none", False),
        ("all", False),
        ("max-image-preview:large", False),
    ],
)
def test_a_publishers_opt_out_is_honoured(image_server, header, refused):
    assert opted_out([header]) == refused
    image_server.add_image("/a.jpg")
    status, _, body = image_server.pages["/a.jpg"]
    image_server.pages["/a.jpg"] = (status, {"X-Robots-Tag": header}, body)
    if refused:
        assert reason(image_server.url + "/a.jpg") == "opt_out"
    else:
        assert fetch(image_server.url + "/a.jpg")


def test_what_can_pass_is_tried_again_and_what_cannot_is_not(image_server):
    image_server.add_image("/a.jpg")
    good = image_server.pages["/a.jpg"]

    def flaky(handler):
        if image_server.hits["/flaky"] == 3:
            image_server.pages["/flaky"] = good
        handler.send_error(503)

    image_server.pages["/flaky"] = flaky
    assert fetch(image_server.url + "/flaky", retries=3, backoff=0.01) == good[2]
    assert image_server.hits["/flaky"] == 4
    assert reason(image_server.url + "/gone", retries=3, backoff=0.01) == "http_404"
    assert image_server.hits["/gone"] == 1


def test_reasons_worth_a_later_try():
    assert all(
        map(is_retryable, ["dns", "timeout", "connection", "http_429", "http_500", "http_520"])
    )
    others = [
        "http_404",
        "http_403",
        "private_address",
        "bomb",
        "not_an_image",
        "opt_out",
        "http_x",
    ]
    assert not any(map(is_retryable, others))


@pytest.mark.parametrize(("workers_here", "at_a_time"), [(1, 2), (4, 8)])
def test_one_host_gets_few_requests_at_a_time_and_not_in_one_burst(
    image_server, monkeypatch, workers_here, at_a_time
):
    monkeypatch.setattr("codeseg.pipeline.download.addresses.is_public", lambda address: True)
    image_server.add_image("/a.jpg")
    good = image_server.pages["/a.jpg"]
    lock, now, most, starts = threading.Lock(), [0], [0], []

    def slow(handler):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            starts.append(time.monotonic())
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(good[2])

    image_server.pages["/slow.jpg"] = slow
    # each of four workers has its part; waiting for a turn is not the URL's fault
    limits = FetchLimits(host_connections=8, host_delay=0.0075, workers=4, deadline=0.35)
    fetched = []
    url = image_server.url + "/slow.jpg"

    def fetch_all(fetcher):
        with ThreadPoolExecutor(8) as pool:
            fetched.extend(pool.map(lambda u, f=fetcher: read(f, u), [url] * 8))

    workers = [
        threading.Thread(target=fetch_all, args=(Fetcher(limits),)) for _ in range(workers_here)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(fetched) == len(starts) == 8 * workers_here and most[0] <= at_a_time
    assert max(starts) - min(starts) >= 0.2


def test_hosts_are_forgotten_when_nobody_is_there():
    hosts = _Hosts(FetchLimits(host_delay=0.0))
    with hosts.turn("held"):
        for i in range(3 * KNOWN_HOSTS):
            with hosts.turn(f"host{i}"):
                pass
        assert len(hosts._hosts) <= KNOWN_HOSTS and "held" in hosts._hosts


class Network:
    """A network that can be taken down, seen through the outage watch."""

    def __init__(self, max_pause=10.0):
        self.up = True
        self.notes = []
        self.watch = OutageWatch(self.notes.append, max_pause, probe_every=0.05, window=10)

    def report(self, failed, host="host"):
        return self.watch.report((host, 80), failed, lambda _: self.up)


def test_an_outage_holds_fetches_until_the_network_is_back():
    network = Network()
    for _ in range(10):
        assert not network.report(False)
    network.up = False
    held = []
    threads = [
        threading.Thread(target=lambda: held.append(network.report(True))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert any(thread.is_alive() for thread in threads), "nobody waited"
    network.up = True
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(held) >= 10 and not network.watch.gave_up
    assert "the network seems down" in network.notes[0] and network.notes[-1] is None


def test_a_list_of_dead_links_is_no_outage():
    network = Network()
    assert not any(network.report(True) for _ in range(100))
    assert network.notes == [] and network.watch.outages == 0


def test_an_outage_without_end_gives_up():
    network = Network(max_pause=0.2)
    network.up = False
    for _ in range(12):
        network.report(True)
    assert network.watch.gave_up
    network.watch.restart()
    assert not network.watch.gave_up


def test_a_row_fetched_during_an_outage_is_not_marked_failed(image_server):
    """The server stops answering for a while; every row comes out well in the end."""
    url = image_server.add_image("/a.jpg")
    notes = []
    watch = OutageWatch(notes.append, 20.0, probe_every=0.05, window=5)
    fetcher = Fetcher(FetchLimits(allow_private=True, retries=5, backoff=0.1, deadline=0.5), watch)
    assert read(fetcher, url)
    image_server.stop()
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(len(read(fetcher, url)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.4)
    back = type(image_server)(image_server.port)
    back.pages = image_server.pages
    for thread in threads:
        thread.join(20)
    back.stop()
    assert len(results) == 8


def test_a_body_is_decoded_however_it_is_packed_and_within_the_cap(image_server):
    image_server.add_image("/a.jpg")
    content = image_server.pages["/a.jpg"][2]
    packed = gzip.compress(content)
    image_server.pages["/z"] = (200, {"Content-Encoding": "gzip"}, packed)
    assert fetch(image_server.url + "/z") == content
    bomb = gzip.compress(bytes(8 << 20))
    image_server.pages["/bomb"] = (200, {"Content-Encoding": "gzip"}, bomb)
    assert reason(image_server.url + "/bomb", max_bytes=1 << 20) == "too_large"
    image_server.pages["/broken"] = (200, {"Content-Encoding": "gzip"}, b"no gzip")
    assert reason(image_server.url + "/broken") == "bad_response"


@pytest.mark.parametrize(
    ("sent", "asked"), [("/café 1.jpg".encode(), "/caf%C3%A9%201.jpg"), (b"/\xe9.jpg", "/%E9.jpg")]
)
def test_a_location_of_raw_bytes_is_followed_as_browsers_do(image_server, sent, asked):
    image_server.add_image(asked)

    def redirect(handler):
        handler.wfile.write(b"HTTP/1.1 301 Moved\r\nLocation: " + sent + b"\r\n\r\n")

    image_server.pages["/to"] = redirect
    assert fetch(image_server.url + "/to") == image_server.pages[asked][2]


@pytest.mark.parametrize(
    ("host", "ascii_host"),
    [
        ("faß.de", "xn--fa-hia.de"),  # IDNA 2003 went to fass.de
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("i❤.ws", "xn--i-7iq.ws"),  # no letter, so only in IDNA 2003
    ],
)
def test_international_hosts_are_named_as_browsers_name_them(host, ascii_host):
    assert split_url(f"http://{host}/a")[1] == ascii_host


@pytest.mark.parametrize(
    "url",
    [
        "http://" + "e" + "\u0301\u0316" * 50_000 + "/a.jpg",
        "http://h/" + "\u0301\u0316" * 50_000,
        "http://" + "ü" * 301 + ".de/",
    ],
)
def test_a_url_is_measured_before_it_is_normalized(url, monkeypatch):
    """Normalizing costs the square of the length: 100,000 marks took 88 s."""
    monkeypatch.setattr(fetch_module, "urlsplit", lambda *_: pytest.fail("was parsed"))
    assert reason(url) == "bad_url"


def test_a_server_that_asks_for_time_gets_it_within_the_deadline(image_server, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    image_server.pages["/busy"] = (429, {"Retry-After": "3"}, b"")
    assert reason(image_server.url + "/busy", retries=1) == "http_429"
    assert pauses == [3.0] and image_server.hits["/busy"] == 2
    image_server.pages["/long"] = (503, {"Retry-After": "3600"}, b"")
    assert reason(image_server.url + "/long", retries=1) == "http_503"
    assert image_server.hits["/long"] == 1, "an hour is not waited for"


def test_retry_after_is_a_number_or_a_date():
    soon = formatdate(time.time() + 100, usegmt=True)
    assert 95 < fetch_module.retry_after([soon]) <= 100
    assert fetch_module.retry_after(["7"]) == 7
    for nonsense in ([], [""], ["soon"], ["-5"], ["²"], ["Thu, 99 Jan 2026"], ["1" * 400]):
        assert fetch_module.retry_after(nonsense) in (0, float("1" * 40))


def test_a_connection_is_kept_for_the_next_fetch_from_its_host():
    body, asked = png(64, 48), []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            stream, _ = server.accept()  # once
            with stream:
                while asked.append(stream.recv(4096)) or asked[-1]:
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
                    stream.sendall(head % len(body) + body)

        threading.Thread(target=serve, daemon=True).start()
        fetcher = Fetcher(FetchLimits(allow_private=True, retries=0))
        for path in "abc":
            assert read(fetcher, f"http://127.0.0.1:{server.getsockname()[1]}/{path}") == body
    assert len(asked) >= 3


def test_the_very_address_of_the_connection_is_checked(image_server, monkeypatch):
    """Whatever passed the look-up, no socket is opened to an address that is not public."""
    image_server.add_image("/a.jpg")
    answer = [("127.0.0.1", image_server.port)]
    monkeypatch.setattr(Resolver, "resolve", lambda *a: answer)
    url = f"http://passed.example:{image_server.port}/a.jpg"
    assert reason(url, allow_private=False) == "private_address"
    assert not image_server.hits and fetch(url)


def test_a_proxy_of_the_environment_is_not_used(image_server, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(image_server.add_image("/a.jpg"))


def test_a_certificate_that_nobody_vouches_for_is_its_own_reason(tmp_path):
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-batch",
            "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"]  # fmt: skip
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):  # the client ends it
                context.wrap_socket(server.accept()[0], server_side=True)

        threading.Thread(target=serve, daemon=True).start()
        port = server.getsockname()[1]
        assert reason(f"https://localhost:{port}/a.jpg") == "certificate"


def test_large_bodies_wait_for_a_place_so_that_memory_holds(image_server, monkeypatch):
    """32 threads, bodies of 2 MB, room for two of them: never more than two at a time."""
    monkeypatch.setattr(fetch_module, "HELD_BYTES", 5 << 20)
    held, most = [], []

    class Watched(fetch_module.Body):
        def admit(self, size):
            admitted = super().admit(size)
            if self._holds and self not in held:
                held.append(self)
                most.append(len(held))
            return admitted

        def close(self):
            if self in held:
                held.remove(self)
            super().close()

    monkeypatch.setattr(fetch_module, "Body", Watched)
    content = png(64, 48) + bytes(2 << 20)
    image_server.pages["/large.png"] = (200, {}, content)
    fetcher = Fetcher(FetchLimits(allow_private=True, max_bytes=(5 << 20) // 2, retries=0))
    with ThreadPoolExecutor(32) as pool:
        sizes = list(
            pool.map(lambda _: len(read(fetcher, image_server.url + "/large.png")), range(48))
        )
    assert sizes == [len(content)] * 48 and max(most) <= 2 and not held


def test_the_declared_memory_of_a_worker_holds_at_its_worst():
    settings = DownloadSettings()
    waiting = 2 * settings.threads * SMALL_BYTES  # img2dataset queues twice its threads
    large = (
        max(fetch_module.HELD_BYTES, settings.max_bytes) * 3 // 2
    )  # some are copied as they grow
    decoding = 4 * 3 * settings.max_pixels  # as loaded, turned, copied and converted
    rest = 650_000_000  # the libraries, and a shard of 10,000 rows
    assert waiting + large + decoding + rest <= DownloadWorker.MEMORY


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "1xx": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000),
    "a header": (b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65536),
    "a status": (b"HTTP/1.1 200 ", b"y" * 65536),
    "no status": (b"", b"y" * 65536),
    "a chunk's extension": (CHUNKED + b"1;", b"e" * 65536),
    "a chunk's size": (CHUNKED, b"f" * 65536),
    "trailers": (CHUNKED + b"0\r\n", b"T: x\r\n" * 1000),
    "a length": (b"HTTP/1.1 200 OK\r\nContent-Length: ", b"9" * 65536),
    "a negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b"X" * 65536),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("endless", ANSWERS)
def test_nothing_of_a_response_may_go_on_for_ever(image_server, endless):
    head, more = ANSWERS[endless]

    def flood(handler):
        handler.wfile.write(head)
        while True:
            handler.wfile.write(more)

    image_server.pages["/flood"] = flood
    assert reason(image_server.url + "/flood", deadline=3, max_bytes=1 << 20) in (
        "bad_response",
        "too_large",
        "timeout",
    )
