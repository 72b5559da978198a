import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeseg.model.override import field_types, override
from codeseg.stages.training.config import differences
from codeseg.stages.training.recipes import HARMLESS, RECIPES, resolve


def test_code_vitb16_is_the_papers_run_to_the_last_constant():
    recipe = resolve("code_vitb16")
    train, model = recipe.train, recipe.model
    assert (recipe.clip.model, recipe.clip.pretrained) == ("ViT-B-16", "openai")
    assert (train.steps, train.batch_size, train.accumulation) == (50_001, 64, 1)
    assert (train.warmup_steps, train.phase1_steps) == (15_000, 30_000)
    assert train.peak_lr == pytest.approx(5e-6)
    assert train.final_lr == pytest.approx(6.25e-7)
    assert (train.betas, train.eps, train.weight_decay) == ((0.9, 0.999), 1e-6, 0.05)
    assert (train.clip_norm, train.precision) == (5.0, "bf16")
    assert (train.decay_scalars, train.warmup_start, model.clip_start) == (True, 1e-4, False)
    assert (model.nouns_per_image, model.context_tokens, model.area_prior) == (2, 16, 0.25)
    weights = {key: value for key, value in dataclasses.asdict(model).items() if "weight" in key}
    assert weights == {
        "region_weight": 0.0,
        "knowledge_weight": 8.0,
        "tcl_feature_weight": 0.1,
        "tcl_image_weight": 0.1,
        "tv_embedding_weight": 1.0,
        "tv_mask_weight": 1.0,
        "area_positive_weight": 0.5,
        "area_negative_weight": 0.05,
        "word_weight": 1.0,
        "hcl_weight": 0.5,
        "none_class_weight": 0.5,
    }


@pytest.mark.parametrize("family", ["vitb16", "storybook"])
def test_ablations_differ_from_the_full_recipe_in_their_switches_only(family):
    full = {"vitb16": "code_vitb16", "storybook": "storybook"}[family]
    baseline = {"vitb16": "baseline_vitb16", "storybook": "storybook_baseline"}[family]
    switches = ("co_decomposition", "word_prompt", "region_prompt")
    expected = {
        baseline: (False, False, False),
        f"{full}_c": (True, False, False),
        f"{full}_cw": (True, True, False),
        full: (True, True, True),
    }
    for name, values in expected.items():
        recipe = resolve(name)
        assert recipe.name == name
        assert tuple(getattr(recipe.model, switch) for switch in switches) == values
        ignore = {"name", *(f"model.{switch}" for switch in switches)}
        assert (
            differences(dataclasses.asdict(resolve(full)), dataclasses.asdict(recipe), ignore) == []
        )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_its_saved_file(name, tmp_path):
    recipe = resolve(name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"codeseg": "1", "data": {}, **dataclasses.asdict(recipe)}))
    assert resolve(None, path) == recipe


def test_partial_toml_takes_the_rest_from_the_recipe_it_names(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "storybook"\n[train]\nsteps = 7\nbetas = [0.9, 0.95]\n')
    recipe = resolve(None, path, ["train.seed=3"])
    assert (recipe.train.steps, recipe.train.betas, recipe.train.seed) == (7, (0.9, 0.95), 3)
    assert recipe.clip == resolve("storybook").clip


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.steps=100", 100),
        ("train.base_lr=1e-3", 1e-3),
        ("train.betas=0.9,0.95", (0.9, 0.95)),
        ("train.compile=true", True),
        ("train.precision=fp16", "fp16"),
        ("train.wandb=mine", "mine"),
        ("train.wandb=none", None),
        ("model.region_prompt=False", False),
        ("clip.pretrained=/a=b.safetensors", "/a=b.safetensors"),
    ],
)
def test_set_reads_a_value_as_its_fields_type(assignment, value):
    section, field = assignment.partition("=")[0].split(".")
    assert getattr(getattr(resolve(None, None, [assignment]), section), field) == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.step=100", "unknown setting train.step: did you mean train.steps"),
        ("steps=100", "did you mean train.steps"),
        ("train.steps", "write it as key=value"),
        ("train.steps=many", "setting train.steps is a whole number, not 'many'"),
        ("train.steps=1.5", "setting train.steps is a whole number"),
        ("train.precision=fp8", "one of fp32, bf16, fp16, not 'fp8'"),
        ("train.compile=yes", "setting train.compile is true or false"),
        ("train.betas=0.9", "values separated by commas"),
        ("train.steps=0", "setting train.steps must be above 0"),
        ("train.base_lr=nan", "setting train.base_lr is a number"),
        ("train.warmup_fraction=2", "setting train.warmup_fraction must lie in 0..1"),
        ("train.accumulation=3", "does not divide into 3 micro-batches"),
        ("train=1", "unknown setting train"),
    ],
)
def test_bad_set_is_one_line_that_says_what_would_be_right(assignment, message):
    with pytest.raises(ValueError) as caught:
        resolve("code_vitb16", None, [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json does not parse"),
        ("a.toml", "= 3", "a.toml does not parse"),
        ("a.json", "[1]", "holds no table"),
        ("a.yaml", "", "neither .json nor .toml"),
        ("a.json", '{"train": {"stepz": 1}}', "a.json: unknown setting train.stepz"),
        ("a.json", '{"train": {"steps": "1x"}}', "a.json: setting train.steps"),
        ("a.json", '{"train": {"compile": 1}}', "a.json: setting train.compile"),
        ("a.json", '{"train": 3}', "a.json: unknown setting train"),
        ("a.json", '{"name": "nope"}', "there is no recipe 'nope'"),
    ],
)
def test_bad_file_is_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as caught:
        resolve(None, tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_unknown_recipe_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no configuration file"):
        resolve(None, tmp_path / "none.json")
    with pytest.raises(ValueError, match="did you mean code_vitb16"):
        resolve("code_vitb17")
    with pytest.raises(ValueError, match="not both"):
        resolve("storybook", tmp_path / "none.json")


def test_harmless_settings_exist():
    assert set(field_types(resolve())) >= HARMLESS


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_assignment_is_taken_or_refused_with_a_value_error(key, value):
    try:
        recipe = resolve(None, None, [f"{key}={value}"])
    except ValueError as error:
        assert str(error)
    else:
        assert key.strip() in field_types(recipe)


@given(st.sampled_from(sorted(field_types(resolve()))), st.text(max_size=12))
def test_any_text_for_a_known_setting_keeps_its_type_or_is_refused(key, value):
    try:
        changed = override(resolve(), {key: value})
    except ValueError as error:
        assert key in str(error)
    else:
        assert type(changed) is type(resolve())
