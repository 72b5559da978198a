"""Requirements by extra, from the installed metadata; the extra that brings a missing module."""

import pytest

from codeseg.pipeline.engine.requirements import extra_of, read_requirements


def test_requirements_are_grouped_by_extra_and_hold_only_what_this_python_needs(
    tmp_path, monkeypatch
):
    folder = tmp_path / "codeseg-0.1.0.dist-info"
    folder.mkdir()
    lines = [
        "Metadata-Version: 2.4", "Name: codeseg", "Version: 0.1.0", "Requires-Dist: torch>=2.8",
        "Provides-Extra: pipeline", 'Requires-Dist: spacy<4,>=3.8; extra == "pipeline"',
        'Requires-Dist: old; python_version < "3" and extra == "pipeline"',
        "Provides-Extra: dev", 'Requires-Dist: codeseg[pipeline]; extra == "dev"',
    ]  # fmt: skip
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {extra: [r.name for r in group] for extra, group in read_requirements().items()}
    assert names == {"": ["torch"], "pipeline": ["spacy"]}


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("spacy.lang.en", "pipeline"), ("ray", "pipeline"), ("gradio", "app"), ("onnx", "export"),
        ("boto3", "cluster"), ("torch", None), ("my_own_module", None), ("", None),
    ],
)  # fmt: skip
def test_only_a_module_that_an_extra_brings_is_said_to_come_with_one(module, extra):
    assert extra_of(module) == extra
