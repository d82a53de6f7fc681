"""The packages that a machine with torch lacks, for one without network.

    python -m medclipsam.benchmarks.gpu.wheels

Says NAME==VERSION of all that medclipsam needs, as installed here, without torch, torchvision and
what only these two need: their builds belong to a machine's driver.
"""

import re
from collections.abc import Iterator
from importlib.metadata import distribution, requires, version

from packaging.requirements import Requirement

KEPT = ("torch", "torchvision")  # those of the machine
BUILDS = "setuptools"  # the checkout is installed with it


def normalise(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def close_over(name: str, seen: set[str]) -> None:
    """Put ``name`` and all that it needs into ``seen``; what is kept is not followed."""
    if normalise(name) in seen or normalise(name) in KEPT:
        return
    seen.add(normalise(name))
    for other in needs(name):
        close_over(other, seen)


def needs(name: str) -> Iterator[str]:
    """What a package needs here, without its extras."""
    for line in requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def list_packages(name: str = "medclipsam") -> list[str]:
    """``NAME==VERSION`` of all that it needs, without itself."""
    seen: set[str] = set()
    close_over(name, seen)
    close_over(BUILDS, seen)
    names = {normalise(distribution(each).metadata["Name"]) for each in seen} - {normalise(name)}
    return [f"{each}=={version(each)}" for each in sorted(names)]


if __name__ == "__main__":
    print("\n".join(list_packages()))
