"""The benchmark's schedule in use is the one that the engine runs."""

import torch

from medclipsam.benchmarks.schedules import Schedule, all_rows, fill_bank, scheduled, summarise
from medclipsam.engine.engine import Engine
from medclipsam.engine.saliency import ask
from medclipsam.engine.saliency.contrastcam import contrastcam
from medclipsam.train.phantoms.phantoms import PROMPTS, TARGETS, make_phantom


def test_the_schedule_in_use_gives_the_engine_s_maps():
    engine = Engine.open("phantom", "cpu", threads=1)
    phantom = make_phantom(8_000_000, "mri", TARGETS["mri"])
    bank, contrast = fill_bank(engine, phantom, [6])
    model = engine.pipeline.encoder
    texts = model.encode_text([PROMPTS[t] for t in TARGETS["mri"]])
    nulls = model.encode_text(engine.config.null_prompts)
    square = torch.from_numpy(engine.pipeline.fit(phantom.rgb)).permute(2, 0, 1)[None].float() / 255
    expected = contrastcam(model, square, texts, nulls)[0]
    torch.testing.assert_close(scheduled(bank, Schedule()), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(all_rows(bank), expected, atol=0.02)
    assert contrast.shape == (2,) and next(ask(model, square, texts, nulls)).wanted.tolist() == [
        0,
        1,
    ]


def test_differences_are_paired_and_leave_out_what_does_not_apply():
    nan = float("nan")
    one = {"all rows": [0.5, 1.0, nan], "less": [0.7, 1.0, nan]}
    two = {"all rows": [0.9, 0.0, 1.0], "less": [0.8, 1.0, 0.0]}
    found = summarise({"mri": [one, two], "xray": [two, two]})["less"]
    assert found["dsc"]["mri"]["difference"][0] == 0.05 and found["dsc"]["all"]["n"] == 4
    assert found["follows_prompt"]["all"]["difference"][0] == -1
    assert found["follows_prompt"]["mri"]["n"] == 1
