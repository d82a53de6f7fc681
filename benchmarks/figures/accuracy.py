"""What the documents say of accuracy: of masks, of saliency, of settings, of exported graphs.

Refuses to know what trainings bring, and how fast anything is.
"""

from collections.abc import Mapping
from typing import Any

from medclipsam.benchmarks.figures.documents import Maker, Results
from medclipsam.benchmarks.figures.markdown import (
    bold,
    difference,
    enumerate_words,
    interval,
    join,
    made_by,
    paragraph,
    power,
    signed,
    table,
)

METHODS = {
    "contrastcam": "**contrastcam** (the bundle's default)",
    "gscorecam": "gscorecam (the paper's, at `norm1`)",
    "gradcam": "gradcam",
    "m2ib": "m2ib (MedCLIP-SAMv2's)",
}
OURS = "contrastcam"
PHANTOMS = {"ultrasound": "breast ultrasound", "mri": "brain MRI", "xray": "chest X-ray"}
JUDGED = ("dsc", "pointing", "follows_prompt")
TITLES = {
    "dsc": "DSC of the lesion",
    "pointing": "pointing",
    "follows_prompt": "mask follows the prompt",
}
VARIANTS = (
    ("**contrastcam**", "contrastcam with all rows"),
    ("keep rows only", "keep only"),
    ("delete rows only", "delete only"),
    ("no contrast, the cosine itself", "no contrast (the prompt's cosine)"),
    ("contrast to the null only", "contrast to the nearest null only"),
    ("read at the cells only", "read at the cells"),
    ("softmax instead of ridge", "softmax weights"),
    ("sum of weighted masks instead", "linear weights"),
    ("channels instead of spots", "channels for spots"),
    ("fill: mean grey, as published", "fill: mean grey, as published"),
    ("three fill scales, three times the rows", "three fills at once (three times the rows)"),
)
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16, by rounding"}
GRAPHS = (
    ("BiomedCLIP: text, features, score", "biomedclip", ("text", "features", "score")),
    ("SAM ViT-B encoder", "vit_b", ("sam_encoder",)),
    ("SAM ViT-L encoder", "vit_l", ("sam_encoder",)),
    ("SAM ViT-H encoder", "vit_h", ("sam_encoder",)),
    ("SAM decoder", "vit_", ("sam_decoder",)),
)


def zero_shot(results: Results) -> str:
    """Masks of all saliency methods."""
    facts = results["phantoms"]
    methods = facts["results"]
    whole = methods[OURS]["all"]
    head = paragraph(
        f"The images are {whole['n']} phantoms whose seeds were never trained on,",
        f"{methods[OURS]['mri']['n']} per modality; {whole['two_targets']} of them have two",
        "targets. The values are means with 95 % bootstrap intervals. All saliency methods got the",
        f"same images, prompts, CRF and SAM. {made_by(facts)}:",
    )
    best = {key: max(rows["all"][key]["mean"] for rows in methods.values()) for key in JUDGED}
    rows: list[list[str]] = []
    for phantoms, name in PHANTOMS.items():
        row = methods[OURS][phantoms]
        shares = (f"{row[key]['mean']:.2f}" for key in JUDGED[1:])
        cells = [interval(row["dsc"]), *shares]
        rows.append([METHODS[OURS] if not rows else "", name, *cells])
        rows[-1][-1] += f" of {row['two_targets']}"
    for method, found in methods.items():
        row = found["all"]
        cells = [bold(interval(row[key]), row[key]["mean"] == best[key]) for key in JUDGED]
        rows.append(["" if method == OURS else METHODS[method], "all", *cells])
    heads = ["saliency", "phantoms", *(TITLES[key] for key in JUDGED)]
    heads[-1] += " (two targets)"
    return join(head, table(heads, rows))


def presence(results: Results) -> str:
    """How often absence is said, rightly and wrongly."""
    row = results["phantoms"]["results"][OURS]["all"]
    said = round(row["said_absent"]["mean"] * row["without_target"])
    return paragraph(
        f"The next figures are of presence. On {row['without_target']} further phantoms without",
        "the lesion, half of them with the modality's *other* target, `absent` was said",
        f"{said} times. On the {row['n']} with it, it was wrongly said {row['missed']} times. The",
        "contrast score behind it (cosine to the prompt minus that to the nearest null or other",
        f"prompt) has an AUC of {row['presence_auc']:.3f}.",
    )


def rows_needed(results: Results) -> str:
    """The rows of contrastcam in use beside all."""
    facts = results["schedules"]
    found = next(iter(facts["results"].values()))
    every, used = found
    few, many = facts["rows"][used], facts["rows"][every]
    row, images = found[used], found[used]["dsc"]["all"]["n"]
    head = paragraph(
        f"contrastcam takes {few} rows of an image in two rounds, where all spots of the grid,",
        f"shown and deleted, take {many}. On {images} held-out phantoms both were judged through",
        f"CRF, boxes and SAM. The values are paired differences, {few} rows minus {many}, with",
        f"95 % intervals. {made_by(facts)}:",
    )
    lines = []
    for key in JUDGED:
        each = [signed(row[key][name]["difference"][0]) for name in PHANTOMS]
        whole = row[key]["all"]
        lines.append([TITLES[key], f"{whole['mean']:.3f}", difference(*whole["difference"]), *each])
    heads = ["", f"{few} rows", f"difference to all {many}", "ultrasound", "MRI", "X-ray"]
    worst = -row["pointing"]["all"]["difference"][1]
    tail = f"Pointing may be worse by as much as {worst:.3f}: {images} images cannot say less."
    return join(head, table(heads, lines), tail)


def choices(results: Results) -> str:
    """What the choices in contrastcam bring."""
    facts = results["ablation"]
    found = facts["results"]["held-out"]
    layers = [row for name, row in found.items() if name.startswith("gscorecam, block")]
    rows = [(name, found[variant]) for name, variant in VARIANTS]
    rows.append((f"gscorecam, best of all {len(layers)} layers", max(layers, key=_share)))
    cells = [[name, *(f"{share:.2f}" for share in _share(row))] for name, row in rows]
    half = len(cells) // 2
    lines = [[*left, *right] for left, right in zip(cells[:half], cells[half:], strict=True)]
    images, grid = len(PHANTOMS) * facts["count"], results["schedules"]["rows"]["all rows"]
    head = paragraph(
        f"The table is of saliency alone, before CRF and SAM, on {images} held-out phantoms. All",
        f"variants took all {grid} rows of the grid. *Both prompts*: with two targets, both",
        "prompts point to their own.",
        f"{made_by(facts)}:",
    )
    heads = ["", "pointing", "both prompts"]
    return join(head, table([*heads, *heads], lines))


def _share(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["pointing"]["mean"], row["sensitivity"]["mean"]


def tuned(results: Results) -> str:
    """What ``tune`` found, and whether it holds."""
    facts = results["tuning"]
    rows = facts["results"]
    changed = [PHANTOMS[name] for name, row in rows.items() if row["settings"]]
    now, before = (
        enumerate_words([f"{row[key]:.2f}" for row in rows.values()])
        for key in ("tuned", "default")
    )
    found = "nothing was surely better than the phantom bundle's defaults, and `tune` kept them"
    if changed:
        found = f"`tune` changed the phantom bundle's defaults for {enumerate_words(changed)}"
        now += f", with the defaults {before}"
    return paragraph(
        f"On {facts['count']} phantoms per modality {found}. The DSC on {facts['held_out']} others",
        f"was {now}, in the order {enumerate_words([PHANTOMS[name] for name in rows])}.",
        f"{made_by(facts)}.",
    )


def confidence(results: Results) -> str:
    """What ``confidence`` is worth."""
    facts = results["confidence"]
    ours, plain = facts["scores"]["confidence"], facts["scores"]["predicted IoU"]
    return paragraph(
        f"On {facts['masks']} masks of {facts['phantoms']} phantoms, neither trained on nor fitted",
        "on, `confidence` tells good masks from bad with an AUC of",
        f"{ours['auc']:.2f}. Predicted IoU alone has {plain['auc']:.2f}. The Brier score is",
        f"{ours['brier']:.3f} against {plain['brier']:.3f}. The calibration error is",
        f"{ours['ece']:.2f}. {made_by(facts)}.",
    )


def exported(results: Results) -> str:
    """How exact exported graphs are."""
    facts = results["export"]
    head = paragraph(
        "The full-size models have random weights. The table shows the largest relative error of",
        "ONNX Runtime's CPU provider beside float32 torch, at batch",
        f"{enumerate_words([str(n) for n in facts['batches']])}. {made_by(facts)}:",
    )
    rows = []
    for name, model, graphs in GRAPHS:
        cells = []
        for precision in PRECISIONS:
            errors = [
                row[f"error_{n}"]
                for row in facts["rows"]
                for n in facts["batches"]
                if row["model"].startswith(model)
                and row["graph"] in graphs
                and row["precision"] == precision
            ]
            cells.append(power(max(errors)) if errors else "")
        rows.append([name, *cells])
    return join(head, table(["", *PRECISIONS.values()], rows))


MAKERS: dict[str, Maker] = {
    "zero-shot": zero_shot,
    "presence": presence,
    "rows-needed": rows_needed,
    "choices": choices,
    "tuned": tuned,
    "confidence": confidence,
    "exported": exported,
}
