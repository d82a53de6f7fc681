"""The benchmark of an archive measures what it says."""

import cv2
import numpy as np
import pytest
import torch

from medclipsam.benchmarks.archive import Measured, judge, summarise, to_markdown, write_archive
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


def test_ratios_are_those_of_medians(tmp_path):
    archive = write_archive(tmp_path / "a", 0, 2)
    found = {"before": Measured([4.0, 9.0, 5.0]), "now": Measured([0.4, 0.5, 0.6], {"dsc": 0.9})}
    rows = summarise(archive, found, "before")
    assert rows["now"]["times_first"] == 10 and rows["now"]["images_per_s"] == 4
    table = to_markdown({"0": rows})
    assert "| now | 4.00 [3.33, 5.00], 10.0 times; DSC 0.90 |" in table


def test_the_published_pipeline_draws_a_mask(tmp_path):
    torch.set_num_threads(1)
    archive = write_archive(tmp_path / "a", 100, 1)
    pipeline = PublishedPipeline.open(open_bundle("phantom"), torch.device("cpu"))
    assert pipeline.run(archive.folder, PROMPTS, tmp_path / "out") == 1
    masks = sorted((tmp_path / "out" / "masks").rglob("*.png"))
    assert [path.parent.name for path in masks] == ["cyst", "mass"]
    shapes = {cv2.imread(str(path)).shape[:2] for path in masks}
    assert shapes == {archive.phantoms[0].pixels.shape}
