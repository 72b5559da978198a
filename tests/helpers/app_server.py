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


@dataclass
class Served:
    """A running page."""

    page: object
    address: str
    segmenter: object = None
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def start(cls, segmenter):
        page = build(segmenter, "a test")
        return cls(page, serve(page, "127.0.0.1", free_port()).rstrip("/"), segmenter)

    def events(self):
        """Its events: name of the action's component and trigger -> the function's number."""
        config = httpx.get(f"{self.address}/config").json()
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        return {
            (names[target], trigger): event
            for event in config["dependencies"]
            for target, trigger in event["targets"]
        }

    def call(self, event, data, event_data=None, session=None):
        """Run one event; its last message: {"success": …, "output": {…}}."""
        session = session or self.session
        body = {
            "data": data,
            "event_data": event_data,
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
