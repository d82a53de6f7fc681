"""One static folder that shows a finished run in any browser, straight from disk.

Refuses to know how outcomes came about. The page is ``page/report.html`` with its style
and scripts inlined, the same for every run; all that varies stands in ``data.js``, a
script that assigns one global as JSON, because a page opened from disk may not fetch.
Nothing is requested from elsewhere.
"""

import base64
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medclipsam.engine.durable import write_durable
from medclipsam.engine.errors import InputError
from medclipsam.engine.outputs import preview_path
from medclipsam.engine.presence import REASONS
from medclipsam.engine.types import FIGURES, Outcome

FOLDER = "report"
PAGE = Path(__file__).parent / "page"
SCRIPTS = (
    *("rows.js", "view.js", "decisions.js", "grid.js", "card.js", "charts.js"),
    *("run.js", "quarantine.js", "large.js", "review.js", "report.js"),
)
DATA_PREFIX = "window.medclipsam = "
LISTED = 50_000  # outcomes a browser handles with ease; counts cover all of them
COLUMNS = (
    *("item", "label", "prompt", "status", "stage", "reason", "message"),
    *("mask", "preview", "area", *FIGURES, "frames", "boxes", "geometry"),
)


def write_report(
    folder: Path,
    outcomes: Iterable[Outcome],
    about: dict[str, object],
    evaluation: dict[str, Any] | None = None,
    identity: str = "",
) -> Path:
    """Write ``report/index.html`` and ``report/data.js`` into a run folder.

    The first 50,000 outcomes are listed, and as many quarantined ones beyond them;
    the page says so where that leaves some out.

    Args:
        folder: the run folder; previews lie where ``preview_path`` says.
        outcomes: read once, never held together.
        about: what the page tells about the run: plain values, dicts and lists.
        evaluation: as ``scoretable.to_json`` gives it.
        identity: what tells this run from others; the browser keeps the decisions of a
            review under it. By default the hash of the outcomes listed.

    Returns:
        The page.
    """
    head = {
        "title": str(about.get("name") or folder.resolve().name),
        "facts": [[str(name), _plain(value)] for name, value in about.items()],
        "evaluation": _plain(evaluation),
        "reasons": REASONS | InputError.REASONS,
        "columns": COLUMNS,
    }
    stream = io.StringIO()
    stream.write(DATA_PREFIX + _script_json(head)[:-1] + ',"rows":[')
    start = stream.tell()
    tail = _write_rows(stream, outcomes)
    if not identity:
        identity = hashlib.sha256(stream.getvalue()[start:].encode()).hexdigest()[:16]
    stream.write("\n]," + _script_json({**tail, "run": identity})[1:] + ";\n")
    write_durable(folder / FOLDER / "data.js", stream.getvalue().encode())
    page = folder / FOLDER / "index.html"
    write_durable(page, _make_page().encode())
    return page


def _write_rows(stream: io.StringIO, outcomes: Iterable[Outcome]) -> dict[str, object]:
    """Rows as JSON arrays, and what is only known after them: counts and prompts."""
    counts: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    prompts: dict[str, int] = {}
    listed = quarantined = 0
    for outcome in outcomes:
        counts[outcome.status] += 1
        lost = outcome.status == "quarantined"
        if outcome.reason:
            reasons[outcome.status, outcome.reason] += 1
        if counts.total() > LISTED and not (lost and quarantined < LISTED):
            continue
        stream.write(",\n" if listed else "\n")
        stream.write(_script_json(_row(outcome, prompts.setdefault(outcome.prompt, len(prompts)))))
        listed += 1
        quarantined += lost
    return {
        "counts": counts,
        "why": [[*key, n] for key, n in reasons.most_common()],
        "prompts": list(prompts),
    }


def _make_page() -> str:
    """The page in one piece; its policy allows just this style and this script."""
    style = "\n" + (PAGE / "report.css").read_text("utf-8")
    script = "\n" + "".join((PAGE / name).read_text("utf-8") for name in SCRIPTS)
    page = (PAGE / "report.html").read_text("utf-8")
    for tag, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        page = page.replace(f"sha256-{tag}", f"sha256-{digest}")
        page = page.replace(f"<{tag}></{tag}>", f"<{tag}>{text}</{tag}>")
    return page


def _row(outcome: Outcome, prompt: int) -> list[object]:
    """The outcome in the order of ``COLUMNS``, links percent-encoded."""
    preview = preview_path(outcome.label, outcome.item)
    pictured = outcome.status != "quarantined" or outcome.mask  # low confidence: kept apart
    return [
        _text(outcome.item),
        outcome.label,
        prompt,
        outcome.status,
        outcome.stage,
        outcome.reason,
        outcome.message,
        "../" + _link(outcome.mask) if outcome.mask else "",
        _link(str(preview.relative_to(FOLDER))) if pictured else "",
        outcome.area,
        *(_figure(outcome.figures.get(name)) for name in FIGURES),
        outcome.frames,
        sum(len(frame) for frame in outcome.boxes),
        outcome.geometry,
    ]


def _text(name: str) -> str:
    """Item ids are text already; a raw path may hold bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _link(path: str) -> str:
    return quote(path.encode("utf-8", "surrogateescape"))


def _figure(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 4)


def _plain(value: object) -> Any:
    """``value`` as JSON has it: NaN becomes None, what JSON does not know its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _script_json(value: object) -> str:
    """ASCII JSON that cannot close the script element it may stand in."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
