"""The page served in this process, and its events called as a browser's script would call them."""

import json
import socket
import uuid
from dataclasses import dataclass, field

import httpx

from codeseg.stages.browser.page import build
from codeseg.stages.browser.serve import serve


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def file_data(path, url=None):
    """What Gradio's own script sends for a file."""
    return {"path": path, "url": url, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}


@dataclass
class Served:
    """A running page."""

    page: object
    address: str
    segmenter: object = None
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def start(cls, segmenter):
        page = build(segmenter)
        return cls(page, serve(page, "127.0.0.1", free_port()).rstrip("/"), segmenter)

    def events(self):
        """Its events: name of the action's component and trigger -> the function's number."""
        config = httpx.get(f"{self.address}/config").json()
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        return {
            (names.get(target), trigger): event
            for event in config["dependencies"]
            for target, trigger in event["targets"]
        }

    def upload(self, content, name="x.png"):
        """Upload a file as the picture's component does; what its event then sends."""
        sent = {"files": (name, content)}
        answer = httpx.post(f"{self.address}/gradio_api/upload", files=sent, timeout=60)
        answer.raise_for_status()
        return file_data(answer.json()[0])

    def call(self, event, data, session=None):
        """Run one event; its last message: {"success": …, "output": {…}}."""
        session = session or self.session
        body = {
            "data": data,
            "fn_index": event["id"],
            "trigger_id": event["targets"][0][0],
            "session_hash": session,
        }
        joined = httpx.post(f"{self.address}/gradio_api/queue/join", json=body, timeout=60)
        if joined.status_code != 200:
            return {"success": False, "output": joined.json()}
        stream = f"{self.address}/gradio_api/queue/data?session_hash={session}"
        with httpx.stream("GET", stream, timeout=120) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("the event never ended")
