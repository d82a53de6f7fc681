"""``medclipsam bench``: its stages are the run's, its result is complete, its errors are clear."""

import json
import re

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from medclipsam.benchmarks.bench.page import compare, sweep_table, to_markdown
from medclipsam.benchmarks.bench.picture import draw
from medclipsam.benchmarks.bench.sample import make_source, open_source
from medclipsam.benchmarks.bench.stages import SHOWN, STAGES, Pass
from medclipsam.benchmarks.rivals.run_jobs import PROMPTS
from medclipsam.engine.cli.main import main
from medclipsam.engine.engine import Engine
from medclipsam.engine.prompts import make_prompts

MASS = ("-p", PROMPTS["mass"])


def bench(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def engine():
    return Engine.open("phantom", "cpu", threads=2)


@pytest.fixture
def scans(tmp_path):
    """Two sizes, one odd; one file of two frames, and one that cannot be read."""
    source = make_source(tmp_path / "made", 50, 6)
    folder = tmp_path / "made"
    grey = [cv2.imread(str(path), 0) for path in sorted(folder.glob("*.png"))]
    cv2.imwrite(str(folder / "odd.png"), cv2.resize(grey[1], (101, 77)))
    two = [Image.fromarray(each) for each in (grey[0], grey[0][::-1])]
    two[0].save(folder / "two.tif", save_all=True, append_images=two[1:])
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return source.archive


def test_stages_alone_draw_what_the_engine_draws(engine, scans, tmp_path):
    way = Pass(engine, scans, make_prompts(PROMPTS), tmp_path / "pass")
    parts = way.run()
    assert list(parts) == list(STAGES) and not (tmp_path / "pass").exists()
    assert (way.images, way.unreadable) == (9, 1)
    present = 0
    for frame in way._frames:
        expected = engine.segment(frame.rgb, PROMPTS, maps=False)
        for label, segment in expected.items():
            assert np.array_equal(frame.segments[label].mask, segment.mask)
            assert frame.segments[label].status == segment.status
            assert frame.segments[label].confidence == pytest.approx(segment.confidence)
        present += any(s.reason != "contrast" and s.crf != "none" for s in expected.values())
    assert way.shown == present > 0
    for stage, part in parts.items():
        shown = stage in SHOWN
        assert part.seconds > 0 and 0 <= part.working <= 1
        assert part.images == 0 if stage == "start" else part.images <= 9 - 9 * shown + present
    assert parts["write_mask"].images == 9


@pytest.mark.parametrize("items", [1, 3, 8, 99])
def test_a_sample_is_always_the_same_and_of_everything(scans, items):
    source = open_source(scans)
    names = [entry.ref.id for entry in source.take(items)]
    assert names == [entry.ref.id for entry in source.take(items)]
    assert len(names) == len(set(names)) == min(items, 9)
    every = [entry.ref.id for entry in scans]
    assert names == sorted(names, key=every.index)


def test_a_larger_sample_holds_the_smaller_ones(scans):
    source = open_source(scans)
    few, more = ({entry.ref.id for entry in source.take(n)} for n in (3, 6))
    assert few < more


def test_phantoms_have_their_share_in_every_sample(tmp_path):
    source = make_source(tmp_path / "made", 20, 40)
    assert source.synthetic and "synthetic" in source.name
    for items in (10, 20, 40):
        names = [int(entry.ref.id[:4]) for entry in source.take(items)]
        assert names == list(range(items))


@pytest.mark.slow
def test_a_whole_bench(tmp_path):
    out = tmp_path / "out"
    options = ("--minutes", "0.05", "--sweep", "--against", "published", "--threads", "2")
    done = bench("-o", out, *options)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    facts = json.loads((out / "bench.json").read_text())
    assert facts["input"]["synthetic"] and "synthetic" in done.output
    for key in ("command", "date", "revision", "machine", "versions", "settings", "bottleneck"):
        assert facts[key], key
    assert [row["stage"] for row in facts["stages"]] == list(STAGES)
    total = sum(row["share"] for row in facts["stages"])
    assert facts["sums"]["cores"]["low"] - 0.01 <= total <= facts["sums"]["cores"]["high"] + 0.01
    assert facts["memory"]["host"] > 100 << 20 and facts["memory"]["device"] is None
    assert {row["positives"] for row in facts["million"]} >= {0, 5, 20, 100}
    assert any(row["own"] for row in facts["million"])
    assert facts["sweep"]["said"] and {"rows", "batch", "boxes"} <= {
        match[1]
        for row in facts["sweep"]["tried"]
        if (match := re.search(r"\.(\w+)=", row["flag"]))
    }
    assert facts["against"]["times_faster"]["median"] > 1
    assert max(len(line) for line in done.stdout.splitlines() if str(out) not in line) <= 80
    page = (out / "bench.md").read_text()
    assert all(f"| {stage} |" in page for stage in STAGES) and "synthetic" in page
    picture = Image.open(out / "bench.png")
    assert picture.size[0] > 800
    again = bench("-o", out)
    assert again.exit_code == 2 and "exists; choose another folder with -o" in again.output
    pair = bench("--compare", out / "bench.json", out / "bench.json", "-o", tmp_path / "pair")
    assert pair.exit_code == 0 and "1.00×" in pair.output
    assert "| end to end |" in (tmp_path / "pair" / "compare.md").read_text()


@pytest.mark.slow
def test_an_archive_of_ones_own(scans, tmp_path):
    out = tmp_path / "out"
    folder = tmp_path / "made"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = bench(folder, *MASS, "-o", out, "--minutes", "0.2", "--positives", "7")
    assert done.exit_code == 0, done.output
    facts = json.loads((out / "bench.json").read_text())
    assert not facts["input"]["synthetic"] and facts["input"]["prompts"]
    assert 7 in {row["positives"] for row in facts["million"]}
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nowhere/",), 2, "nowhere"),
        (MASS, 2, "give an ARCHIVE beside -p"),
        (("--minutes", "0"), 2, "0 is not in the range"),
        (("--compare", "a.json", "b.json"), 2, "does not exist"),
        (("--device", "cuda:99"), 1, "CUDA"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(
    tmp_path, monkeypatch, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    done = bench(*arguments)
    assert done.exit_code == code and words in done.output
    assert not list(tmp_path.glob("*/bench.json"))


def test_an_archive_needs_prompts(scans, tmp_path):
    done = bench(tmp_path / "made", "-o", tmp_path / "out")
    assert done.exit_code == 2 and "say what to look for" in done.output


def test_an_archive_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in "ab":
        (tmp_path / "scans" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    done = bench(tmp_path / "scans", *MASS, "-o", tmp_path / "out")
    assert done.exit_code == 2 and "items of the archive can be read" in done.output
    assert not (tmp_path / "out").exists()


def test_the_published_pipeline_needs_its_crf(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    done = bench("--against", "published", "-o", tmp_path / "out")
    assert done.exit_code == 2 and "medclipsam[reference]" in done.output


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"kind": "another 7"}'])
def test_what_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    done = bench("--compare", path, path)
    assert done.exit_code == 2 and f"got {path}" in done.output.replace("\n", "")


def spread(median, width=0.02):
    low, high = median * (1 - width), median * (1 + width)
    return {"median": median, "low": low, "high": high, "count": 3}


def made_up(rate=10.0, device="cuda:0"):
    """Facts of a GPU, whose energy is counted."""
    stages = [
        {"stage": stage, "on": "device" if stage == "compute_saliency" else "cores",
         "images": 40, "seconds": spread(2.0), "images_per_s": spread(2 * rate), "cost": 2.0,
         "share": 0.08, "at_work": 0.5}
        for stage in STAGES
    ]  # fmt: skip
    return {
        "kind": "medclipsam bench 1", "command": "medclipsam bench", "date": "2001-02-03",
        "revision": "abc", "machine": "a lamp", "versions": {"python": "3"},
        "settings": {"bundle": "b", "digest": "d", "device": device, "backend": "torch",
                     "saliency": "s", "precision": "bf16", "rows": 64, "batch": 4, "boxes": 16,
                     "threads": 2},
        "input": {"name": "scans | b", "synthetic": False, "prompts": {}, "items": 4, "images": 40,
                  "shown": 8, "positives": 20.0, "unreadable": 1},
        "images_per_s": spread(rate), "seconds": {}, "stages": stages,
        "sums": {"cores": spread(0.88), "device": spread(0.3)}, "device_busy": 0.31,
        "memory": {"host": 3 << 30, "device": 5 << 30},
        "energy": {"joules_per_image": {"GPU 0": 12.0}, "watts": 120.0, "missing": []},
        "million": [{"positives": 20.0, "hours": 27.8, "images_per_s": 10.0, "kwh": 3.3,
                     "own": True}],
        "bottleneck": "x", "open_seconds": 1.0,
    }  # fmt: skip


def test_a_result_with_device_and_energy():
    page = to_markdown(made_up())
    for words in ("busy 31% of a run", "device 5.00 GiB", "energy of GPU 0: 12 J", "| kWh |",
                  "1 items could not be read", "| all on device |"):  # fmt: skip
        assert words in page
    assert draw(made_up())[:4] == b"\x89PNG"


def test_two_results_side_by_side():
    table = compare(made_up(10), made_up(15), ("A", "B"))
    assert table.rows[0] == ("end to end", "10.0 [9.8, 10.2]", "15.0 [14.7, 15.3]", "1.50×")
    assert table.rows[-1] == ("memory, device", "5.00 GiB", "5.00 GiB", "1.00×")
    close = compare(made_up(10), made_up(10.1), ("A", "B")).rows[0]
    assert close[-1] == "1.01×, spreads overlap"


def test_what_was_tried_is_told():
    tried = [
        {"flag": "--threads 1", "times_faster": spread(0.9)},
        {"flag": "--precision bf16", "times_faster": spread(1.3), "kept": True,
         "masks": {"mean_iou": 0.99}},
        {"flag": "--backend onnx", "refused": "no such export"},
    ]  # fmt: skip
    rows = sweep_table({"images": 9, "tried": tried}).rows
    assert rows[0] == ("--threads 1", "0.90× [0.88, 0.92]", "")
    assert rows[1] == ("--precision bf16", "1.30× [1.27, 1.33]; masks IoU 0.990", "kept")
    assert rows[2] == ("--backend onnx", "refused: no such export", "")
