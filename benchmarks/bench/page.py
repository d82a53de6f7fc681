"""What was measured, for a terminal and as Markdown: both made of the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medclipsam.benchmarks.measuring.spread import Ratio, Spread

GIB = 1 << 30

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of texts.

    Attributes:
        right: columns with numbers.
    """

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: tuple[int, ...] = ()

    def to_rich(self) -> Any:
        """For a terminal."""
        from rich.markup import escape
        from rich.table import Table as Rich

        table = Rich(title=self.title, title_justify="left")
        for n, head in enumerate(self.heads):
            table.add_column(head, justify="right" if n in self.right else "left")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def to_markdown(self) -> str:
        """With a heading."""
        bars = ["---:" if n in self.right else "---" for n in range(len(self.heads))]
        lines = [self.heads, bars, *self.rows]
        return f"## {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe(facts: Facts) -> list[str]:
    """What was measured, and on what, line by line."""
    used = facts["settings"]
    source = facts["input"]
    lines = [
        f"machine: {facts['machine']}",
        f"bundle {used['bundle']}, {used['saliency']}, {used['precision']}, {used['backend']}, "
        f"device {used['device']}, {used['threads']} threads, rows {used['rows']}, "
        f"batch {used['batch']}, boxes {used['boxes']}",
        f"images: {source['name']}; {source['images']} of them in each turn, "
        f"{source['shown']} may show what is asked ({source['positives']:g} %)",
    ]
    if source["synthetic"]:
        lines.append(
            "these images are synthetic: small, clean and all alike; give your own archive for "
            "figures of your own"
        )
    if source["unreadable"]:
        lines.append(f"{source['unreadable']} items could not be read and were left out")
    return lines


def conclude(facts: Facts) -> list[str]:
    """End to end, memory, energy, the bottleneck and advice, line by line."""
    rate, memory = Spread.from_json(facts["images_per_s"]), facts["memory"]
    lines = [
        f"end to end: {_show(rate, ' (one run)')} images/s, with start, masks and report",
        f"opening the models took {facts['open_seconds']:.1f} s beside that",
        f"memory, at most: host {memory['host'] / GIB:.2f} GiB"
        + (f", device {memory['device'] / GIB:.2f} GiB" if memory["device"] else ""),
    ]
    if facts["settings"]["device"] != "cpu":
        lines.append(f"the device was busy {facts['device_busy']:.0%} of a run, by its own clock")
    energy = facts["energy"]
    for name, joules in energy["joules_per_image"].items():
        lines.append(f"energy of {name}: {joules:.3g} J an image, all that ran there included")
    lines += energy["missing"]
    lines.append(facts["bottleneck"])
    sweep = facts.get("sweep")
    lines.append(sweep["said"] if sweep else "Advice: --sweep tries settings that may be faster.")
    against = facts.get("against")
    if against:
        lines.append(
            f"published pipeline, {against['images']} images: "
            f"{_show(Spread.from_json(against['published']))} images/s, the runner "
            f"{_show(Spread.from_json(against['run']))}: "
            f"{Ratio.from_json(against['times_faster']).show(1)}"
        )
    return lines


def stage_table(facts: Facts) -> Table:
    """A row a stage, and what all make together."""
    rows = []
    for row in facts["stages"]:
        rate = Spread.from_json(row["images_per_s"]) if "images_per_s" in row else None
        seconds = Spread.from_json(row["seconds"])
        rows.append(
            (
                row["stage"],
                row["on"],
                str(row["images"] or ""),
                _mark(rate) if rate else f"{seconds.median:.2f} s",
                f"{row['share']:.1%}",
                f"{row['at_work']:.0%}",
            )
        )
    for where, found in facts["sums"].items():
        spread = Spread.from_json(found)
        low, high = f"{spread.low:.0%}", f"{spread.high:.0%}"
        rows.append((f"all on {where}", where, "", f"[{low}, {high}]", f"{spread.median:.1%}", ""))
    heads = ("stage", "on", "images", "alone, images/s", "of run", "at work")
    return Table("Stages", heads, rows, (2, 3, 4, 5))


def projection_table(facts: Facts) -> Table:
    """Hours for a million images, by the share that shows what is asked."""
    energy = any("kwh" in row for row in facts["million"])
    rows = [
        (
            f"{row['positives']:g} %" + (" (this sample)" if row.get("own") else ""),
            f"{row['images_per_s']:g}",
            f"{row['hours']:g}",
            *((f"{row['kwh']:g}",) if energy else ()),
        )
        for row in facts["million"]
    ]
    heads = ("images with the target", "images/s", "hours") + (("kWh",) if energy else ())
    return Table("A million images", heads, rows, (1, 2, 3)[: len(heads) - 1])


def sweep_table(sweep: Facts) -> Table:
    """A row a setting that was tried."""
    rows = []
    for row in sweep["tried"]:
        if "refused" in row:
            found = f"refused: {row['refused']}"
        else:
            found = Ratio.from_json(row["times_faster"]).show()
        if "masks" in row:
            found += f"; masks IoU {row['masks']['mean_iou']:.3f}"
        rows.append((row["flag"], found, "kept" if row.get("kept") else ""))
    title = f"Tried, {sweep['images']} images; each beside what is in use and was kept before it"
    return Table(title, ("setting", "a run is so many times as fast", ""), rows)


def tables(facts: Facts) -> list[Table]:
    """All that there are."""
    found = [stage_table(facts), projection_table(facts)]
    return [*found, sweep_table(facts["sweep"])] if "sweep" in facts else found


EXPLAINED = """*alone*: the stage by itself, over the images that come to it, with everything the \
run would give it. *of run*: what it costs, as a share of the seconds of a run. *at work*: \
how much of the cores, or of the device, it kept busy when alone. Stages on the cores and on a \
device go on side by side; those on one of them add up to a run, but for waiting and handing over. \
Figures are medians over turns in which stages and runs alternate, with the least and the \
largest; ~ marks a wide spread, ¹ what was measured once.
"""


def to_markdown(facts: Facts) -> str:
    """The whole page."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    title = "medclipsam bench" + (" (synthetic images)" if facts["input"]["synthetic"] else "")
    lines = [f"# {title}\n", f"`{facts['command']}`, {facts['date']}, {versions}\n"]
    lines += [f"- {line}" for line in (*describe(facts), *conclude(facts))]
    lines += ["", "![where the time goes](bench.png)"]
    for table in tables(facts):
        lines += ["", table.to_markdown()]
    return "\n".join([*lines, "", EXPLAINED])


def compare(first: Facts, second: Facts, names: Sequence[str]) -> Table:
    """Two results side by side: rates, and how many times as fast the second one is."""
    rows = [_compare_rates("end to end", first["images_per_s"], second["images_per_s"])]
    others = {row["stage"]: row for row in second["stages"]}
    for row in first["stages"]:
        other = others.get(row["stage"], {})
        if "images_per_s" in row and "images_per_s" in other:
            pair = row["images_per_s"], other["images_per_s"]
            rows.append(_compare_rates(f"{row['stage']} alone", *pair))
    for where in first["memory"]:
        pair = first["memory"][where], second["memory"].get(where)
        if all(pair):
            own, theirs = (f"{value / GIB:.2f} GiB" for value in pair)
            rows.append((f"memory, {where}", own, theirs, f"{pair[1] / pair[0]:.2f}×"))
    return Table("Side by side, images/s", ("", *names, "second over first"), rows, (1, 2, 3))


def _compare_rates(name: str, first: Facts, second: Facts) -> tuple[str, ...]:
    """A row; two measurements have no turns in common, so that their spreads are compared."""
    own, other = Spread.from_json(first), Spread.from_json(second)
    overlap = own.low <= other.high and other.low <= own.high
    ratio = f"{other.median / own.median:.2f}×"
    return name, _mark(own), _mark(other), f"{ratio}, spreads overlap" if overlap else ratio


def _show(rate: Spread, once: str = " (measured once)", noisy: str = " (noisy)") -> str:
    """With about three digits."""
    return rate.show(0 if rate.median >= 100 else 1 if rate.median >= 10 else 2, once, noisy)


def _mark(rate: Spread) -> str:
    """The same for a table, where a sign says what its legend says."""
    return _show(rate, "¹", "~")
