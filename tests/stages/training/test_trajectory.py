"""Twenty steps of the trainer are those of the plain rendering with the optimizer longhand."""

from dataclasses import replace

import pytest

from tests import trajectory


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("trajectory") / "plain.npz"
    assert trajectory.main([str(path), "--make"]) == 0
    return path


def test_losses_of_every_step_and_the_last_weights_agree_across_the_phases(stored, capsys):
    assert trajectory.main([str(stored)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("loss/hcl" in line for line in lines)
    assert any("end/image_segmenter.block.mlp" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "weight"),
    [
        ({"decay_scalars": False}, "end/image_segmenter.mask_scale"),
        ({"warmup_start": None}, "end/noun_prompt.context"),
    ],
)
def test_constant_that_is_not_the_references_is_found(stored, monkeypatch, change, weight):
    monkeypatch.setattr(trajectory, "TRAIN", replace(trajectory.TRAIN, **change))
    assert trajectory.compare(stored)[weight] > trajectory.TOLERANCE
