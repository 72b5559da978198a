import dataclasses

import pytest

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.inference.settings import METHODS, PredictionSettings
from codeseg.pipeline.benchmark.manifest import benchmark_names, load_benchmark
from codeseg.pipeline.benchmark.protocol import load_protocol, own_protocol, protocol_names


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load("storybook", "storybook")


@pytest.mark.parametrize("name", protocol_names())
def test_every_protocol_gives_settings_that_fit_and_a_name_to_every_class(clip, name):
    protocol = load_protocol(name)
    for benchmark in map(load_benchmark, benchmark_names()):
        settings = PredictionSettings.for_clip(
            clip, protocol.settings_for(benchmark), method="naclip"
        )
        settings.check()
        assert settings.protocol == settings.record()["protocol"] == name
        names = protocol.class_names(benchmark)
        assert len(names) == len(benchmark.classes) and all(names)


def test_the_code_protocol_is_what_the_settings_are_without_one():
    fields = {f.name: f.default for f in dataclasses.fields(PredictionSettings)}
    settings = load_protocol("code").settings_for(load_benchmark("voc"))
    assert settings == {key: fields[key] for key in settings}


def test_pixels_of_a_protocol_are_for_a_clip_of_224_and_recorded_ones_hold_under_code(clip):
    voc = load_benchmark("voc")
    sclip = PredictionSettings.for_clip(clip, load_protocol("sclip").settings_for(voc))
    assert (sclip.short_side, sclip.window, sclip.stride) == (96, 64, 32)
    code = PredictionSettings.for_clip(clip, load_protocol("code").settings_for(voc))
    assert (code.short_side, code.window, code.templates) == (96, 96, "imagenet")


def test_a_method_is_played_by_its_own_protocol_unless_told():
    own = {method: own_protocol(method) for method in METHODS}
    assert own["naclip"] == "naclip" and own["maskclip"] == "clearclip"
    assert own["code"] == own["scg"] == own["naclip+scg"] == "code"


def test_names_of_a_family_are_inherited_and_replaced():
    voc = load_benchmark("voc")
    sclip, clearclip = (load_protocol(n).class_names(voc) for n in ("sclip", "clearclip"))
    assert len(sclip[0]) == 26 and clearclip[0] == ("background",)
    assert sclip[4] == clearclip[4] == ("ship",)
    assert load_protocol("plain").class_names(voc) == [(name,) for name in voc.classes]


def test_settings_of_one_benchmark_stand_over_the_general_ones():
    naclip = load_protocol("naclip")
    assert naclip.settings_for(load_benchmark("voc"))["window"] == 0
    assert naclip.settings_for(load_benchmark("ade20k"))["window"] == 224


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title = 'x'", "the protocol lacks 'source'"),
        ("title = ", "not a TOML file"),
    ],
)
def test_a_wrong_protocol_file_is_one_line(tmp_path, content, message):
    (tmp_path / "p.toml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_protocol(str(tmp_path / "p.toml"))


def test_unknown_protocols_and_classes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown protocol 'cod'; there are clearclip, code"):
        load_protocol("cod")
    path = tmp_path / "p.toml"
    path.write_text('title = "x"\nsource = "y"\n[settings]\n[names.voc]\nunicorn = ["a"]\n')
    with pytest.raises(ValueError, match=r"names classes that voc lacks: \['unicorn'\]"):
        load_protocol(str(path)).class_names(load_benchmark("voc"))
