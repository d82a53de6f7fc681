"""Tuning: what it reads, what it tries, and that it takes nothing by luck."""

import itertools
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from medclipsam.engine.cli.main import main
from medclipsam.engine.config import make_config, read_toml
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.metrics import dice
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.tuning.axes import AXES, Candidate, presences, wordings
from medclipsam.engine.tuning.chance import chance, least_cases
from medclipsam.engine.tuning.tune import Sample, Tuner, read_samples
from medclipsam.engine.types import Prompts
from medclipsam.train.phantoms.phantoms import PROMPTS, make_phantom

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
    monkeypatch.setattr("medclipsam.engine.tuning.tune.AXES", axes)
    seen = []
    mask = np.ones((2, 2), bool)
    images = [Sample(np.zeros((2, 2, 3), np.uint8), {"mass": mask}) for _ in range(20)]
    tuner = Scripted(engine, images, {"crf": {"tau": 1.2}}, ("an image",), seen.append)
    best, trials = tuner.search(WANTED)
    assert best.settings == {"crf": {"tau": 1.2}, "boxes": {"select": "all"}}
    assert seen == trials and trials[0].verdict == "in use"
    assert [t.candidate.name for t in trials if t.verdict == "taken"] == ["all"]
    lucky = next(t for t in trials if t.candidate.name == "5 iterations")
    assert lucky.gain[0] > 0 and lucky.gain[1] <= 0 and lucky.p > 0.5
    names = {t.candidate.name for t in trials}
    assert {"gscorecam", "scorecam", "gradcam", "m2ib", "an image", "pad=0.0"} <= names


def test_wordings_are_tried_one_by_one(engine):
    prompts = Prompts({"mass": ("a mass", "a tumor"), "cyst": ("a cyst",)})
    tried = list(wordings(Tuner(engine, [], {}), Candidate("", "", {}, prompts)))
    assert [c.prompts.texts["mass"] for c in tried] == [("a mass",), ("a tumor",)]
    assert all(c.prompts.texts["cyst"] == ("a cyst",) for c in tried)


def test_candidates_run_on_the_models_of_the_engine(engine):
    """Another layer or precision alone needs other ones."""
    tuner = Tuner(engine, [], {})
    for settings, same in (
        ({}, True),
        ({"saliency": {"method": "gradcam"}}, True),
        ({"saliency": {"block": 1}}, False),
    ):
        config = tuner.config(Candidate("", "", settings, WANTED))
        found = tuner._pipeline(config)
        assert (found.encoder is engine.pipeline.encoder) == same and found.config == config


def test_presence_is_the_threshold_that_serves_the_samples(folder, engine):
    samples = read_samples(folder / "images", folder / "truth", LABELS)
    tuner = Tuner(engine, samples, {})
    start = Candidate("", "", {"presence": -1.0}, WANTED)
    free, cut = presences(tuner, start)
    assert free.settings["presence"] is None
    assert tuner.score(cut).mean() > tuner.score(free).mean()
    assert tuner.score(cut).mean() >= tuner.score(Candidate("", "", {}, WANTED)).mean() - 1e-9


class Noise(Tuner):
    """Masks and contrasts drawn anew for every candidate: none is better than another."""

    def segment(self, candidate):
        key = repr((candidate.settings, candidate.prompts)).encode()
        rng = np.random.default_rng([zlib.crc32(key), self.seed])
        found = []
        for sample in self.samples:
            masks = {}
            for label, truth in sample.truth.items():
                # Some right pixels, some wrong ones: DSC between 0 and 1, in steps of 1/40.
                mask = truth & (rng.random(truth.shape) < rng.random())
                mask |= ~truth & (rng.random(truth.shape) < rng.random())
                masks[label] = SimpleNamespace(mask=mask, contrast=rng.normal())
            found.append(masks)
        return found


def noise_search(engine, seed, images=12):
    truth = np.arange(100)[None] < 40
    samples = []
    for n in range(images):
        # A tenth of the masks are empty: less than a threshold would have to gain from.
        empty = {"cyst": truth & False} if n % 5 == 0 else {"cyst": truth}
        samples.append(Sample(np.zeros((1, 100, 3), np.uint8), {"mass": truth, **empty}))
    tuner = Noise(engine, samples, {}, ("an image", "a picture"))
    tuner.seed = seed
    return tuner.search(WANTED)[0]


def test_without_any_effect_everything_stays_as_it_is(engine):
    """Forty candidates of pure noise, 200 searches: at most one of twenty takes something."""
    changed = sum(bool(noise_search(engine, seed).settings) for seed in range(200))
    assert changed <= 10


def test_the_old_rule_would_have_been_taken_in():
    """The best of ten of an axis by its own 95 % interval: mostly "surely better"."""
    from medclipsam.engine.evaluation.metrics import mean_interval

    rng = np.random.default_rng(5)
    old = new = 0
    for _ in range(100):
        gains = rng.normal(0, 0.1, (12, 10))
        best = int(gains.mean(0).argmax())
        old += mean_interval(gains[:, best])[1] > 0
        new += chance(gains).min() <= 0.05
    assert old > 20 and new <= 11


def test_a_true_gain_is_found_by_a_dozen_images(engine, monkeypatch):
    """Better by twice the noise."""
    rng = np.random.default_rng(7)
    gains = rng.normal(0, 0.1, (12, 10))
    gains[:, 3] = rng.normal(0.2, 0.1, 12)
    found = chance(gains)
    assert found.argmin() == 3 and found[3] <= 0.05 / len(AXES)


@pytest.mark.parametrize(("cases", "rivals"), [(1, 1), (4, 3), (9, 2)])
def test_chance_against_every_sign_change_by_hand(cases, rivals):
    gains = np.random.default_rng(cases).normal(0.2, 1, (cases, rivals))
    gains[1:2, -1] = 0.0
    statistics = []
    for signs in itertools.product((1, -1), repeat=cases):
        flipped = [[s * g for g in row] for s, row in zip(signs, gains, strict=True)]
        statistics.append(
            [sum(c) / sum(x * x for x in c) ** 0.5 for c in zip(*flipped, strict=True)]
        )
    expected = [
        sum(max(row) >= statistics[0][n] - 1e-9 for row in statistics) / len(statistics)
        for n in range(rivals)
    ]
    assert chance(gains) == pytest.approx(expected)


def test_chance_of_many_cases_is_that_of_all_sign_changes(monkeypatch):
    gains = np.random.default_rng(3).normal(0.1, 0.5, (13, 4))
    exact = chance(gains)
    monkeypatch.setattr("medclipsam.engine.tuning.chance.EXACT", 5)
    assert chance(gains) == pytest.approx(exact, abs=0.025)
    assert chance(np.zeros((3, 2))).tolist() == [1, 1]
    with pytest.raises(ValueError, match="finite gains"):
        chance(np.empty((0, 2)))


def test_few_images_prove_nothing_and_that_is_said(folder, tmp_path, engine):
    assert [least_cases(level) for level in (0.5, 0.05, 0.00625)] == [1, 5, 8]
    samples = read_samples(folder / "images", folder / "truth", LABELS)
    tuner = Tuner(engine, samples, {})
    assert (tuner.images, tuner.too_few) == (4, 8)
    assert Tuner(engine, samples * 2, {}).images == 4  # the same files are no new witnesses


def test_a_presence_threshold_is_judged_on_other_images_than_chose_it(engine):
    """One mask an image, contrast that says nothing: in sample a cut always gains."""
    rng = np.random.default_rng(2)
    truth, gains = np.arange(50)[None] < 20, []
    for _ in range(30):
        samples = [
            Sample(np.zeros((1, 50, 3), np.uint8), {"mass": truth if n % 2 else truth & False})
            for n in range(12)
        ]
        contrast = rng.normal(size=12)
        tuner = Tuner(engine, samples, {})
        tuner.segment = lambda candidate, c=contrast: [
            {"mass": SimpleNamespace(mask=truth, contrast=value)} for value in c
        ]
        _, cut = presences(tuner, Candidate("", "", {"presence": -9.0}, WANTED))
        low = contrast < cut.settings["presence"]
        inside = np.where(low, np.arange(12) % 2 == 0, np.arange(12) % 2 == 1)
        gains.append((inside.mean() - 0.5, cut.scores.mean() - 0.5))
    inside, outside = np.mean(gains, axis=0)
    assert inside > 0.1 and outside < inside / 2


def test_what_a_backend_cannot_run_is_left_out_and_named(folder, exported_phantom):
    exported = Engine.open(str(exported_phantom.folder), "cpu", "onnx", threads=1)
    samples = read_samples(folder / "images", folder / "truth", LABELS)[:1]
    tuner = Tuner(exported, samples, {"saliency": {"method": "gscorecam", "k": 2}})
    _, trials = tuner.search(WANTED)
    assert {t.candidate.axis for t in trials} >= {"saliency", "presence", "crf", "boxes"}
    assert "saliency m2ib" in tuner.left_out and "saliency m2ib" not in {
        f"{t.candidate.axis} {t.candidate.name}" for t in trials
    }
    assert sum(name.startswith("layer block=") for name in tuner.left_out) == 5


@pytest.mark.long
def test_the_command_writes_settings_that_run_takes(folder, tmp_path):
    out = tmp_path / "tuned.toml"
    arguments = ["tune", str(folder / "images"), str(folder / "truth"), "--threads", "1"]
    for label in LABELS:
        arguments += ["-p", f"{label}={PROMPTS[label]}"]
    result = CliRunner().invoke(main, [*arguments, "--saliency", "gradcam", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "4 images, 8 true masks" in result.output and "contrastcam" in result.output
    assert "label at least 8" in result.output
    settings = read_toml(out)
    assert make_prompts(settings.pop("prompts")) == WANTED
    make_config(settings)  # every setting is one that there is
    again = CliRunner().invoke(main, [*arguments, "-o", str(out)])
    assert again.exit_code == 2 and "exists" in again.output
    run = ["run", str(folder / "images"), "--config", str(out), "-o", str(tmp_path / "run")]
    done = CliRunner().invoke(main, [*run, "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run/masks/cyst/p/0.png").exists()
