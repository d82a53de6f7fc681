"""Tuning: what it reads, what it tries, and that it takes nothing by luck."""

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from medclipsam.engine.cli import main
from medclipsam.engine.config import make_config, read_toml
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.metrics import dice
from medclipsam.engine.prompts import prompts_from_table
from medclipsam.engine.tune import AXES, Candidate, Tuner, read_samples
from medclipsam.engine.types import Prompts
from medclipsam.train.phantoms import PROMPTS, make_phantom

LABELS = ("mass", "cyst")
WANTED = Prompts({label: (PROMPTS[label],) for label in LABELS})


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four ultrasound phantoms: mass, both, cyst, none."""
    root = tmp_path_factory.mktemp("labelled")
    for n, targets in enumerate([("mass",), LABELS, ("cyst",), ()]):
        phantom = make_phantom(4_000_000 + n, "ultrasound", targets)
        write(root / f"images/p/{n}.png", (phantom.pixels * 255 + 0.5).astype(np.uint8))
        for label in LABELS:
            mask = phantom.masks.get(label, np.zeros(phantom.pixels.shape, bool))
            write(root / f"truth/{label}/p/{n}_mask.png", mask.astype(np.uint8) * 255)
    return root


@pytest.fixture(scope="module")
def engine():
    return Engine.open("phantom", "cpu", threads=1)


def test_images_are_paired_with_their_masks(folder):
    samples = read_samples(folder / "images", folder / "truth", LABELS)
    assert len(samples) == 4
    for n, sample in enumerate(samples):
        phantom = make_phantom(4_000_000 + n, "ultrasound", [("mass",), LABELS, ("cyst",), ()][n])
        for label in LABELS:
            expected = phantom.masks.get(label, np.zeros(phantom.pixels.shape, bool))
            assert np.array_equal(sample.truth[label], expected)
    alone = read_samples(folder / "images", folder / "truth" / "mass", ("anything",))
    assert [s.truth["anything"].sum() for s in alone] == [s.truth["mass"].sum() for s in samples]


def test_labels_without_a_mask_are_left_out(folder, tmp_path):
    only = tmp_path / "truth"
    mask = (folder / "truth/mass/p/0_mask.png").read_bytes()
    (only / "mass/p").mkdir(parents=True)
    (only / "mass/p/0.png").write_bytes(mask)
    (sample,) = read_samples(folder / "images", only, LABELS)
    assert list(sample.truth) == ["mass"]


def test_what_does_not_fit_is_said(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"no mask of .* fits"):
        read_samples(folder / "images", folder / "images", ("nodule", "tumor"))
    write(tmp_path / "truth/p/1.png", np.zeros((10, 20), np.uint8))
    with pytest.raises(ConfigError, match="grid"):
        read_samples(folder / "images", tmp_path / "truth", ("mass",))


def test_scores_are_those_of_the_engine(folder, engine):
    """Cached saliency and shared models change nothing."""
    samples = read_samples(folder / "images", folder / "truth", LABELS)
    tuner = Tuner(engine, samples, {})
    for settings in ({}, {"boxes": {"select": "all"}}, {"saliency": {"method": "gradcam"}}):
        fresh = Engine.open("phantom", "cpu", settings=settings, threads=1)
        expected = [
            dice(found[label].mask, mask)
            for sample in samples
            for found in [fresh.segment(sample.frame, {k: PROMPTS[k] for k in LABELS})]
            for label, mask in sample.truth.items()
        ]
        found = tuner.score(Candidate("", "", settings, WANTED))
        assert found.tolist() == expected


class Scripted(Tuner):
    """Scores as a function of the settings, so that the search itself is seen."""

    def score(self, candidate):
        config = self.config(candidate)
        scores = np.linspace(0.4, 0.6, 20)
        if config.boxes.select == "all":
            scores = scores + 0.1  # better everywhere
        if config.crf.iterations == 5:
            scores = scores + 0.2 * (np.arange(20) == 3)  # better by one lucky case
        if config.saliency.method == "m2ib":
            scores = scores - 0.1
        return scores


def test_only_what_is_surely_better_is_taken(engine, monkeypatch):
    axes = tuple(axis for axis in AXES if axis.__name__ != "presences")
    monkeypatch.setattr("medclipsam.engine.tune.AXES", axes)
    seen = []
    tuner = Scripted(engine, [], {"crf": {"tau": 1.2}}, ("an image",), seen.append)
    best, trials = tuner.search(WANTED)
    assert best.settings == {"crf": {"tau": 1.2}, "boxes": {"select": "all"}}
    assert seen == trials and trials[0].verdict == "in use"
    assert [t.candidate.name for t in trials if t.verdict == "taken"] == ["all"]
    lucky = next(t for t in trials if t.candidate.name == "5 iterations")
    assert lucky.gain[0] > 0 and lucky.gain[1] <= 0
    names = {t.candidate.name for t in trials}
    assert {"gscorecam", "scorecam", "gradcam", "m2ib", "an image", "pad=0.0"} <= names


def test_wordings_are_tried_one_by_one(engine):
    from medclipsam.engine.tune import wordings

    prompts = Prompts({"mass": ("a mass", "a tumor"), "cyst": ("a cyst",)})
    tried = list(wordings(Tuner(engine, [], {}), Candidate("", "", {}, prompts)))
    assert [c.prompts.texts["mass"] for c in tried] == [("a mass",), ("a tumor",)]
    assert all(c.prompts.texts["cyst"] == ("a cyst",) for c in tried)


def test_presence_is_the_threshold_that_serves_the_samples(folder, engine):
    from medclipsam.engine.tune import presences

    samples = read_samples(folder / "images", folder / "truth", LABELS)
    tuner = Tuner(engine, samples, {})
    start = Candidate("", "", {"presence": -1.0}, WANTED)
    free, cut = presences(tuner, start)
    assert free.settings["presence"] is None
    assert tuner.score(cut).mean() > tuner.score(free).mean()
    assert tuner.score(cut).mean() >= tuner.score(Candidate("", "", {}, WANTED)).mean() - 1e-9


@pytest.mark.slow
def test_the_command_writes_settings_that_run_takes(folder, tmp_path):
    out = tmp_path / "tuned.toml"
    arguments = ["tune", str(folder / "images"), str(folder / "truth"), "--threads", "1"]
    for label in LABELS:
        arguments += ["-p", f"{label}={PROMPTS[label]}"]
    result = CliRunner().invoke(main, [*arguments, "--saliency", "gradcam", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "4 images, 8 true masks" in result.output and "contrastcam" in result.output
    settings = read_toml(out)
    assert prompts_from_table(settings.pop("prompts")) == WANTED
    make_config(settings)  # every setting is one that there is
    again = CliRunner().invoke(main, [*arguments, "-o", str(out)])
    assert again.exit_code == 2 and "exists" in again.output
    run = ["run", str(folder / "images"), "--config", str(out), "-o", str(tmp_path / "run")]
    done = CliRunner().invoke(main, [*run, "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run/masks/cyst/p/0.png").exists()
