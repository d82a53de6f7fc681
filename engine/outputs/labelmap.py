"""All labels of one item in one array of numbers."""

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from medclipsam.engine.errors import ConfigError

BACKGROUND, IGNORE = 0, 255


def number_labels(labels: Iterable[str]) -> dict[str, int]:
    """label → its number in every label map of a run: 1, 2, … in the order given.

    Raises:
        ConfigError: there are more than 254 labels.
    """
    numbers = {label: k for k, label in enumerate(dict.fromkeys(labels), start=1)}
    if len(numbers) >= IGNORE:
        raise ConfigError(
            f"expected at most {IGNORE - 1} labels for label maps, got {len(numbers)}; "
            "leave the label map out, or label in several runs"
        )
    return numbers


def burn_labels(
    masks: Mapping[str, np.ndarray],
    numbers: Mapping[str, int],
    withheld: Collection[str] = (),
) -> np.ndarray:
    """Every pixel's label as a number: uint8 (F, H, W).

    Where masks overlap, the label with the lower number wins, which is the one named
    first. 0 is background; 255 is where only withheld labels claim a pixel.

    Args:
        masks: label → bool (F, H, W); at least one.
        numbers: label → number, see :func:`number_labels`.
        withheld: labels whose mask is not trusted.
    """
    shape = next(iter(masks.values())).shape
    burnt = np.full(shape, BACKGROUND, np.uint8)
    for label in withheld:
        burnt[masks[label]] = IGNORE
    for label in sorted(masks.keys() - set(withheld), key=lambda each: -numbers[each]):
        burnt[masks[label]] = numbers[label]
    return burnt
