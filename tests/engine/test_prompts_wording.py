"""Prompts are read whole, or refused in words that say what would be lost."""

import re
import warnings

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from medclipsam.engine.cli.main import main
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.prompts import check_wording, cut_wording, read_tokens
from medclipsam.engine.types import Prompts

KNOWN = ["breast", "ultrasound", "showing", "a", "mass"]
RGB = np.zeros((40, 56, 3), np.uint8)
RGB[10:30, 20:40] = 200


@pytest.fixture(scope="module")
def engine():
    return Engine.open("phantom", "cpu", settings={"saliency": {"method": "gradcam"}}, threads=1)


@pytest.fixture(scope="module")
def tokenizer(engine):
    return engine.bundle.clip.tokenizer


def repeated(count: int) -> str:
    return " ".join(KNOWN[n % len(KNOWN)] for n in range(count))


def transformers_ids(tokenizer, text: str) -> list[int]:
    """The tokenizer inside open_clip's, asked without any limit."""
    return tokenizer.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("count", [1, 5, 29, 30])
def test_texts_up_to_the_context_are_read_whole(tokenizer, count):
    text = repeated(count)
    assert list(read_tokens(tokenizer, text)) == transformers_ids(tokenizer, text)
    assert len(read_tokens(tokenizer, text)) == count + 2 <= tokenizer.context_length
    assert cut_wording(tokenizer, Prompts({"m": (text,)})) == (Prompts({"m": (text,)}), [])


@pytest.mark.parametrize("count", [31, 32, 57, 5000])
def test_longer_ones_are_refused_with_what_would_be_lost(tokenizer, count):
    words = [*repeated(count - 1).split(), "last"]
    text = " ".join(words)
    whole = len(transformers_ids(tokenizer, text))
    with pytest.raises(ConfigError, match="shorten it") as caught:
        read_tokens(tokenizer, text)
    said = str(caught.value)
    assert f"makes {whole} tokens" in said and "reads 32" in said
    assert f"the first 30 of its {count} words" in said
    assert repr(" ".join(words[30:]))[:100] in said and len(said) < 600
    (cut,), (again,) = (*cut_wording(tokenizer, Prompts({"m": (text,)}))[0].texts["m"],), [said]
    assert cut == " ".join(words[:30]) and again == said


def test_a_single_word_beyond_the_context_is_refused(tokenizer):
    word = "qx" * 200
    if len(transformers_ids(tokenizer, word)) <= tokenizer.context_length:
        word = "-".join(["a"] * 40)
    with pytest.raises(ConfigError, match="the first 0 of its 1 words"):
        cut_wording(tokenizer, Prompts({"m": (word,)}))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*KNOWN, "unheardof", "x-ray,", "é", "ﷺ", "T2"]), max_size=60))
def test_nothing_is_ever_cut_in_silence(tokenizer, words):
    text = " ".join(words)
    whole = transformers_ids(tokenizer, tokenizer.clean_fn(text))
    try:
        assert list(read_tokens(tokenizer, text)) == whole
    except ConfigError:
        assert len(whole) > tokenizer.context_length


EQUAL = [
    ({"a": ("a Mass",), "b": ("a  mass",)}, ()),
    ({"a": ("mass qqq",), "b": ("mass zzz",)}, ()),
    ({"a": ("mass", "cyst"), "b": ("Cyst", "mass")}, ()),
    ({"x": ("lungs",), "a": ("mass",), "b": ("mass",)}, ()),
    ({"a": ("Normal brain MRI",)}, ("normal lungs", "normal brain mri")),
]


@pytest.mark.parametrize(("texts", "nulls"), EQUAL)
def test_prompts_that_are_the_same_to_the_model_are_refused_by_name(tokenizer, texts, nulls):
    first = f"null prompt {nulls[1]!r}" if nulls else f"prompt a={' | '.join(texts['a'])!r}"
    last = "a" if nulls else "b"
    with pytest.raises(ConfigError, match="the same to this model") as caught:
        check_wording(tokenizer, Prompts(texts), nulls)
    assert first in str(caught.value)
    assert f"prompt {last}={' | '.join(texts[last])!r}" in str(caught.value)


def test_prompts_that_share_a_wording_are_two(tokenizer):
    check_wording(tokenizer, Prompts({"a": ("mass", "cyst"), "b": ("mass",), "c": ("cyst",)}))
    check_wording(tokenizer, Prompts({"a": ("normal lungs", "mass")}), ("normal lungs",))


LONG = f"{repeated(40)} and"


def test_segmenting_one_image_warns_and_uses_the_words_that_fit(engine):
    with pytest.warns(UserWarning, match="the first 30 of its 41 words"):
        cut = engine.segment(RGB, {"m": LONG})["m"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = engine.segment(RGB, {"m": repeated(30)})["m"]
    np.testing.assert_array_equal(cut.saliency, plain.saliency)
    with pytest.warns(UserWarning), pytest.raises(ConfigError, match="the same to this model"):
        engine.segment(RGB, {"a": f"{LONG} mass", "b": f"{LONG} cyst"})


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images").mkdir()
    assert cv2.imwrite(str(tmp_path / "images/a.png"), RGB[..., 0])
    (tmp_path / "truth/m").mkdir(parents=True)
    assert cv2.imwrite(str(tmp_path / "truth/m/a.png"), (RGB[..., 0] > 99) * np.uint8(255))
    (tmp_path / "long.csv").write_text(f"item,label,prompt\na.png,n,a cyst\nb.png,m,{LONG}\n")
    (tmp_path / "same.csv").write_text("item,label,prompt\na.png,m,a cyst\na.png,n,A cyst\n")
    (tmp_path / "long.toml").write_text(f'[prompts]\nm = ["a mass", "{LONG}"]\n')
    (tmp_path / "same.toml").write_text('[prompts]\nm = "a mass"\nn = "A mass"\n')
    (tmp_path / "nulls.toml").write_text(f'null_prompts = ["{LONG}"]\n')
    (tmp_path / "mine.toml").write_text('null_prompts = ["A mass"]\n')
    return tmp_path


RUN = ["run", "{}/images", "-o", "{}/out"]
COMMANDS = {
    "run": [*RUN, "-p", f"m={LONG}"],
    "run same": [*RUN, "-p", "m=a mass", "-p", "n=A Mass"],
    "run table": [*RUN, "--prompts", "{}/long.csv"],
    "run table same": [*RUN, "--prompts", "{}/same.csv"],
    "run config": [*RUN, "--config", "{}/long.toml"],
    "run config same": [*RUN, "--config", "{}/same.toml"],
    "run nulls": [*RUN, "-p", "m=a mass", "--config", "{}/nulls.toml"],
    "run null same": [*RUN, "-p", "m=a mass", "--config", "{}/mine.toml"],
    "inspect": ["inspect", "{}/images/a.png", "-p", f"m={LONG}", "-o", "{}/x.png"],
    "inspect same": ["inspect", "{}/images/a.png", "-p", "m=a mass", "-p", "n=A mass"],
    "tune": ["tune", "{}/images", "{}/truth", "-p", f"m={LONG}", "-o", "{}/best.toml"],
    "tune nulls": ["tune", "{}/images", "{}/truth", "-p", "m=a mass", "--config", "{}/nulls.toml",
                   "-o", "{}/best.toml"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_such_prompts(files, name):
    words = [word.replace("{}", str(files)) for word in COMMANDS[name]]
    options = ["--device", "cpu", "--threads", "1", "--saliency", "gradcam"]
    result = CliRunner().invoke(main, [*words, *options])
    assert result.exit_code == 2, result.output
    said = re.sub(r"\s+", " ", result.output)
    assert ("the same to this model" if "same" in name else "would be dropped") in said
    assert not (files / "out").exists() and not (files / "x.png").exists()
    if "table" in name:
        assert ("item 'a.png'" if "same" in name else "item 'b.png'") in said
