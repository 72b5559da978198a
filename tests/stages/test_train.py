import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.multiprocessing as mp

from codeseg.model.checkpoint import checkpoints, load_checkpoint, load_tensors
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.codecomposition import CoDe
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.storage import Storage
from codeseg.stages.training.loop import fit, initial_state
from codeseg.stages.training.optimizer import build_optimizer, learning_rate
from codeseg.stages.training.recipes import HARMLESS, resolve
from codeseg.stages.training.run import OtherRunError
from codeseg.stages.training.runlog import read_metrics
from codeseg.stages.training.stepper import Stepper
from tests.helpers.tiny_run import assignments, make_root, tiny_recipe

MACHINE_COLUMNS = {"seconds", "samples_per_second", "data_wait_share", "memory_bytes", "mfu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Before every run of the module: sums of another number of threads have other last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(root, one_thread):
    run = root.parent / "undisturbed"
    assert fit(root, run, tiny_recipe(root))
    return run


def model_bytes(run):
    return (checkpoints(run)[-1] / "model.safetensors").read_bytes()


def deterministic_metrics(run):
    table = read_metrics(run)
    return table.drop_columns([c for c in table.column_names if c in MACHINE_COLUMNS])


def start(root, run, *more):
    sets = [part for value in assignments(root, *more) for part in ("--set", value)]
    return subprocess.Popen(
        [sys.executable, "-m", "codeseg", "train", str(root), str(run), *sets],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def signal_at(process, step, number):
    """Send a signal as soon as the process says it has done the step; the rest of its output."""
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    process.wait(60)
    return rest


# -- resume ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_terminated_run_ends_with_the_same_bits(root, undisturbed, tmp_path):
    run = tmp_path / "run"
    process = start(root, run)
    rest = signal_at(process, 1, signal.SIGINT)
    assert process.returncode == 130, "a shell goes on to no next command"
    assert "was stopped and saved" in rest and "Traceback" not in rest
    process = start(root, run)
    signal_at(process, 3, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert checkpoints(run)[-1].name == "step-000002"
    process = start(root, run)
    rest = signal_at(process, 4, signal.SIGTERM)
    assert process.returncode == 0
    assert "was stopped and saved" in rest
    process = start(root, run)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "step 6/6" in output and "step 4/6" not in output
    assert model_bytes(run) == model_bytes(undisturbed)
    assert deterministic_metrics(run).equals(deterministic_metrics(undisturbed))


@pytest.mark.parametrize("step", [0, 2, 4])
def test_run_resumed_from_any_checkpoint_ends_with_the_same_bits(root, undisturbed, tmp_path, step):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for path in checkpoints(run):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    assert fit(root, run, tiny_recipe(root, "train.prefetch=1"))
    assert model_bytes(run) == model_bytes(undisturbed)
    assert deterministic_metrics(run).equals(deterministic_metrics(undisturbed))


def test_two_threads_resume_with_the_same_bits_too(root, tmp_path):
    torch.set_num_threads(2)
    try:
        assert fit(root, tmp_path / "whole", tiny_recipe(root))
        shutil.copytree(tmp_path / "whole", tmp_path / "parts")
        shutil.rmtree(checkpoints(tmp_path / "parts")[-1])
        assert fit(root, tmp_path / "parts", tiny_recipe(root))
    finally:
        torch.set_num_threads(1)
    assert model_bytes(tmp_path / "parts") == model_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_on_two_roots_ends_with_the_same_bits_from_any_checkpoint(root, tmp_path):
    other, recipe = tmp_path / "other", tiny_recipe(root, "train.weights=0.7,0.3")
    shutil.copytree(root, other)
    assert fit([root, other], tmp_path / "whole", recipe)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for path in checkpoints(tmp_path / "resumed")[1:]:
        shutil.rmtree(path)
    assert fit([root, other], tmp_path / "resumed", recipe)
    assert model_bytes(tmp_path / "resumed") == model_bytes(tmp_path / "whole")
    with pytest.raises(OtherRunError):
        fit([other, root, root], tmp_path / "whole", tiny_recipe(root, "train.weights=1,1,1"))


def test_finished_run_says_so_and_changes_nothing(root, undisturbed, capsys):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()}
    assert fit(root, undisturbed, tiny_recipe(root))
    assert "is finished: 6 steps" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()}


def test_other_seed_gives_other_weights(root, undisturbed, tmp_path):
    assert fit(root, tmp_path / "run", tiny_recipe(root, "train.seed=1"))
    assert model_bytes(tmp_path / "run") != model_bytes(undisturbed)


def test_run_with_other_settings_is_refused_with_the_difference(root, undisturbed):
    with pytest.raises(OtherRunError) as caught:
        fit(root, undisturbed, tiny_recipe(root, "train.seed=1", "train.log_every=5"))
    assert caught.value.lines == ["train.seed: 0 -> 1"]
    assert str(undisturbed) in str(caught.value)


def test_compilation_may_change_on_resume():
    assert "train.compile" in HARMLESS


@pytest.mark.slow
def test_longer_run_is_allowed_where_done_steps_keep_their_rate_and_else_says_how(
    root, undisturbed, tmp_path
):
    with pytest.raises(OtherRunError, match=r"train.steps: 6 -> 9.*NEW_RUN --from"):
        fit(root, undisturbed, tiny_recipe(root, "train.steps=9"))
    flat = ("train.base_final_lr=1e-3", "train.warmup_fraction=0", "train.phase1_fraction=0")
    assert fit(root, tmp_path / "run", tiny_recipe(root, *flat))
    assert fit(root, tmp_path / "run", tiny_recipe(root, *flat, "train.steps=9"))
    assert fit(root, tmp_path / "whole", tiny_recipe(root, *flat, "train.steps=9"))
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "whole")
    with pytest.raises(OtherRunError, match=r"train.steps: 9 -> 8"):
        fit(root, tmp_path / "run", tiny_recipe(root, *flat, "train.steps=8"))


def test_run_from_another_begins_with_its_weights_and_a_fresh_schedule(root, undisturbed, tmp_path):
    run, still = tmp_path / "run", tiny_recipe(root, "train.steps=1", "train.base_lr=1e-30")
    assert fit(root, run, still, undisturbed)
    assert read_metrics(run)["step"].to_pylist() == [1]
    mine, theirs = load_checkpoint(run).tensors, load_checkpoint(undisturbed).tensors
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    with pytest.raises(OtherRunError, match=r"data.from: .* -> \(absent\)"):
        fit(root, run, still)


def test_run_with_other_data_is_refused_with_the_difference(undisturbed, tmp_path):
    other = make_root(tmp_path, seed=1)
    recipe = tiny_recipe(other)
    with pytest.raises(OtherRunError) as caught:
        fit(other, undisturbed, recipe)
    assert any(line.startswith("data.contents: ") for line in caught.value.lines)


def test_folder_of_something_else_is_refused(root, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not a run of codeseg"):
        fit(root, tmp_path, tiny_recipe(root))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_full_disk_spares_the_previous_checkpoint_and_says_so(root, undisturbed, tmp_path):
    run = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Phase 2 begins at step 4: the optimizer's state of step 6 no longer fits, step 4's does.
    sizes = [(path / "optimizer.safetensors").stat().st_size for path in checkpoints(undisturbed)]
    resource.setrlimit(resource.RLIMIT_FSIZE, ((sizes[1] + sizes[2]) // 2, hard))
    try:
        with pytest.raises(OSError, match="earlier checkpoints are untouched"):
            fit(root, run, tiny_recipe(root))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-000002", "step-000004"]
    assert fit(root, run, tiny_recipe(root))
    assert model_bytes(run) == model_bytes(undisturbed)


def test_last_checkpoints_are_kept(root, tmp_path):
    fit(root, tmp_path / "run", tiny_recipe(root, "train.keep_checkpoints=2"))
    names = [path.name for path in checkpoints(tmp_path / "run")]
    assert names == ["step-000004", "step-000006"]


def test_damaged_checkpoint_is_named(root, undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "checkpoints" / "step-000006")
    damaged = run / "checkpoints" / "step-000004" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"step-000004/optimizer\.safetensors is damaged"):
        fit(root, run, tiny_recipe(root))


# -- what a step does -----------------------------------------------------------------------------


def test_learning_rate_warms_up_linearly_and_ends_at_the_final_rate():
    train = resolve("code_vitb16").train
    assert learning_rate(0, train) == pytest.approx(train.peak_lr / 10_000)
    assert learning_rate(7_500, train) == pytest.approx(train.peak_lr * (0.5 + 0.5e-4))
    assert learning_rate(15_000, train) == pytest.approx(train.peak_lr)
    assert learning_rate(50_000, train) == pytest.approx(train.final_lr)
    rates = [learning_rate(step, train) for step in range(15_000, 50_001, 1_000)]
    assert rates == sorted(rates, reverse=True)


def test_learning_rate_of_the_demo_reaches_its_peak_within_the_warm_up():
    train = resolve("storybook").train
    rates = [learning_rate(step, train) / train.peak_lr for step in (0, 4, 9, 10, 99)]
    assert rates == pytest.approx([0.1, 0.5, 1, 1, 0.1])


def test_weight_decay_spares_layers_biases_and_one_dimensional_parameters_only():
    parameters = {
        "conv.weight": torch.nn.Parameter(torch.ones(2, 2, 3, 3)),
        "norm.weight": torch.nn.Parameter(torch.ones(2)),
        "linear.bias": torch.nn.Parameter(torch.ones(2)),
        "temperature": torch.nn.Parameter(torch.ones(())),
        "mask_bias": torch.nn.Parameter(torch.ones(())),
    }
    for name, scalars in (("code_vitb16", 0.05), ("storybook", 0.0)):
        groups = build_optimizer(parameters, resolve(name).train).param_groups
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert [decays[id(p)] for p in parameters.values()] == [0.05, 0, 0, scalars, scalars]


def test_nine_scalars_are_decayed(root):
    recipe = tiny_recipe(root)
    code = CoDe(FrozenClip.load(recipe.clip.model, recipe.clip.pretrained), recipe.model)
    state = initial_state(code, recipe.train, torch.device("cpu"))
    decayed = state.optimizer.param_groups[0]["params"]
    assert sum(parameter.ndim == 0 for parameter in decayed) == 9


def test_last_block_moves_in_phase_2_only(root, undisturbed):
    steps = {
        path.name: {
            name: tensor
            for name, tensor in load_checkpoint(path).tensors.items()
            if name.startswith("image_segmenter.block.")
        }
        for path in checkpoints(undisturbed)
    }
    first, middle, last = (steps[f"step-00000{step}"] for step in (2, 4, 6))
    assert first
    assert all(torch.equal(first[name], middle[name]) for name in first)
    assert not all(torch.equal(middle[name], last[name]) for name in first)


def test_metrics_hold_every_term_and_they_add_up(undisturbed):
    table = read_metrics(undisturbed)
    assert table["step"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert table["phase"].to_pylist() == [1, 1, 1, 1, 2, 2]
    assert {"lr", "grad_norm", *MACHINE_COLUMNS} <= set(table.column_names)
    terms = [name for name in table.column_names if name.startswith("loss_")]
    assert {"loss_kg", "loss_word", "loss_hcl"} <= set(terms)
    for row in table.to_pylist():
        assert row["loss"] == pytest.approx(sum(row[name] for name in terms), rel=1e-5)
        assert 0 <= row["data_wait_share"] <= 1
        assert row["mfu"] > 0 and row["memory_bytes"] > 1e7


def test_checkpoint_holds_nothing_of_the_frozen_clip(undisturbed):
    assert not [name for name in load_checkpoint(undisturbed).tensors if name.startswith("clip.")]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_near_fp32(root, undisturbed, tmp_path, precision):
    fit(root, tmp_path / "run", tiny_recipe(root, f"train.precision={precision}"))
    mine, full = read_metrics(tmp_path / "run"), read_metrics(undisturbed)
    assert mine["loss"][0].as_py() == pytest.approx(full["loss"][0].as_py(), rel=0.05)
    assert model_bytes(tmp_path / "run") != model_bytes(undisturbed)


@pytest.mark.parametrize("image_tokens", ["int8", "none"])
def test_other_forms_of_image_tokens_train(tmp_path, image_tokens):
    root = make_root(tmp_path, image_tokens=image_tokens)
    assert fit(root, tmp_path / "run", tiny_recipe(root, "train.steps=2"))


@pytest.mark.parametrize("name", ["baseline_vitb16", "code_vitb16_c", "code_vitb16_cw"])
def test_ablations_train_and_leave_their_prompts_at_zero(root, tmp_path, name):
    recipe = resolve(name, None, assignments(root, "train.steps=2"))
    assert fit(root, tmp_path / "run", recipe)
    tensors = load_checkpoint(tmp_path / "run").tensors
    assert not tensors["region_prompt"].any()
    if name == "code_vitb16_cw":
        assert tensors["word_prompt"].any()
    elif name == "code_vitb16_c":
        assert not tensors["word_prompt"].any()
    else:
        assert not [key for key in tensors if key.startswith("text_segmenter")]


def test_paper_forms_train(root, tmp_path):
    forms = ("model.random_template=true", "model.squared_knowledge=true")
    assert fit(root, tmp_path / "run", tiny_recipe(root, "train.steps=2", *forms))


def test_accumulated_loss_is_the_mean_over_micro_batches(root, tmp_path):
    parts = tiny_recipe(root, "train.steps=1", "train.batch_size=8", "train.accumulation=2",
                        "train.base_lr=1e-12", "train.base_final_lr=0")  # fmt: skip
    still = tiny_recipe(root, "train.steps=2", "train.base_lr=1e-12", "train.base_final_lr=0")
    fit(root, tmp_path / "still", still)
    fit(root, tmp_path / "parts", parts)
    terms = ("loss_kg", "loss_tv_embedding", "loss_word")  # free of the mask's noise
    for term in terms:
        each = read_metrics(tmp_path / "still")[term].to_pylist()
        mean = read_metrics(tmp_path / "parts")[term].to_pylist()
        assert mean == pytest.approx([sum(each) / 2], rel=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one(root, tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    every = ("train.checkpoint_every=1", "train.keep_checkpoints=6")
    assert fit(root, alone, tiny_recipe(root, *every))
    sets = [part for value in assignments(root, *every) for part in ("--set", value)]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "codeseg", "train",
            str(root), str(run), *sets,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 6/6") == 1
    mine, one = deterministic_metrics(run), deterministic_metrics(alone)
    for name in one.column_names:
        assert mine[name].to_pylist() == pytest.approx(one[name].to_pylist(), rel=1e-5)
    shared, single = first_gradients(run), first_gradients(alone)
    assert shared.keys() == single.keys() and len(shared) > 10
    for name in shared:
        assert (shared[name] - single[name]).norm() <= 1e-5 * single[name].norm(), name


def _node(rank, roots, folder, runs, port):
    """One of two processes, each with its own ROOT and RUN; writes down what it was told."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    recipe = tiny_recipe(roots[0])
    try:
        fit(roots[rank], folder / runs[rank], recipe)
    except (ValueError, OSError) as error:
        (folder / f"told{rank}").write_text(str(error))


def run_nodes(*arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_node, (*arguments, port), nprocs=2)


@pytest.mark.slow
def test_process_whose_data_do_not_open_leaves_no_other_waiting(root, tmp_path):
    run_nodes([root, tmp_path / "not-mounted"], tmp_path, ["run", "run"])
    here, there = ((tmp_path / f"told{rank}").read_text() for rank in (0, 1))
    assert "not-mounted holds no features" in there
    assert here == f"process 1 failed: {there}"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_processes_that_do_not_share_the_run_are_refused(root, undisturbed, tmp_path, begun):
    if begun:  # one node has the checkpoints, the other does not
        shutil.copytree(undisturbed, tmp_path / "run0")
        shutil.rmtree(checkpoints(tmp_path / "run0")[-1])
    run_nodes([root, root], tmp_path, ["run0", "run1"])
    for rank in range(2):
        told = (tmp_path / f"told{rank}").read_text()
        assert told.startswith("process 1 does not see the same RUN as process 0: put RUN and ROOT")
        assert "\n" not in told
    assert not (tmp_path / "run1").exists()


def first_gradients(run):
    """After one step AdamW's first moment is (1 - beta_1) times the clipped gradient."""
    tensors = load_tensors(checkpoints(run)[0] / "optimizer.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.endswith(".exp_avg")}


# -- what goes wrong ------------------------------------------------------------------------------


def test_non_finite_loss_stops_before_the_weights_move_and_names_the_term(root, tmp_path):
    run = tmp_path / "run"
    recipe = tiny_recipe(root, "train.base_lr=1e30", "train.checkpoint_every=1")
    with pytest.raises(
        FloatingPointError, match=r"loss_.* not finite; the weights were not updated"
    ):
        fit(root, run, recipe)
    (path,) = run.glob("nonfinite-step-*.json")
    report = json.loads(path.read_text())
    assert len(report["keys"]) == 4
    assert checkpoints(run)[-1].name == f"step-{report['step'] - 1:06d}"
    assert all(t.isfinite().all() for t in load_checkpoint(run).tensors.values())


def test_figures_read_later_name_the_step_since_which_nothing_moved(root, tmp_path, monkeypatch):
    """As on a GPU, where each reading would wait; the fused optimizer of the CPU stands for it."""
    plain = Stepper.__init__

    def reads_at_rows(self, state, *more):
        plain(self, state, *more)
        for group in state.optimizer.param_groups:
            group["fused"] = True
        self.reads_each_step = False

    monkeypatch.setattr(Stepper, "__init__", reads_at_rows)
    every = ("train.log_every=6", "train.checkpoint_every=6")
    assert fit(root, tmp_path / "well", tiny_recipe(root, *every))
    run, states = tmp_path / "run", []
    real = Stepper.update

    def watched(self, norm):
        rate = real(self, norm)
        states.append([p.detach().clone() for p in self._state.parameters.values()])
        return rate

    monkeypatch.setattr(Stepper, "update", watched)
    with pytest.raises(
        FloatingPointError, match=r"loss_.* not finite; the weights were not updated"
    ):
        fit(root, run, tiny_recipe(root, "train.base_lr=1e30", *every))
    (path,) = run.glob("nonfinite-step-*.json")
    report = json.loads(path.read_text())
    assert 1 < report["step"] < 6 and len(report["keys"]) == 4
    still = states[report["step"] - 2 :]  # from the step before the bad one on
    assert len(still) > 1
    for weights in still[1:]:
        assert all(map(torch.equal, weights, still[0]))
    assert not checkpoints(run)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("train.batch_size=1000",), "fewer than one batch of 1000"),
        (("model.nouns_per_image=3",), "captions of 2 nouns but 3"),
        (("clip.pretrained=random:2",), "was made with CLIP .*random:1.* but this is .*random:2"),
        (("clip.model=ViT-B-32",), "were made with CLIP .*clip.json/random:1"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_no_run(root, tmp_path, more, message):
    with pytest.raises(ValueError, match=message) as caught:
        fit(root, tmp_path / "run", tiny_recipe(root, *more))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_root_without_features_says_what_to_run(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="run `codeseg features"):
        fit(tmp_path / "empty", tmp_path / "run", tiny_recipe(root))


def test_truncated_shard_stops_unless_skipping_is_asked_for(tmp_path, capsys):
    root = make_root(tmp_path)
    shard = root / "features" / "00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"features/00001\.arrow"):
        fit(root, tmp_path / "run", tiny_recipe(root))
    assert fit(root, tmp_path / "run", tiny_recipe(root, "train.skip_corrupt=true"))
    assert "skipping shard 00001" in capsys.readouterr().out


@pytest.mark.slow
def test_command_prints_the_difference_and_exits_2(root, undisturbed):
    process = start(root, undisturbed, "train.seed=1")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert len(output.splitlines()) == 1 and output.count("train.seed: 0 -> 1") == 1
    assert "was started with --recipe code_vitb16 and other" in output
    assert f"continue with --config {undisturbed / 'config.json'} on the same data" in output


def test_metrics_are_plain_parquet(undisturbed):
    assert pq.read_metadata(Path(undisturbed) / "metrics.parquet").num_rows == 6


def test_a_runs_card_names_its_roots_down_to_the_lists(root, tmp_path):
    ledger = Ledger(Storage.open(root))
    ledger.write_settings("pairs", {"manifest": "cc3m"})
    ledger.write_settings("urls", {"list": [["list.tsv", 123, "0a1b"]]})
    assert fit(root, tmp_path / "run", tiny_recipe(root, "train.steps=1"))
    card = (checkpoints(tmp_path / "run")[-1] / "README.md").read_text()
    assert f"- `{root.name}`, manifest cc3m, made from list.tsv 123 0a1b" in card
    assert f"`{root}`" not in card
