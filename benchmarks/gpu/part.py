"""One part in this process; its JSON is written when it is complete.

python -m medclipsam.benchmarks.gpu.part NAME OUT DEVICE
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import click

from medclipsam.benchmarks.gpu.parts import PARTS
from medclipsam.benchmarks.gpu.setting import Setting
from medclipsam.benchmarks.measuring.machine import (
    describe_machine,
    find_revision,
    list_versions,
)
from medclipsam.engine.backends import open_device
from medclipsam.engine.durable import write_durable


@click.command()
@click.argument("name", type=click.Choice([part.name for part in PARTS]))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.argument("device")
@click.option("--tiny", is_flag=True)
def main(name: str, out: Path, device: str, tiny: bool) -> None:
    """Run one part and write OUT/NAME.json."""
    part = next(part for part in PARTS if part.name == name)
    where, begun = open_device(device), time.monotonic()
    words = ["benchmarks/gpu.sh OUT", "--part", name, "--device", device, *["--tiny"] * tiny]
    with tempfile.TemporaryDirectory() as scratch:
        facts = {
            "command": " ".join(words),
            "date": time.strftime("%Y-%m-%d"),
            "revision": find_revision(),
            "machine": describe_machine(where),
            "versions": list_versions(),
            "device": device,
            "tiny": tiny,
            **part.run(Setting(where, tiny, Path(scratch))),
        }
    facts["seconds"] = round(time.monotonic() - begun, 1)
    text = json.dumps(facts, indent=1, allow_nan=False)
    write_durable(out / f"{name}.json", f"{text}\n".encode())
    sys.exit(0)


if __name__ == "__main__":
    main()
