"""Images per second of the streaming runner beside a plain loop and beside its stages.

    python -m medclipsam.benchmarks.streaming

Phantoms as PNG, asked for two targets. In one process, in turns: every stage alone over all
images; the same work image by image in a loop; the runner. The loop and the runner give the same
masks, which is checked. Once with the bundle's saliency, which takes hundreds of rows an image and
nearly all of the time, and once with gradcam, which takes none, so that the other stages show.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

from medclipsam.benchmarks.bench.stages import ONCE, STAGES, Part, Pass
from medclipsam.benchmarks.inputs.archive import write_phantoms
from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.benchmarks.measuring.spread import Ratio, Spread, take_turns
from medclipsam.engine.archive import Decoders, Limits, open_archive
from medclipsam.engine.engine import Engine
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.runner import RunSummary, run
from medclipsam.engine.run.work import Delivery, Work, finish_work
from medclipsam.engine.types import Image, Prompts
from medclipsam.train.phantoms.phantoms import MODALITIES, PROMPTS, TARGETS


@dataclass
class Contest:
    """Stages, loop and runner over one archive.

    Attributes:
        parts: per turn, what the stages took alone.
        summaries: per turn, of the runner.
    """

    engine: Engine
    folder: Path
    prompts: Prompts
    scratch: Path
    parts: list[dict[str, Part]] = field(default_factory=list)
    summaries: list[RunSummary] = field(default_factory=list)

    def walk(self) -> None:
        """Every stage alone."""
        way = Pass(self.engine, open_archive(str(self.folder)), self.prompts, self.scratch / "pass")
        self.parts.append(way.run())

    def loop(self) -> None:
        """The same work as the runner's, one image after another."""
        out = self._fresh("loop")
        with (
            RunFolder(out, {}) as folder,
            Ledger(out / "ledger.sqlite") as ledger,
            Decoders(1, Limits()) as decoders,
        ):
            for entry in open_archive(str(self.folder)):
                decoded = decoders.decode(entry)
                image = Image(entry.ref, decoded.frames, decoded.grid)
                work = Work(entry.ref, self.prompts, image, digest=decoded.digest)
                frames = [image.frames[0]]
                work.segments = self.engine.pipeline.segment(frames, [self.prompts], maps=False)
                files, rows = finish_work(work, Delivery())
                folder.write_all(files)
                ledger.commit(rows)

    def stream(self) -> None:
        """The runner."""
        archive = open_archive(str(self.folder))
        self.summaries.append(run(self.engine, archive, self.prompts, self._fresh("stream")))

    def same(self) -> bool:
        """Whether loop and runner have written the same mask files, byte for byte."""
        return same_masks(self.scratch / "loop", self.scratch / "stream")

    def _fresh(self, name: str) -> Path:
        out = self.scratch / name
        shutil.rmtree(out, ignore_errors=True)
        return out


def same_masks(a: Path, b: Path) -> bool:
    """Whether two run folders hold the same mask files, byte for byte."""
    names = [sorted(p.relative_to(out) for p in out.glob("masks/**/*.png")) for out in (a, b)]
    return names[0] == names[1] and all(
        (a / name).read_bytes() == (b / name).read_bytes() for name in names[0]
    )


def compare(engine: Engine, count: int, side: int, turns: int) -> dict[str, Any]:
    """All three over ``count`` phantoms."""
    prompts = Prompts({target: (PROMPTS[target],) for target in TARGETS[MODALITIES[0]]})
    with tempfile.TemporaryDirectory() as scratch:
        write_phantoms(Path(scratch) / "archive", count, side)
        contest = Contest(engine, Path(scratch) / "archive", prompts, Path(scratch))
        calls: dict[str, Callable[[], None]] = {
            "stages": contest.walk,
            "loop": contest.loop,
            "runner": contest.stream,
        }
        found = take_turns(calls, turns, short=0)
        same = contest.same()
    parts, summaries = contest.parts[1:], contest.summaries[1:]  # the first did not count
    alone = {stage: [each[stage] for each in parts] for stage in STAGES if stage not in ONCE}
    sums = [sum(p.seconds for p in each.values()) for each in parts]
    shares = [spent / ran for spent, ran in zip(sums, found.seconds["runner"], strict=True)]
    idle = [s.idle_queued / s.seconds for s in summaries]
    return {
        "images": count,
        "alone": {
            stage: Spread.of([part.images / part.seconds for part in each]).to_json()
            for stage, each in alone.items()
        },
        "loop": found.rate("loop", count).to_json(),
        "runner": found.rate("runner", count).to_json(),
        "runner_over_loop": found.times("runner", "loop").to_json(),
        "stages_over_run": Spread.of(shares).to_json(),
        "idle_while_queued": Spread.of(idle).to_json(),
        "same_masks_as_loop": same,
        "stages": [asdict(stage) for stage in summaries[-1].stages],
    }


@click.command()
@click.option("--bundle", default="phantom", show_default=True)
@click.option("--count", default=60, show_default=True, help="Images; five times with gradcam.")
@click.option("--side", default=160, show_default=True, help="Side of an image in pixels.")
@click.option("--turns", default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@RESULTS
def main(
    bundle: str, count: int, side: int, turns: int, threads: int, device: str, out: Path
) -> None:
    """Writes streaming.md and streaming.json."""
    results = {}
    for saliency, images in (("", count), ("gradcam", 5 * count)):
        settings = {"saliency": {"method": saliency}} if saliency else {}
        engine = Engine.open(bundle, device, settings=settings, threads=threads)
        found = compare(engine, images, side, turns)
        results[engine.config.saliency.method] = found
        click.echo(json.dumps({k: v for k, v in found.items() if k != "stages"}, indent=2))
    facts = {**open_facts(device=torch.device(device)), "results": results}
    publish(out, "streaming", facts, to_markdown)


def to_markdown(facts: Mapping[str, Any]) -> str:
    """The figures of each saliency method."""
    return "\n".join(_to_table(name, found) for name, found in facts["results"].items())


def _to_table(name: str, facts: Mapping[str, Any]) -> str:
    rates = {f"{stage} alone": rate for stage, rate in facts["alone"].items()}
    rates |= {"loop": facts["loop"], "runner": facts["runner"]}
    shares, idle = (Spread.from_json(facts[k]) for k in ("stages_over_run", "idle_while_queued"))
    lines = [
        f"## {name}, {facts['images']} images\n",
        "| | images/s |",
        "| --- | --- |",
        *(f"| {name} | {Spread.from_json(rate).show()} |" for name, rate in rates.items()),
        "",
        f"The runner is {Ratio.from_json(facts['runner_over_loop']).show()} as fast as the loop. "
        f"All stages alone, one after the other, take {shares.median:.0%} "
        f"[{shares.low:.0%}, {shares.high:.0%}] of the runner's seconds. Its device executor "
        f"rested {idle.median:.1%} of the time while work was queued. Same masks as the loop: "
        f"{facts['same_masks_as_loop']}.\n",
        "| stage in the runner | items | busy s | occupancy | mean waiting | most waiting |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {s['stage']} | {s['items']} | {s['busy']:.1f} | {s['occupancy']:.0%} "
            f"| {s['depth']:.1f} | {s['deepest']} |"
            for s in facts["stages"]
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
