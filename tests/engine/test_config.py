"""Settings: layers, checks and the ways in which people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medclipsam.engine.config import (
    BoxConfig,
    EngineConfig,
    make_config,
    merge,
    parse_settings,
    read_toml,
)
from medclipsam.engine.crf import CrfConfig
from medclipsam.engine.errors import ConfigError


def test_no_layers_are_the_defaults():
    assert make_config() == make_config({}, {}) == EngineConfig()


def test_later_layers_win_setting_by_setting():
    bundle = {"crf": {"tau": 2.0, "iterations": 3}, "null_prompts": ["a", "b"]}
    file = {"crf": {"tau": 1.5}, "fit": "pad"}
    flags = {"crf": {"threshold": 0.4}, "boxes": {"select": "all"}}
    config = make_config(bundle, file, flags)
    assert config.crf == CrfConfig(tau=1.5, iterations=3, threshold=0.4)
    assert config.boxes == BoxConfig(select="all")
    assert config.fit == "pad" and config.null_prompts == ("a", "b")
    assert make_config(flags, file, bundle).crf.tau == 2.0


def test_layers_are_left_as_they_were():
    bundle, flags = {"crf": {"tau": 2.0}}, {"crf": {"tau": 1.5}}
    make_config(bundle, flags)
    assert (bundle, flags) == ({"crf": {"tau": 2.0}}, {"crf": {"tau": 1.5}})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tau": 1}, "unknown setting tau"),
        ({"crf": {"tua": 1}}, r"unknown setting crf\.tua.*crf\.tau"),
        ({"crf": 3}, "crf is a group"),
        ({"crf": {"tau": {"x": 1}}}, r"crf\.tau is a number"),
        ({"crf": {"tau": "warm"}}, r"crf\.tau is a number \(float\)"),
        ({"crf": {"tau": None}}, r"crf\.tau is a number"),
        ({"crf": {"tau": True}}, r"crf\.tau is a number"),
        ({"crf": {"tau": [1.0]}}, r"crf\.tau is a number"),
        ({"crf": {"tau": 0}}, r"crf\.tau must be positive"),
        ({"crf": {"iterations": 1.5}}, r"crf\.iterations is a number \(int\)"),
        ({"crf": {"iterations": "inf"}}, r"crf\.iterations is a number \(int\)"),
        ({"crf": {"iterations": "nan"}}, r"crf\.iterations is a number \(int\)"),
        ({"crf": {"iterations": False}}, r"crf\.iterations is a number \(int\)"),
        ({"saliency": {"method": "magic"}}, r"saliency\.method.*magic"),
        ({"saliency": {"method": 3}}, r"saliency\.method must be gscorecam, .* got 3"),
        ({"saliency": {"k": 0}}, r"saliency\.k"),
        ({"saliency": {"blur": "0.1|0.2"}}, r"saliency\.blur is a number \(float\)"),
        ({"saliency": {"blur": 0}}, r"saliency\.blur must be positive"),
        ({"saliency": {"spot": -1}}, r"saliency\.spot must be positive"),
        ({"saliency": {"ridge": "nan"}}, r"saliency\.ridge must be finite"),
        ({"saliency": {"target": "norm3"}}, "norm1 or norm2"),
        ({"segment": {"batch": 0}}, r"segment\.batch must be at least 1"),
        ({"segment": {"boxes": -1}}, r"segment\.boxes must be at least 1"),
        ({"boxes": {"select": "some"}}, "some"),
        ({"fit": "crop"}, "squash or pad"),
        ({"presence": 0.1}, "null_prompts"),
        ({"presence": "high", "null_prompts": ["a"]}, "presence is a number"),
        ({"null_prompts": 5}, "null_prompts is a list of texts"),
        ({"null_prompts": ["a", 5]}, "null_prompts is a list of texts"),
        ({"null_prompts": {"a": "b"}}, "null_prompts is a list of texts"),
        ({"saliency": {"method": "contrastcam"}}, "null_prompts"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(ConfigError, match=said):
        make_config(settings)


def test_a_single_setting_is_not_a_group():
    with pytest.raises(ConfigError, match="fit is a single setting"):
        merge({"fit": "pad"}, {"fit": {"x": 1}})


def test_texts_from_the_command_line_become_what_the_field_wants():
    settings = parse_settings(
        (
            "crf.tau=1.2",
            "crf.iterations = 3",
            "saliency.blur=0.1",
            "null_prompts=a scan|another = one",
            "presence=none",
            "saliency.method=contrastcam",
            "segment.batch=2e0",
            "crf.tau=1.3",
        )
    )
    config = make_config(settings)
    assert config.crf == CrfConfig(tau=1.3, iterations=3)
    assert config.saliency.blur == 0.1
    assert config.null_prompts == ("a scan", "another = one")
    assert config.presence is None and config.segment.batch == 2
    assert type(config.segment.batch) is int and type(config.crf.iterations) is int
    assert make_config({"null_prompts": "a"}, parse_settings(("presence=-0.02",))).presence == -0.02


@pytest.mark.parametrize("pair", ["crf.tau", "=3", "", "1.2"])
def test_pairs_without_name_or_value_are_refused(pair):
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_settings((pair,))


def test_a_group_cannot_be_set_inside_a_setting():
    with pytest.raises(ConfigError, match="single setting"):
        parse_settings(("fit=pad", "fit.side=2"))


name = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)


@given(st.lists(name, min_size=1, max_size=4), st.text().map(str.strip))
def test_any_path_and_value_survive(path, value):
    nested = parse_settings((f"{'.'.join(path)}={value}",))
    for part in path:
        (key,) = nested
        assert key == part
        nested = nested[key]
    assert nested == value


@given(st.floats(1e-3, 1e3), st.integers(0, 50))
def test_numbers_and_their_texts_are_one(tau, iterations):
    numbers = make_config({"crf": {"tau": tau, "iterations": iterations}})
    texts = make_config(parse_settings((f"crf.tau={tau!r}", f"crf.iterations={iterations}")))
    assert numbers == texts and math.isclose(texts.crf.tau, tau, rel_tol=0)


def test_toml(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('fit = "pad"\nnull_prompts = ["norm|al", "é"]\n[crf]\ntau = 2\n', "utf-8")
    config = make_config(read_toml(path))
    assert config.fit == "pad" and config.crf.tau == 2.0
    assert config.null_prompts == ("norm|al", "é")


@pytest.mark.parametrize("content", [b"fit = ", b"fit = 'a\n", b"\xff\xfe", None])
def test_toml_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"settings\.toml"):
        read_toml(path)


def test_a_text_for_a_group_is_its_choice():
    config = make_config({"crf": {"tau": 2}}, {"crf": "pydensecrf", "boxes": "all"})
    assert (config.crf.solver, config.crf.tau) == ("pydensecrf", 2)
    assert config.boxes.select == "all"
    assert parse_settings(("crf.tau=2", "crf=pydensecrf"))["crf"] == {
        "tau": "2", "solver": "pydensecrf",
    }  # fmt: skip
    assert make_config({"segment": {"boxes": "8"}}).segment.boxes == 8
    with pytest.raises(ConfigError, match="numba or pydensecrf"):
        make_config({"crf": "gpu"})
