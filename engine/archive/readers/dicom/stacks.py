"""Which slices of a series make one volume: the same direction, spacing, size, echo and time.

Refuses to know files. A result depends on what is told of the slices, never on their order:
what agrees within a tolerance is found by gaps between sorted values, not by rounding, which
tears apart what lies on both sides of a step.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from medclipsam.engine.archive.readers.dicom.geometry import COSINES, OFF
from medclipsam.engine.archive.readers.dicom.spacing import SAME

ECHO = 0.1  # ms by which echo times that count as equal may differ
APART = 0.25  # part of the mean distance from which on slices lie at different places


@dataclass(frozen=True)
class Slice:
    """What a header says of one slice.

    Attributes:
        name: different for different slices; the last resort of an order.
        kind: what slices of one volume have in common to the letter.
        turn: direction cosines of rows and columns, 6 numbers, or none where unknown.
        spacing: row and column distance in mm, or none.
        echo: echo time in ms, or none.
        position: LPS mm, 3 numbers, or none.
        marks: what may tell slices at one place apart, the most telling first.
        moment: order of slices at one place.
    """

    name: str
    kind: str
    turn: tuple[float, ...]
    spacing: tuple[float, ...]
    echo: tuple[float, ...]
    position: tuple[float, ...]
    marks: tuple[Hashable, ...]
    moment: tuple[float, ...]

    @property
    def order(self) -> tuple[tuple[float, ...], str]:
        """By moment, then by name."""
        return self.moment, self.name


def make_stacks(slices: Iterable[Slice]) -> list[list[Slice]]:
    """All slices, those of one volume together and in the order of their places.

    Slices that differ in ``kind``, or beyond a tolerance in direction, spacing or echo time,
    are of different volumes. Where several lie at one place, one of ``marks`` tells their
    volumes apart, if it has a value for each; else the n-th at each place make the n-th
    volume. Slices without a position lie in the order of their moments.
    """
    found = []
    for group in _partition(slices, lambda each: (each.kind, *map(len, _measures(each)))):
        scales = [COSINES] * len(group[0].turn) + [SAME] * len(group[0].spacing)
        values = [[*each.turn, *np.log(each.spacing), *each.echo] for each in group]
        steps = np.array(values, np.float64) / (scales + [ECHO] * len(group[0].echo))
        for members in _cluster(np.arange(len(group)), steps):
            found += _unfold([group[n] for n in members])
    return found


def _measures(one: Slice) -> tuple[Sequence[float], ...]:
    return one.turn, one.spacing, one.echo, one.position


def _partition(slices: Iterable[Slice], key: Callable[[Slice], Hashable]) -> list[list[Slice]]:
    """Slices with equal keys together; keys are compared as text, so that all can be."""
    ordered = sorted(slices, key=lambda each: (repr(key(each)), each.order))
    return [list(group) for _, group in groupby(ordered, lambda each: repr(key(each)))]


def _cluster(members: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Cut ``members``, numbers of rows of ``values``, wherever a gap is wider than 1."""
    for column in values[members].T:
        order = np.argsort(column, kind="stable")
        cuts = np.flatnonzero(np.diff(column[order]) > 1) + 1
        if len(cuts):
            parts = np.split(members[order], cuts)
            return [group for part in parts for group in _cluster(np.sort(part), values)]
    return [members]


def _unfold(group: list[Slice]) -> list[list[Slice]]:
    """The volumes of slices that agree in all but their place and time."""
    if not group[0].position or not group[0].turn:
        return [sorted(group, key=lambda each: each.order)]
    places = _places(group)
    most = max(map(len, places))
    if most == 1:
        return [[place[0] for place in places]]
    for number in range(len(group[0].marks)):
        parts = _partition(group, lambda each, n=number: each.marks[n])  # type: ignore[misc]
        if 1 < len(parts) <= most:
            return [stack for part in parts for stack in _unfold(part)]
    return [[place[number] for place in places if len(place) > number] for number in range(most)]


def _places(group: list[Slice]) -> list[list[Slice]]:
    """Slices by their height along the normal; those at one place by moment."""
    turn = min(each.turn for each in group)
    normal = np.cross(turn[:3], turn[3:])
    height = {each.name: float(normal @ each.position) for each in group}
    ordered = sorted(group, key=lambda each: (height[each.name], each.order))
    span = height[ordered[-1].name] - height[ordered[0].name]
    apart = min(OFF, APART * span / max(1, len(group) - 1))
    places: list[list[Slice]] = []
    for each in ordered:
        if places and height[each.name] - height[places[-1][-1].name] <= apart:
            places[-1].append(each)
        else:
            places.append([each])
    return [sorted(place, key=lambda each: each.order) for place in places]
