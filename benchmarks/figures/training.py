"""What the documents say of trainings: of losses, and of learning from zero-shot masks.

Refuses to know how good the shipped bundle is.
"""

from collections.abc import Mapping
from typing import Any

from medclipsam.benchmarks.figures.documents import Maker, Results
from medclipsam.benchmarks.figures.markdown import (
    bold,
    difference,
    join,
    made_by,
    paragraph,
    signed,
    table,
)
from medclipsam.benchmarks.losses import compare, interval

LOSSES = {"dhn-nce": "DHN-NCE", "hn-nce": "HN-NCE", "dcl": "DCL", "info-nce": "InfoNCE"}
PUBLISHED = "dhn-nce"
STARTS = {"long start": "losses", "early start": "losses-short-start"}
SHOWN = ("image_to_text top-10", "text_to_image top-10", "DSC")
LESIONS = {
    "overall": "all {n}",
    "mass": "ultrasound, mass",
    "tumor": "MRI, tumor",
    "nodule": "X-ray, nodule",
}


def losses(results: Results) -> str:
    """Losses at equal budget, from two starts."""
    long, early = (results[name] for name in STARTS.values())
    training, runs = long["training"], long["results"]
    starts = [
        f"{each['start']['training']['epochs']} epochs on {each['start_pairs']:,}"
        for each in (long, early)
    ]
    head = paragraph(
        f"{len(runs)} losses with {len(runs[PUBLISHED])} seeds each, at equal budget:",
        f"{training['epochs']} epochs on {long['pairs']:,} phantoms with captions, batch",
        f"{training['batch']}, temperature {training['temperature']}. They begin at two starts",
        f"trained with InfoNCE on other phantoms: a long one ({starts[0]}) and one stopped early",
        f"({starts[1]}). They are judged on retrieval among {long['test']} pairs and on zero-shot",
        f"masks of {long['segmented']} ({early['segmented']}) phantoms. The values are means over",
        "seeds ± half a 95 % interval; differences are paired by seed.",
    )
    commands = "\n".join(["Made by", "", "```", long["command"], early["command"], "```"])
    tables = [_table_of_losses(title, results[name]) for title, name in STARTS.items()]
    return join(head, *tables, commands)


def _table_of_losses(title: str, facts: Mapping[str, Any]) -> str:
    published = facts["results"][PUBLISHED]
    rows = [["the start", *(f"{facts['start'][name]:.3f}" for name in SHOWN), ""]]
    for loss, runs in facts["results"].items():
        means = [interval([run[name] for run in runs]) for name in SHOWN]
        mean, half = compare(published, runs, "DSC")
        gap = bold(f"{signed(mean)} ± {half:.3f}", abs(mean) > half)
        cells = [f"{m:.3f} ± {h:.3f}" for m, h in means]
        paper = loss == PUBLISHED
        rows.append([LOSSES[loss] + " (the paper's)" * paper, *cells, "" if paper else gap])
    heads = ["image → text, top-10", "text → image, top-10", "DSC"]
    return table([title, *heads, f"DSC of {LOSSES[PUBLISHED]} minus this one"], rows)


def weak(results: Results) -> str:
    """A U-Net beside the zero-shot masks that it learned from."""
    facts = results["weak"]
    head = paragraph(
        f"A U-Net was trained on zero-shot masks of {facts['learn']} phantoms per modality. Three",
        "quarters of them have a target, half of them the lesion. True masks were never shown. The",
        "table has the quality of the zero-shot masks themselves beside it, on",
        f"{facts['test']} further phantoms per modality, with the lesion. {made_by(facts)}:",
    )
    found = {
        method: {row["label"]: row for row in rows if row["figure"] == "dice"}
        for method, rows in facts["results"].items()
    }
    heads, lines = ["DSC"], [[title] for title in LESIONS.values()]
    for method, rows in found.items():
        heads += [method, "U-Net", "paired difference"]
        for line, label in zip(lines, LESIONS, strict=True):
            row = rows[label]
            gap = row["difference"]
            line[0] = line[0].format(n=row["n"])
            line += [f"{row['second']:.3f}", bold(f"{row['first']:.3f}", gap["low"] > 0)]
            line.append(difference(gap["mean"], gap["low"], gap["high"]))
    return join(head, table(heads, lines))


MAKERS: dict[str, Maker] = {"losses": losses, "weak-supervision": weak}
