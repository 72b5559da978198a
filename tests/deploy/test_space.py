"""The Space: the same page, with what the project itself asks for."""

import runpy
import tomllib
from pathlib import Path

import yaml

from codeseg.stages.browser.serve import PlainBlocks

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "deploy" / "space"


def test_it_installs_what_the_page_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    needed = [*project["dependencies"], *project["optional-dependencies"]["app"]]
    assert [line for line in lines if not line.startswith("#")] == needed


def test_its_card_names_the_gradio_that_the_tests_run_with():
    card = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert f"gradio=={card['sdk_version']}" in (ROOT / "constraints.txt").read_text().split()
    assert card["sdk"] == "gradio" and (SPACE / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60


def test_it_serves_the_page_to_the_proxy_of_its_container(monkeypatch):
    served = []
    monkeypatch.setattr("codeseg.stages.browser.serve.serve", lambda *given: served.append(given))
    monkeypatch.setattr(PlainBlocks, "block_thread", lambda self: None)
    monkeypatch.delenv("CODESEG_RUN", raising=False)
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    ((page, host, port),) = served
    assert isinstance(page, PlainBlocks) and (host, port) == ("0.0.0.0", 7860)
