"""Outcomes of every kind, and the page of a report about them."""

from PIL import Image

from medclipsam.engine.outputs import preview_path
from medclipsam.engine.report.report import write_report
from medclipsam.engine.types import Outcome


def figures(confidence, **more):
    return {"confidence": confidence, "predicted_iou": 0.9, "contrast": 0.1, **more}


def done(item, confidence, label="mass", **more):
    values = {name: more.pop(name) for name in ("area_share", "border") if name in more}
    mask = f"masks/{label}/{item}.png"
    return Outcome(
        item, label, "done", mask=mask, frames=1, figures=figures(confidence, **values), **more
    )


def absent(item, label="mass"):
    known = {"confidence": 0.0, "contrast": 0.02}
    mask = f"masks/{label}/{item}.png"
    return Outcome(item, label, "absent", reason="no-component", mask=mask, figures=known)


def doubtful(item, confidence, label="mass"):
    return Outcome(
        *(item, label, "quarantined"),
        **{"stage": "segment", "reason": "low-confidence", "message": "too low"},
        mask=f"quarantine/{label}/{item}.png",
        frames=1,
        figures=figures(confidence),
    )


def lost(item, reason="truncated", label="mass"):
    return Outcome(item, label, "quarantined", stage="read_image", reason=reason, message="cut")


SMALL = [
    done("a/10.png", 0.9, area_share=0.2),
    done("a/2.png", 0.55, area_share=0.01, border=0.3),
    done("a/3.png", 0.6, "cyst", area_share=0.1),
    absent("a/4.png"),
    doubtful("b/5.png", 0.2),
    lost("b/6.dcm"),
    lost("b/7.dcm", "constant"),
]
ORDER = ["a/2.png", "a/3.png", "a/4.png", "a/10.png", "b/5.png", "b/6.dcm", "b/7.dcm"]


def write(folder, outcomes, facts=None, identity="one"):
    """A report and its previews: the page's path."""
    for outcome in outcomes:
        if outcome.mask and outcome.item != "a/3.png":
            path = folder / preview_path(outcome.label, outcome.item)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 48), (60, 90, 120)).save(path)
    return write_report(folder, outcomes, facts or {"name": "trial"}, identity=identity)
