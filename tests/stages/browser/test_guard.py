"""The served page against hostile requests: no path, no address, no size gets through."""

import http.server
import itertools
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import httpx
import pytest

from codeseg.model.inference.segmenter import Segmenter
from codeseg.stages.browser.guard import MAX_BODY
from codeseg.stages.browser.page import build
from codeseg.stages.browser.serve import serve
from tests.helpers.app_server import Served, free_port

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
    path.write_bytes(b"not yours")
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


def file_data(path, url=None):
    """What Gradio's own script sends for a file."""
    return {"path": path, "url": url, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}


def opened(seen, path):
    return [what for event, what in seen if event == "open" and str(path) in what]


def test_no_input_of_any_event_takes_a_file_a_path_or_an_address(served, seen, secret, bait):
    address, visits = bait
    wrongs = [
        file_data(str(secret)),
        file_data(address),
        file_data(str(secret), address),
        [file_data(str(secret))],
        [[{"deep": [file_data(address)]}]],
        {"path": str(secret)},
    ]
    events = [event for event in served.events().values() if event["inputs"]]
    assert len(events) >= 7
    turn = itertools.cycle(range(len(wrongs)))
    for event, _ in itertools.product(events, range(3)):
        number = next(turn)
        data = [None] * len(event["inputs"])
        # The first place is the session's, kept at the server.
        data[1 + number % (len(data) - 1)] = wrongs[number]
        answer = served.call(event, data)
        assert not answer["success"]
        assert "takes no files" in json.dumps(answer["output"])
    assert not visits and not opened(seen, secret)


def test_the_picture_of_an_event_is_bytes_or_nothing(served, seen, secret, bait):
    address, visits = bait
    event = served.events()["drop", "picture"]
    wrongs = [str(secret), f"file://{secret}", address, file_data(str(secret)), file_data(address)]
    for wrong in (*wrongs, [str(secret)]):
        for event_data in ({"picture": wrong}, wrong):
            answer = served.call(event, [None] * len(event["inputs"]), event_data)
            refused = not answer["success"]  # by Gradio, which looks for files here, too
            assert refused or 'role="alert"' in answer["output"]["data"][-1]
    assert not visits and not opened(seen, secret)


def test_the_record_of_opened_files_and_visits_would_show_them(seen, secret, bait):
    address, visits = bait
    secret.read_bytes()
    assert opened(seen, secret)
    httpx.get(address)
    assert visits == ["/x.png"]


def test_gradio_itself_would_have_copied_a_file_named_in_a_text_input(tmp_path, monkeypatch, seen):
    """What PlainBlocks is for: without it the path of an object is opened."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    upload = tmp_path / "x.png"
    upload.write_bytes(b"of another visitor")
    with gr.Blocks(analytics_enabled=False) as page:
        box = gr.Textbox()
        gr.Button().click(lambda written: str(written), box, box)
    _, address, _ = page.launch(
        server_port=free_port(), prevent_thread_lock=True, quiet=True, share=False, footer_links=[]
    )
    try:
        there = Served(page, address.rstrip("/"))
        event = next(iter(there.events().values()))
        there.call(event, [file_data(str(upload))])
        assert opened(seen, upload)
    finally:
        page.close(verbose=False)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file={secret}"),
        ("HEAD", "/gradio_api/file={secret}"),
        ("GET", "/gradio_api/file/{secret}"),
        ("GET", "/file={secret}"),
        ("GET", "/gradio_api/file={address}"),
        ("GET", "/gradio_api/proxy={address}"),
        ("GET", "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{secret}"),
        ("GET", "/assets/%2e%2e/%2e%2e/{secret}"),
        ("GET", "/assets/{secret}"),
        ("GET", "/?deep_link=../../{secret}"),
        ("GET", "/config?deep_link=abc"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/run/segment"),
        ("POST", "/gradio_api/api/segment"),
        ("POST", "/gradio_api/call/segment"),
        ("POST", "/gradio_api/component_server/"),
        ("POST", "/gradio_api/process_recording"),
        ("GET", "/gradio_api/info"),
        ("GET", "/monitoring/summary"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("PUT", "/"),
        ("OPTIONS", "/gradio_api/queue/join"),
    ],
)
def test_gradios_other_addresses_are_closed(served, seen, secret, bait, method, path):
    address, visits = bait
    url = served.address + path.format(secret=secret, address=address)
    answer = httpx.request(method, url, json={} if method == "POST" else None)
    assert answer.status_code in (404, 400)
    assert not visits and not opened(seen, secret)


@pytest.mark.parametrize("told", [True, False])
def test_a_body_beyond_the_limit_is_refused_while_it_arrives(served, told):
    def chunks():
        for _ in range(MAX_BODY // 2**20 + 2):
            yield b" " * 2**20

    url = f"{served.address}/gradio_api/queue/join"
    headers = {"content-type": "application/json"}
    content = b" " * (MAX_BODY + 1) if told else chunks()
    answer = httpx.post(url, content=content, headers=headers, timeout=60)
    assert answer.status_code in (400, 413)


def test_a_name_of_another_host_is_refused(served):
    for host, status in (
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost", 200),
    ):
        assert httpx.get(f"{served.address}/", headers={"host": host}).status_code == status


def test_the_page_is_told_to_load_from_its_own_server_only(served):
    answer = httpx.get(f"{served.address}/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert "fonts.googleapis" not in httpx.get(f"{served.address}/theme.css").text


def test_starting_and_using_the_page_talks_to_this_machine_only(seen):
    served = Served.start(Segmenter.open(clip="storybook"))
    try:
        events = served.events()
        assert served.call(events["examples", "example"], [], {"example": 0})["success"]
    finally:
        served.page.close(verbose=False)
    talks = [what for event, what in seen if event != "open"]
    assert talks and all("127.0.0.1" in what or "localhost" in what for what in talks), talks


def test_a_taken_port_is_one_line_that_says_what_to_do(served):
    port = int(served.address.rpartition(":")[2])
    with pytest.raises(ValueError, match="is taken, or") as refused:
        serve(build(served.segmenter, "a test"), "127.0.0.1", port)
    assert "\n" not in str(refused.value)


def test_a_visitor_sees_only_their_own_picture(served):
    events = served.events()
    words = [None, ["sun"], True, 0.4, 0.5]
    assert served.call(events["examples", "example"], [], {"example": 1}, session="a" * 8)[
        "success"
    ]
    mine = served.call(events["segment", "click"], words, session="a" * 8)
    assert "base64" in mine["output"]["data"][1]
    other = served.call(events["segment", "click"], words, session="b" * 8)
    assert "pick an example first" in other["output"]["data"][-1]


def test_requests_wait_for_the_model_one_at_a_time(served, monkeypatch):
    events = served.events()
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
        served.call(events["examples", "example"], [], {"example": 2}, session=name)
        if name.endswith("1"):
            sent = [None, ["cat"], "maskclip", "naclip", True, 0.4, 0.5]
            return served.call(events["compare", "click"], sent, session=name)
        return served.call(
            events["segment", "click"], [None, ["cat"], True, 0.4, 0.5], session=name
        )

    with ThreadPoolExecutor(4) as visitors:
        answers = list(visitors.map(visit, ["visit0", "visit1", "visit2", "visit3"]))
    assert all("base64" in json.dumps(answer["output"]) for answer in answers)
    assert len(most) >= 5 and max(most) == 1
