"""The benchmark of an archive measures what it says."""

import cv2
import numpy as np
import pytest
import torch

from medclipsam.benchmarks.archive import (
    PLAINLY,
    Measured,
    judge,
    measure,
    summarise,
    to_markdown,
)
from medclipsam.benchmarks.inputs.archive import write_archive
from medclipsam.benchmarks.measuring.spread import Turns
from medclipsam.benchmarks.rivals.published import PublishedPipeline
from medclipsam.benchmarks.rivals.run_jobs import PROMPTS
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.train.phantoms.phantoms import PROMPTS as KNOWN


@pytest.mark.parametrize(
    ("share", "count", "shown"), [(0, 7, 0), (5, 40, 2), (20, 15, 3), (100, 4, 4)]
)
def test_the_share_of_images_with_the_target(tmp_path, share, count, shown):
    archive = write_archive(tmp_path / "a", share, count)
    first = [n for n, phantom in enumerate(archive.phantoms) if "mass" in phantom.masks]
    both = [n for n, phantom in enumerate(archive.phantoms) if "cyst" in phantom.masks]
    assert len(first) == shown and both == first[1::2]
    assert len(list(archive.folder.glob("*.png"))) == count
    if shown > 1:  # evenly
        assert np.ptp(np.diff(first)) <= 1
    assert all(KNOWN[target] == text for target, text in PROMPTS.items())


def test_quality_is_judged_by_the_true_masks(tmp_path):
    archive = write_archive(tmp_path / "a", 50, 2)
    for label in PROMPTS:
        for n, phantom in enumerate(archive.phantoms):
            path = tmp_path / "run" / "masks" / label / f"{n:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), phantom.mask(label).astype(np.uint8) * 255)
    assert judge(archive, tmp_path / "run") == {"dsc": 1.0, "absent_said": 1.0}


def test_ratios_are_made_within_a_turn(tmp_path):
    archive = write_archive(tmp_path / "a", 0, 2)
    seconds = {PLAINLY: [8.0, 9.0, 10.0], "before": [4.0, 9.0, 5.0], "now": [0.4, 0.45, 0.5]}
    found = Measured(Turns(seconds), {name: {"dsc": 0.9} for name in seconds})
    rows = summarise(archive, found, "before")
    assert rows["now"]["times_first"]["median"] == 10
    assert rows["now"]["times_published"]["low"] == rows["now"]["times_published"]["high"] == 20
    assert "times_first" not in rows["before"] and "times_published" not in rows[PLAINLY]
    table = to_markdown({"results": {"20": rows}})
    expected = "4.44 [4.00, 5.00]; 10.0× [10.0, 20.0] (noisy) the first; 20.0× [20.0, 20.0] the pub"
    assert f"| now | {expected}" in table


def test_every_run_has_its_own_folder_and_the_first_is_judged(tmp_path):
    archive = write_archive(tmp_path / "a", 100, 1)
    outs = []

    def draw_nothing(folder, out):
        assert folder == archive.folder and not out.exists()
        out.mkdir()
        outs.append(out)

    found = measure(archive, {"one": draw_nothing, "other": draw_nothing}, 3, tmp_path)
    assert len(set(outs)) == 8 and not any(out.exists() for out in outs)
    assert found.quality["one"]["dsc"] == 0 and len(found.turns.seconds["other"]) == 3


def test_the_published_pipeline_draws_a_mask(tmp_path):
    torch.set_num_threads(1)
    archive = write_archive(tmp_path / "a", 100, 1)
    pipeline = PublishedPipeline.open(open_bundle("phantom"), torch.device("cpu"))
    assert pipeline.run(archive.folder, PROMPTS, tmp_path / "out") == 1
    masks = sorted((tmp_path / "out" / "masks").rglob("*.png"))
    assert [path.parent.name for path in masks] == ["cyst", "mass"]
    shapes = {cv2.imread(str(path)).shape[:2] for path in masks}
    assert shapes == {archive.phantoms[0].pixels.shape}
