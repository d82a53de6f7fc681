"""All parts, one after the other, each in a process of its own; the same command goes on.

    python -m medclipsam.benchmarks.gpu OUT

A device that breaks, or a part that hangs, costs that part. A part whose JSON is there is done.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from medclipsam.benchmarks.gpu.parts import PARTS, Part
from medclipsam.benchmarks.gpu.summary import summarise
from medclipsam.engine.durable import make_folder, write_durable

LEAST = 5.0  # seconds that a part must have left to be begun
DONE, FAILED, LEFT = "done", "failed", "left"
CODES = {DONE: 0, FAILED: 1, LEFT: 3}


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--device", default="cuda", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--minutes", type=click.FloatRange(0), default=8.0, show_default=True)
@click.option(
    "--part", "names", multiple=True, type=click.Choice([part.name for part in PARTS]),
    help="Only this one; may be repeated.",
)  # fmt: skip
@click.option("--tiny", is_flag=True, help="Tiny models and few images, to try it on a CPU.")
def main(out: Path, device: str, minutes: float, names: Sequence[str], tiny: bool) -> None:
    """Ask everything of DEVICE; JSON of each part and summary.md go into the folder OUT.

    Ends with 0 if all parts are done, 1 if one failed, 3 if there was no time for one.
    """
    make_folder(out / "log")
    require_same(out, device, tiny)
    end, states = time.monotonic() + 60 * minutes, {}
    for part in PARTS:
        if names and part.name not in names:
            continue
        state, said = run_part(part, out, device, tiny, end - time.monotonic())
        states[part.name] = state
        click.echo(f"{part.name}: {said}")
    write_durable(out / "summary.md", summarise(out, states).encode())
    click.echo(str(out / "summary.md"))
    if LEFT in states.values():
        click.echo("there was no time for all parts; the same command goes on with the others")
    worst = FAILED if FAILED in states.values() else LEFT if LEFT in states.values() else DONE
    sys.exit(CODES[worst])


def require_same(out: Path, device: str, tiny: bool) -> None:
    """Refuse a folder whose parts were measured in another way.

    Raises:
        click.UsageError: says which way.
    """
    for path in sorted(out.glob("*.json")):
        facts = json.loads(path.read_text("utf-8"))
        if (facts["device"], facts["tiny"]) != (device, tiny):
            how = f"--device {facts['device']}" + " --tiny" * facts["tiny"]
            raise click.UsageError(f"{path} was measured with {how}; choose another folder")


def run_part(part: Part, out: Path, device: str, tiny: bool, left: float) -> tuple[str, str]:
    """How it went, and that in words."""
    if (out / f"{part.name}.json").exists():
        return DONE, "is there already"
    if left < LEAST:
        return LEFT, "no time left"
    log, begun = out / "log" / f"{part.name}.txt", time.monotonic()
    command = [sys.executable, "-m", "medclipsam.benchmarks.gpu.part", part.name, str(out), device]
    with log.open("w") as stream:
        child = subprocess.Popen(
            command + ["--tiny"] * tiny, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            code = child.wait(min(part.seconds, left))
        except subprocess.TimeoutExpired:
            if left < part.seconds:
                return LEFT, "no time left"
            return FAILED, f"took longer than {part.seconds:g} s; see {log}"
        finally:
            kill(child)
    spent = f"{time.monotonic() - begun:.0f} s"
    if code or not (out / f"{part.name}.json").exists():
        return FAILED, f"failed after {spent}, exit code {code}; see {log}"
    return DONE, f"done in {spent}"


def kill(child: subprocess.Popen[bytes]) -> None:
    """End a part and all that it has started."""
    with suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    main()
