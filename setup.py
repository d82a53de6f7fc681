"""Four folders at the top, one import name: ``medclipsam.*``.

Metadata and dependencies stand in pyproject.toml; only the mapping of folders to
import names is code, because packages named ``engine`` or ``train`` would shadow
users' own.
"""

from setuptools import find_packages, setup

FOLDERS = ("engine", "export", "train", "benchmarks")

packages = [
    f"medclipsam.{name}"
    for folder in FOLDERS
    for name in [folder, *(f"{folder}.{sub}" for sub in find_packages(folder))]
]

setup(
    packages=packages,
    package_dir={f"medclipsam.{folder}": folder for folder in FOLDERS},
    package_data={
        "medclipsam.engine": ["bundles/**/*", "report/page/*"],
        "medclipsam.train": ["phantoms/vocabulary.txt", "recipes/*.toml"],
    },
)
