"""Task models trained on runs: samples, learning, determinism, the command."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pydicom
import pytest
import torch
from brightness import CPU, LEVELS, grey_to_rgb, open_brightness, tiny_config
from click.testing import CliRunner

from medclipsam.engine.cli.main import main
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.metrics import dice
from medclipsam.engine.fit import make_fit
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.unet.model import open_task_model
from medclipsam.engine.unet.predictor import Predictor
from medclipsam.train.phantoms.archive import encode_dicom
from medclipsam.train.phantoms.phantoms import make_phantom
from medclipsam.train.unet import fit as unet
from medclipsam.train.unet.augmentation import Augmentation
from medclipsam.train.unet.data import fit_mask, gather
from medclipsam.train.unet.fit import UnetTraining, judge_unet, train_unet
from medclipsam.train.unet.masks import LabelledItem

STILL = Augmentation(0, 0, 0, 0, 0, 0)
QUICK = UnetTraining(epochs=20, batch=4, learning_rate=1e-2, augmentation=STILL)


def naive_fit(mask, fit):
    """The share of each cell that a mask covers, by integration over fine points."""
    out = np.zeros((fit.side, fit.side))
    fine = (np.arange(16) + 0.5) / 16
    for i in range(fit.inner_height):
        y = ((i + fine) / fit.inner_height * fit.height).astype(int)
        for j in range(fit.inner_width):
            x = ((j + fine) / fit.inner_width * fit.width).astype(int)
            out[fit.top + i, fit.left + j] = mask[np.ix_(y, x)].mean()
    return out


@pytest.mark.parametrize("mode", ["pad", "squash"])
@pytest.mark.parametrize("shape", [(61, 83), (90, 40), (48, 48)])
def test_masks_shrink_to_what_they_cover(shape, mode):
    mask = cv2.GaussianBlur(np.random.default_rng(0).random(shape), (0, 0), 4) > 0.5
    fit = make_fit(*shape, 24, mode)
    share, found = naive_fit(mask, fit), fit_mask(mask, fit)
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 1}
    sure = abs(share - 0.5) > 0.1  # sixteen points a side see a cell's edges to that
    np.testing.assert_array_equal(found[sure], (share > 0.5)[sure])


def test_a_small_mask_does_not_become_an_absence():
    mask = np.zeros((300, 200), bool)
    fit = make_fit(300, 200, 20, "pad")
    assert not fit_mask(mask, fit).any()
    mask[150, 100] = True
    found = fit_mask(mask, fit)
    assert found.sum() == 1 and found[10, fit.left + int(100.5 / 200 * 13)] == 1


def items(count=16, size=(40, 48)):
    """Phantoms with what is bright and dark in them; every fifth says nothing of the dark."""
    for n in range(count):
        rgb = grey_to_rgb(make_phantom(n, "mri", size=size).pixels)
        grey = cv2.GaussianBlur(rgb[..., 0] / 255, (0, 0), 1.5)
        masks = {"bright": grey > LEVELS["bright"], "dark": grey < LEVELS["dark"]}
        if n % 5 == 4:
            del masks["dark"]
        sure = {label: 0.5 + 0.5 * (n % 2) for label in masks}
        yield LabelledItem(f"p{n // 2}", str(n), rgb[None], {k: m[None] for k, m in masks.items()},
                           sure)  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return gather(items(), tuple(LEVELS), 32, "pad")


def test_samples_stand_in_order_whatever_is_known(data):
    assert len(data) == 16 and data.images.shape == (16, 32, 32, 3)
    assert data.masks.shape == (16, 2, 32, 32) and data.present.shape == (16, 2)
    np.testing.assert_array_equal(data.known[:, 1], [n % 5 != 4 for n in range(16)])
    assert not data.masks[4, 1].any() and data.confidence[4, 1] == 0
    assert data.groups[0] == data.groups[1] != data.groups[2] and len(set(data.groups)) == 8


def test_every_frame_is_a_sample_of_its_patient():
    frames = np.zeros((3, 10, 12, 3), np.uint8)
    mask = np.zeros((3, 10, 12), bool)
    mask[1, 2:8, 3:9] = True
    volume = LabelledItem("p", "x", frames, {"dark": mask}, {"dark": 0.25})
    found = gather([volume, volume], tuple(LEVELS), 16, "squash")
    assert len(found) == 6 and len(set(found.groups)) == 1
    np.testing.assert_array_equal(found.present[:, 1], [False, True, False] * 2)
    np.testing.assert_array_equal(found.confidence, [[0, 0.25]] * 6)
    assert len(gather([], ("dark",), 16, "pad")) == 0


SPLIT = np.arange(12), np.arange(12, 16)


@pytest.fixture(scope="module")
def trained(data):
    return train_unet(data, SPLIT, tiny_config(), QUICK, CPU, lambda line: None)


def test_it_learns_what_can_be_seen(trained):
    assert trained.best.dice > 0.92 and trained.best.dice == max(e.dice for e in trained.epochs)
    assert trained.epochs[-1].loss < 0.5 * trained.epochs[0].loss


def test_the_weights_are_those_of_the_best_epoch(trained, data):
    again = judge_unet(trained.net, data, SPLIT[1], trained.config, 3, CPU)
    assert again == pytest.approx(trained.best.by_label, abs=1e-6)


def test_judgement_is_the_mean_dice_of_known_masks(trained, data):
    by_label = judge_unet(trained.net, data, SPLIT[1], trained.config, 2, CPU)
    for k, label in enumerate(LEVELS):
        scores = []
        for n in SPLIT[1]:
            pixels = torch.from_numpy(np.array(data.images[n])).permute(2, 0, 1)[None].float() / 255
            mean, std = (torch.tensor(v)[:, None, None] for v in (trained.config.mean,
                                                                  trained.config.std))  # fmt: skip
            with torch.no_grad():
                found = trained.net((pixels - mean) / std)[0, k].numpy() > 0
            if data.known[n, k]:
                scores.append(dice(found, data.masks[n, k] > 0))
        assert by_label[label] == pytest.approx(np.mean(scores), abs=1e-5)


def run_again(data, **changes):
    lines = []
    training = replace(
        QUICK, **{"epochs": 2, "augmentation": Augmentation(elastic=0.05), **changes}
    )
    found = train_unet(data, SPLIT, tiny_config(), training, CPU, lines.append)
    return found, found.net.state_dict(), lines


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_one_seed_gives_one_network(data):
    first, weights, lines = run_again(data)
    second, same, _ = run_again(data)
    assert equal(weights, same) and first.epochs == second.epochs
    assert not equal(weights, run_again(data, seed=1)[1])
    assert lines[0].startswith("epoch 1/2 loss ") and lines[-1].startswith("best epoch: ")


def test_confidence_changes_what_is_learned(data, monkeypatch):
    plain = run_again(data)[1]
    weighted = run_again(data, by_confidence=True)[1]
    assert not equal(plain, weighted)
    even = replace(data, confidence=np.full_like(data.confidence, 0.25))
    assert equal(run_again(even, by_confidence=True)[1], plain)
    seen = []
    real = unet.task_loss

    def loss(logits, masks, weights, known):
        seen.append((weights.numpy(), known.numpy()))
        return real(logits, masks, weights, known)

    monkeypatch.setattr(unet, "task_loss", loss)
    run_again(data, by_confidence=True, epochs=1)
    weights, known = (np.concatenate(part) for part in zip(*seen, strict=True))
    used = data.confidence[SPLIT[0]][data.known[SPLIT[0]]]
    expected = np.sort(used / used.mean())
    np.testing.assert_allclose(np.sort(weights[known > 0]), expected, rtol=1e-5)


def test_a_rate_that_is_too_high_is_named(data, monkeypatch):
    monkeypatch.setattr(unet, "task_loss", lambda *args: torch.tensor(float("inf")))
    with pytest.raises(ConfigError, match=r"loss became inf; lower --learning-rate \(now 0\.01\)"):
        run_again(data)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch": 0}, {"learning_rate": 0}, {"val_share": 1}, {"seed": -1},
     {"warmup": 1}, {"clip_norm": 0}],
)  # fmt: skip
def test_senseless_settings(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be"):
        UnetTraining(**wrong)


SECRET = "Doe^Jane"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Eight patients with two DICOM files each, one picture of a ninth, and a bad one."""
    root = tmp_path_factory.mktemp("scans")
    for n in range(16):
        deep = (make_phantom(n, "mri", size=(40, 48)).pixels * 4095).astype(np.uint16)
        path = root / f"p{n // 2} {n}.dcm"
        path.write_bytes(encode_dicom(deep, n % 3 == 0))
        dataset = pydicom.dcmread(path)
        dataset.PatientID = f"{SECRET} {n // 2}"
        dataset.save_as(path)
    cv2.imwrite(str(root / "p9.png"), grey_to_rgb(make_phantom(30, "mri", size=(50, 40)).pixels))
    (root / "bad.png").write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def finished(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return open_brightness(folder / "brightness").run(archive, folder / "run").folder


SMALL = ("--image-size", 32, "--channels", "8,16,16", "--batch", 4, "--learning-rate", 0.01)


def train(run, out, *flags):
    words = ("train", "unet", run, "-o", out, *SMALL, "--device", "cpu", "--threads", 1, *flags)
    return CliRunner().invoke(main, [str(word) for word in words])


def test_from_a_run_to_masks_by_commands(finished, archive, tmp_path):
    out = tmp_path / "models" / "brightness"
    done = train(finished, out, "--epochs", 15, "--weight-by-confidence", "--val-share", 0.3)
    assert done.exit_code == 0, done.output
    assert "left out, quarantined: unreadable: 2 (bad.png [bright], bad.png [dark])" in done.output
    assert "patients are known by: DICOM 16, nothing 1" in done.output
    assert "images of 3 patients" in done.output and "epoch 15/15" in done.output
    model = open_task_model(out)
    facts = model.description["training"]
    assert facts["learned_from"]["samples"] + facts["judged_on"]["samples"] == 17
    assert facts["learned_from"]["patients"] == 6 and facts["judged_on"]["patients"] == 3
    assert facts["left_out"] == {"quarantined: unreadable": 2} and facts["items"] == 17
    assert len(facts["epochs"]) == 15 and facts["settings"]["by_confidence"] is True
    assert sorted(p.name for p in out.iterdir()) == ["model.safetensors", "unet.json"]
    written = done.output + (out / "unet.json").read_text()
    assert SECRET not in written and "p3" not in (out / "unet.json").read_text()
    predicted = Predictor.open(out, "cpu", threads=1).run(archive, tmp_path / "run").folder
    scores = [
        dice(read(predicted, item, label), read(finished, item, label))
        for item in (f"p{n // 2} {n}.dcm" for n in range(16))
        for label in LEVELS
    ]
    assert np.mean(scores) > 0.85


def read(folder, item, label):
    from medclipsam.engine.outputs import read_mask

    with Ledger(folder / "ledger.sqlite", readonly=True) as ledger:
        row = next(row for row in ledger.rows(item) if row.label == label)
    return read_mask(folder / row.mask)[0]


def test_two_trainings_by_command_give_the_same_bytes(finished, tmp_path):
    for name in ("a", "b"):
        done = train(finished, tmp_path / name, "--epochs", 2, "--label", "dark", "--elastic", 0.1)
        assert done.exit_code == 0, done.output
    one, two = (open_task_model(tmp_path / name) for name in ("a", "b"))
    assert one.digest == two.digest and one.config.labels == ("dark",)


def test_patients_of_a_pattern_or_a_table(finished, tmp_path):
    done = train(finished, tmp_path / "a", "--epochs", 1, "--patient-pattern", r"p(\d)")
    assert "patients are known by: pattern 17" in done.output
    table = tmp_path / "patients.csv"
    table.write_text("item,patient\n" + "".join(f"p{n // 2} {n}.dcm,q{n % 2}\n" for n in range(16)))
    done = train(finished, tmp_path / "b", "--epochs", 1, "--patients", table)
    assert "patients are known by: nothing 1, table 16" in done.output
    facts = json.loads((tmp_path / "b" / "unet.json").read_text())["training"]
    assert facts["learned_from"]["patients"] + facts["judged_on"]["patients"] == 3


def test_what_is_wrong_is_said(finished, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "note.txt").write_text("mine")
    for message, out, flags in (
        ("is not an empty folder", full, ()),
        ("no label 'mass'; it has bright, dark", tmp_path / "x", ("--label", "mass")),
        ("image_size must be a multiple of 4", tmp_path / "x", ("--image-size", 30)),
        ("--channels takes numbers", tmp_path / "x", ("--channels", "a,b")),
        ("no regular expression", tmp_path / "x", ("--patient-pattern", "(")),
        ("too few patients", tmp_path / "y", ("--patient-pattern", "^.")),
    ):
        done = train(finished, out, *flags)
        assert done.exit_code == 2 and message in done.output, done.output
        assert "Traceback" not in done.output
    assert [p.name for p in full.iterdir()] == ["note.txt"]
    assert not any((tmp_path / "y").iterdir())
    done = train(tmp_path / "full", tmp_path / "x")
    assert done.exit_code == 2 and "not a run folder" in done.output


def test_a_run_in_which_nothing_was_found(tmp_path):
    root = tmp_path / "scans"
    root.mkdir()
    for n in range(4):
        flat = np.linspace(0.24, 0.31, 900).reshape(30, 30) + 0.003 * n
        cv2.imwrite(str(root / f"{n}.png"), grey_to_rgb(flat))
    run = open_brightness(tmp_path / "m").run(root, tmp_path / "run").folder
    done = train(run, tmp_path / "x")
    assert done.exit_code == 2
    assert "has no mask to learn bright, dark from: 4 items are usable" in done.output
