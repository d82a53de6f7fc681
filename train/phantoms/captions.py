"""Sentences about phantoms, in the many words that reports have for one thing."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

MODALITY_WORDS = {
    "ultrasound": ("breast ultrasound", "ultrasound of the breast", "breast sonogram", "breast us"),
    "mri": ("brain mri", "mri of the brain", "brain mr image", "head mri"),
    "xray": ("chest x-ray", "x-ray of the chest", "chest radiograph", "frontal chest x-ray"),
}
TARGET_WORDS = {
    "mass": ("mass", "mass", "solid mass", "breast mass", "breast tumor", "hypoechoic mass"),
    "cyst": ("cyst", "cyst", "simple cyst", "breast cyst", "anechoic cyst"),
    "tumor": ("tumor", "tumor", "brain tumor", "glioma", "bright tumor"),
    "ventricles": ("enlarged ventricles", "enlarged ventricles", "ventricles", "hydrocephalus"),
    "nodule": ("nodule", "nodule", "lung nodule", "pulmonary nodule", "coin lesion"),
    "effusion": ("pleural effusion", "pleural effusion", "effusion", "fluid at the lung base"),
}
NORMAL = ("normal {}", "normal {}", "{} without findings", "{}, no abnormality", "unremarkable {}")
SHOWING = ("{} showing {}", "{} with {}", "{} showing {}", "{}: {}", "{} that shows {}")


def caption(rng: Generator, modality: str, masks: dict[str, np.ndarray]) -> str:
    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    where = pick(MODALITY_WORDS[modality])
    if not masks:
        return pick(NORMAL).format(where)
    findings = []
    for target in rng.permutation(sorted(masks)):
        name = pick(TARGET_WORDS[target])
        plain = name.split()[0] in ("fluid", "hydrocephalus") or name.endswith("ventricles")
        if rng.random() < 0.3 and not plain:
            name = f"{_size_word(masks[target])} {name}"
        if not plain:
            name = ("an " if name[0] in "aeiou" else "a ") + name
        if rng.random() < 0.5 and target != "ventricles":
            name += f" in the {_place_words(masks[target])}"
        findings.append(name)
    text = " and ".join(findings)
    return text if rng.random() < 0.1 else pick(SHOWING).format(where, text)


def _size_word(mask: np.ndarray) -> str:
    return "large" if mask.mean() > 0.05 else "small"


def _place_words(mask: np.ndarray) -> str:
    """Quadrant of the picture, as seen."""
    rows, columns = np.nonzero(mask)
    vertical = "upper" if rows.mean() < mask.shape[0] / 2 else "lower"
    return f"{vertical} {'left' if columns.mean() < mask.shape[1] / 2 else 'right'}"
