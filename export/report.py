"""The figures of an export, kept whether it was published or refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medclipsam.engine.durable import write_durable
from medclipsam.engine.home import home
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.export.parity import LIMITS, Parity


def write_report(
    bundle: Bundle, backend: str, precision: str, about: Mapping[str, Any], parity: Parity
) -> Path:
    """Write ``HOME/exports/BUNDLE-BACKEND-PRECISION.json``; returns its path.

    Args:
        about: what was exported, by what.

    Raises:
        OutputError: it cannot be written.
    """
    path = home() / "exports" / f"{bundle.name}-{backend}-{precision}.json"
    found = {
        "bundle": bundle.digest,
        **about,
        "limits": vars(LIMITS[precision]),
        "parity": parity.figures(),
        "failures": parity.failures,
    }
    write_durable(path, json.dumps(found, indent=2).encode())
    return path
