"""The served page against hostile requests: no path, no address, no size gets through."""

import http.server
import itertools
import json
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from codeseg.model.inference.segmenter import Segmenter
from codeseg.stages.browser.page import EXAMPLES, build
from codeseg.stages.browser.serve import FOLDER, MAX_BYTES, MAX_EVENT, serve
from tests.helpers.app_server import Served, file_data, free_port
from tests.stages.browser.test_page import png

SEEN = None  # (event, what) of every file opened and every connection made, while not None


def record(event, arguments):
    if SEEN is not None and event in ("open", "socket.connect", "socket.getaddrinfo"):
        SEEN.append((event, str(arguments[0] if event == "open" else arguments)))


sys.addaudithook(record)


@pytest.fixture
def seen(secret):  # which is written before anything is recorded
    global SEEN
    SEEN = []
    yield SEEN
    SEEN = None


@pytest.fixture(scope="module")
def served():
    served = Served.start(Segmenter.open(clip="storybook"))
    yield served
    served.page.close(verbose=False)


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(png(20, 20))  # a picture: a page that opened it could show it
    return path


@pytest.fixture
def bait():
    """A web server on loopback that counts who comes."""
    visits = []

    class Bait(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            visits.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bait)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/x.png", visits
    server.shutdown()
    server.server_close()


def opened(seen, path):
    return [what for event, what in seen if event == "open" and str(path) in what]


def asked_for(seen, host):
    return [what for event, what in seen if event != "open" and host in what]


@pytest.mark.slow
def test_no_input_of_any_event_takes_a_path_or_an_address(served, seen, secret, bait):
    address, visits = bait
    own = file_data(str(FOLDER / "none.png"))
    public = "https://pictures.invalid/x.png"  # Gradio fetches public addresses
    wrongs = [
        {"path": str(secret)},  # without Gradio's mark, a picture's path is not even checked
        file_data(str(secret)),
        file_data(f"{FOLDER}/../{secret}"),
        file_data(address),
        file_data(public),
        file_data(str(secret), public),
        [[{"deep": [file_data(public)]}]],
        own | {"inside": file_data(public)},
        {"path": None, "url": public},
    ]
    events = [event for event in served.events().values() if event["inputs"]]
    assert len(events) >= 4
    for event, wrong in itertools.product(events, wrongs):
        for place in range(len(event["inputs"])):
            data = [None] * len(event["inputs"])
            data[place] = wrong
            answer = served.call(event, data)
            assert not answer["success"], (event["targets"], wrong)
    assert not visits and not opened(seen, secret) and not asked_for(seen, "pictures.invalid")


def test_the_record_of_opened_files_and_visits_would_show_them(seen, secret, bait):
    address, visits = bait
    secret.read_bytes()
    assert opened(seen, secret)
    httpx.get(address)
    assert visits == ["/x.png"]
    with pytest.raises(OSError):
        socket.getaddrinfo("pictures.invalid", 443)
    assert asked_for(seen, "pictures.invalid")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file={secret}"),
        ("HEAD", "/gradio_api/file={secret}"),
        ("GET", "/gradio_api/file/{secret}"),
        ("GET", "/file={secret}"),
        ("GET", "/gradio_api/file={folder}/..{secret}"),
        ("GET", "/gradio_api/file={folder}"),
        ("GET", "/gradio_api/file={address}"),
        ("GET", "/gradio_api/file=https://pictures.invalid/x.png"),
        ("GET", "/gradio_api/file=https:%2f%2fpictures.invalid/x.png"),
        ("GET", "/gradio_api/file/https://pictures.invalid/x.png"),
        ("GET", "/gradio_api/proxy=https://pictures.invalid/x.png"),
        ("GET", "/gradio_api/proxy={address}"),
        ("GET", "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{secret}"),
        ("GET", "/assets/%2e%2e/%2e%2e/{secret}"),
        ("GET", "/?deep_link=../../{secret}"),
        ("GET", "/config?deep_link=abc"),
        ("GET", "/gradio_api/deep_link?session_hash=a"),
        ("POST", "/gradio_api/run/segment"),
        ("POST", "/gradio_api/api/segment"),
        ("POST", "/gradio_api/call/segment"),
        ("POST", "/gradio_api/component_server/"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/login"),
        ("GET", "/monitoring/summary"),
        ("GET", "/docs"),
        ("PUT", "/"),
    ],
)
def test_no_address_of_gradio_serves_or_fetches_what_is_not_the_pages(
    served, seen, secret, bait, method, path
):
    address, visits = bait
    path = path.format(secret=secret, address=address, folder=FOLDER)
    answer = httpx.request(method, served.address + path, json={} if method == "POST" else None)
    assert answer.status_code >= 400, answer.text
    assert method != "POST" or answer.text == "there is nothing here"
    assert not visits and not opened(seen, secret) and not asked_for(seen, "pictures.invalid")


def test_an_event_that_wants_the_queue_cannot_be_run_without_it(served):
    for event in served.events().values():
        body = {"data": [None] * len(event["inputs"]), "fn_index": event["id"]}
        answer = httpx.post(f"{served.address}/gradio_api/run/predict", json=body)
        assert answer.status_code >= 400


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("path", "limit"),
    [("upload", MAX_BYTES + MAX_EVENT), ("queue/join", MAX_EVENT), ("run/predict", MAX_EVENT)],
)
def test_a_body_beyond_the_limit_is_refused_while_it_arrives(served, path, limit, told):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    start, kind = (head, "multipart/form-data; boundary=x") if path == "upload" else (b"[", "json")
    body = start + b" " * limit
    pieces = (body[at : at + 2**20] for at in range(0, len(body), 2**20))
    headers = {"content-type": kind if "/" in kind else f"application/{kind}"}
    url = f"{served.address}/gradio_api/{path}"
    answer = httpx.post(url, content=body if told else pieces, headers=headers, timeout=60)
    assert answer.status_code == 413


def test_an_event_of_brackets_costs_no_more_than_its_bytes_may(served):
    brackets = b'{"data":[' + b",".join([b"[]"] * (MAX_EVENT // 3 - 20)) + b"]}"
    nested = b'{"data":' + b"[" * (MAX_EVENT - 10)
    url = f"{served.address}/gradio_api/queue/join"
    for body in (brackets, nested, b"[]," * 8_000_000):  # the last would have taken 1.3 GB
        answer = httpx.post(url, content=body, headers={"content-type": "application/json"})
        assert answer.status_code >= 400
    assert httpx.get(f"{served.address}/").status_code == 200


def test_a_file_beyond_the_limit_is_refused_and_not_kept(served):
    before = sorted(FOLDER.rglob("*"))
    sent = {"files": ("x.png", b"0" * (MAX_BYTES + 1))}
    assert httpx.post(f"{served.address}/gradio_api/upload", files=sent).status_code == 413
    assert sorted(FOLDER.rglob("*")) == before


def test_a_name_of_another_host_and_another_sites_scripts_are_refused(served):
    port = served.address.rpartition(":")[2]
    for host, status in (
        ("evil.example", 403),
        (f"evil.example:{port}", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost", 200),
        (f"127.0.0.1:{port}", 200),
    ):
        assert httpx.get(f"{served.address}/", headers={"host": host}).status_code == status
    for origin, refused in (
        ("https://evil.example", True),
        ("null", True),
        (f"http://127.0.0.1:{port}", False),
    ):
        sent = {"files": ("x.png", b"0")}
        url, headers = f"{served.address}/gradio_api/upload", {"origin": origin}
        assert (httpx.post(url, files=sent, headers=headers).status_code == 403) is refused


def test_the_page_is_told_to_load_from_its_own_server_only(served):
    answer = httpx.get(f"{served.address}/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert "fonts.googleapis" not in httpx.get(f"{served.address}/theme.css").text


def test_starting_and_using_the_page_talks_to_this_machine_only(seen):
    served = Served.start(Segmenter.open(clip="storybook"))
    try:
        data = [served.upload(png(60, 40)), "dog", True, 0.4]
        assert served.call(served.events()["segment", "click"], data)["success"]
    finally:
        served.page.close(verbose=False)
    talks = [what for event, what in seen if event != "open"]
    assert talks and all("127.0.0.1" in what or "localhost" in what for what in talks), talks


def test_a_taken_port_is_one_line_that_says_what_to_do(served):
    port = int(served.address.rpartition(":")[2])
    with pytest.raises(ValueError, match="is taken or not") as refused:
        serve(build(served.segmenter), "127.0.0.1", port)
    assert "\n" not in str(refused.value)


def test_the_folder_is_for_this_user_alone_and_goes_with_the_server(tmp_path):
    assert FOLDER.stat().st_mode & 0o077 == 0
    code = "from codeseg.stages.browser.serve import FOLDER; print(FOLDER)"
    place = os.popen(f"TMPDIR={tmp_path} {sys.executable} -c '{code}'").read().strip()
    assert place.startswith(str(tmp_path)) and not list(tmp_path.iterdir())


def test_what_a_visitor_sent_is_deleted_after_an_hour(monkeypatch):
    from gradio.route_utils import delete_files_created_by_app

    others = set(FOLDER.rglob("*"))  # of the other tests' server
    served = Served.start(Segmenter.open(clip="storybook"))
    try:
        picture = served.upload(png(61, 41))
        data = [picture, "dog", True, 0.4]
        assert served.call(served.events()["segment", "click"], data)["success"]
        made = {path for path in FOLDER.rglob("*") if path.is_file() and path not in others}
        assert served.page.delete_cache == (60, 3600)
        delete_files_created_by_app(served.page, 0)
        results = {"image.webp", "segments.zip"}
        assert results <= {path.name for path in made}
        assert not results & {path.name for path in made if path.exists()}
        assert str(FOLDER) in picture["path"] and not os.path.exists(picture["path"])
        kept = {path.name for path in FOLDER.rglob("*.png")}
        assert {f"scene-{index}.png" for index in EXAMPLES} <= kept
    finally:
        served.page.close(verbose=False)


def test_requests_wait_for_the_model_one_at_a_time(served, monkeypatch):
    events, picture = served.events(), served.upload(png(60, 40))
    clip, inside, most = served.segmenter.clip, [], []
    trunk = clip.trunk

    def counted(*sent, **named):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        try:
            return trunk(*sent, **named)
        finally:
            inside.pop()

    monkeypatch.setattr(clip, "trunk", counted)

    def visit(name):
        data = [picture, "cat", True, 0.4]
        if name.endswith("1"):
            data = ["maskclip", "naclip", *data]
            return served.call(events["compare", "click"], data, session=name)
        return served.call(events["segment", "click"], data, session=name)

    with ThreadPoolExecutor(4) as visitors:
        answers = list(visitors.map(visit, ["visit0", "visit1", "visit2", "visit3"]))
    assert all("image.webp" in json.dumps(answer["output"]) for answer in answers)
    assert len(most) >= 5 and max(most) == 1


def test_a_port_may_be_asked_for_and_the_page_answers_there():
    page, port = build(Segmenter.open(clip="storybook")), free_port()
    try:
        assert serve(page, "127.0.0.1", port) == f"http://127.0.0.1:{port}/"
    finally:
        page.close(verbose=False)
