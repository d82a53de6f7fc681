"""A saliency method is one file, and one name in the settings."""

from importlib import import_module
from pathlib import Path
from typing import get_args

import medclipsam.engine.saliency as package
from medclipsam.engine.config import SaliencyMethod


def test_every_method_has_its_file_and_every_file_its_name():
    files = Path(package.__file__).parent.glob("*.py")
    modules = {f.stem: import_module(f"{package.__name__}.{f.stem}") for f in files}
    assert {name for name, module in modules.items() if hasattr(module, "probe")} == set(
        get_args(SaliencyMethod)
    )
