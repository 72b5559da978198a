"""The Space: the same page, from the wheel of this very version."""

import ast
import json
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from codeseg.stages.browser.serve import PageBlocks
from tests.model.clip.test_hub import load, small_default

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "deploy" / "space"


def test_it_installs_codeseg_with_the_page_from_the_wheel_of_this_version():
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    (needed,) = [Requirement(line) for line in lines if not line.startswith("#")]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (needed.name, needed.extras) == ("codeseg", {"app"})
    assert needed.url.endswith(f"/codeseg-{version}-py3-none-any.whl")


def test_it_imports_nothing_but_the_installed_package():
    code = ast.parse((SPACE / "app.py").read_text())
    froms = [node.module for node in ast.walk(code) if isinstance(node, ast.ImportFrom)]
    plain = [n.name for node in ast.walk(code) if isinstance(node, ast.Import) for n in node.names]
    assert plain == ["os"] and all(name.split(".")[0] == "codeseg" for name in froms)
    assert not [path for path in SPACE.iterdir() if path.is_dir()]


def test_its_card_names_the_gradio_that_the_tests_run_with():
    card = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert f"gradio=={card['sdk_version']}" in (ROOT / "constraints.txt").read_text().split()
    assert card["sdk"] == "gradio" and (SPACE / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60


def test_it_serves_the_page_to_the_proxy_of_its_container(monkeypatch):
    served = []
    monkeypatch.setattr("codeseg.stages.browser.serve.serve", lambda *given: served.append(given))
    monkeypatch.setattr(PageBlocks, "block_thread", lambda self: None)
    monkeypatch.delenv("CODESEG_RUN", raising=False)
    monkeypatch.setenv("CODESEG_CLIP", "storybook")
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    ((page, host, port),) = served
    assert isinstance(page, PageBlocks) and (host, port) == ("0.0.0.0", 7860)


SPACE_STARTS = """
import json, runpy, sys
import open_clip
open_clip.add_model_config(sys.argv[1])  # a small one by the default's name
from codeseg.stages.browser import page, serve
built, build = [], page.build
page.build = lambda segmenter: built.append(segmenter) or build(segmenter)
serve.serve = lambda page, host, port: print(host, port)
serve.PageBlocks.block_thread = lambda self: None
runpy.run_path(sys.argv[2], run_name="__main__")
(segmenter,) = built
print(json.dumps([segmenter.clip.name, segmenter.clip.pretrained, segmenter.settings.method]))
"""


@pytest.mark.slow
def test_without_variables_it_starts_with_the_default_that_the_hub_gives(tmp_path, monkeypatch):
    for name in ("RUN", "CLIP", "METHOD"):
        monkeypatch.delenv(f"CODESEG_{name}", raising=False)
    hub = small_default(tmp_path)
    try:
        space = load(hub, tmp_path / "cache", tmp_path, SPACE / "app.py", program=SPACE_STARTS)
    finally:
        hub.stop()
    assert space.returncode == 0, space.stderr
    assert "fetching ViT-B-16/openai once, " in space.stderr
    place, opened = space.stdout.splitlines()
    assert place == "0.0.0.0 7860" and json.loads(opened) == ["ViT-B-16", "openai", "scclip"]
