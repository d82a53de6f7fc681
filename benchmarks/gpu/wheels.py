"""The packages that a machine with torch lacks, for one without network.

    python -m medclipsam.benchmarks.gpu.wheels

Says NAME==VERSION of all that this checkout needs, as installed here, without torch, torchvision
and what only these two need: their builds belong to a machine's driver.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from medclipsam.benchmarks.measuring.machine import HERE

KEPT = ("torch", "torchvision")  # those of the machine
BUILDS = "setuptools"  # the checkout is installed with it


def normalise(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def close_over(lines: Iterable[str], seen: set[tuple[str, str]], extra: str = "") -> None:
    """Put (name, extra) of all that these requirements need here into ``seen``.

    Args:
        lines: as they stand in a package's metadata.
        extra: of the package whose requirements they are.

    Raises:
        PackageNotFoundError: one is not installed here.
    """
    for requirement in map(Requirement, lines):
        name, marker = normalise(requirement.name), requirement.marker
        if name in KEPT or (marker and not marker.evaluate({"extra": extra})):
            continue
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                close_over(requires(name) or (), seen, wanted)


def list_packages() -> list[str]:
    """``NAME==VERSION`` of all that the checkout needs, without itself.

    Raises:
        PackageNotFoundError: one is not installed here.
    """
    seen: set[tuple[str, str]] = set()
    project = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]
    close_over([*project["dependencies"], BUILDS], seen)
    return [f"{name}=={version(name)}" for name in sorted({name for name, _ in seen})]


if __name__ == "__main__":
    try:
        print("\n".join(list_packages()))
    except PackageNotFoundError as exc:
        sys.exit(f"{exc.name} is not installed here; install the checkout first: pip install -e .")
