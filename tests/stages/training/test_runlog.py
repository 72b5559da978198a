"""Where a run's figures go besides metrics.parquet: a terminal, TensorBoard, W&B."""

import io
import sys

import pytest
from rich.console import Console

from codeseg.stages.training.live import LiveTable, plain_line
from codeseg.stages.training.recipes import resolve
from codeseg.stages.training.runlog import RunLog

FIGURES = {
    "phase": 1, "loss": 5.5, "loss_kg": 3.25, "loss_tv_mask": 2.25, "grad_norm": 42.125,
    "lr": 1e-3, "seconds": 1.0, "samples_per_second": 74.0, "data_wait_share": 0.125,
    "memory_bytes": 3 * 2**30, "mfu": None,
}  # fmt: skip
RECIPE = ("storybook", None)


def log_steps(run, steps, start=0, *sets):
    with RunLog(run, resolve(*RECIPE, sets), start, is_main=True) as log:
        for step in steps:
            log.row({"step": step, **FIGURES, "loss": 5.5 / step})
        log.save()


def test_live_table_shows_every_term_and_goes_on_where_the_run_stopped():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=90, color_system=None)
    table = LiveTable(console, 30, 100)
    table.start()
    table.stop()
    assert "30/100" in screen.getvalue()
    table.start()
    table.show({"step": 40, **FIGURES})
    table.stop()
    last = screen.getvalue().split("loss ")[-1]
    for shown in ("5.5", "kg", "3.25", "tv mask", "2.25", "gradient norm", "42.12", "0.001", "74"):
        assert shown in last
    assert "12.5%" in last and "3.00 GiB" in last and "–" in last and "phase 1" in last
    assert "40/100" in last
    assert len(last.splitlines()) <= 8  # fits a small terminal


def test_plain_line_is_one_line_that_a_script_can_read():
    line = plain_line({"step": 40, **FIGURES}, 100)
    assert line.startswith("step 40/100  loss 5.5  lr 0.001  ") and "\n" not in line


def test_tensorboard_gets_every_figure_and_forgets_steps_that_are_done_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_steps(tmp_path, [1, 2, 3, 4])
    log_steps(tmp_path, [3, 4, 5], 2)  # killed after step 4, resumed from step 2
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss/kg", "loss/tv_mask", "loss", "grad_norm", "lr"} <= set(events.Tags()["scalars"])
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(step, pytest.approx(5.5 / step)) for step in (1, 2, 3, 4, 5)]


@pytest.mark.slow
def test_wandb_gets_every_figure(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_steps(tmp_path / "run", [1, 2, 3], 0, "train.wandb=toy")
    wandb.teardown()  # its service writes the last of the file when it ends
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for tag in (b"loss/kg", b"loss/tv_mask", b"grad_norm", b"samples_per_second"):
        assert content.count(tag) >= 3


def test_absent_wandb_is_one_line_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'codeseg\[wandb\]'") as caught:
        log_steps(tmp_path, [], 0, "train.wandb=toy")
    assert "\n" not in str(caught.value)


def test_absent_tensorboard_changes_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log_steps(tmp_path, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.parquet"]
