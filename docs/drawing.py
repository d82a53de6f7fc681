"""A graph as an SVG of layers: every arrow that closes no circle points downwards."""

from collections import defaultdict
from itertools import pairwise

ROW, BOX, GAP, LETTER = 64, 26, 16, 7.4
ARROW = '<marker id="{0}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="6" markerHeight="6" \
orient="auto"><path d="M0 0L8 4L0 8z" class="{0}"/></marker>'


def draw(graph, name):
    """Node → its targets, as SVG. Arrows that follow from others are left out."""
    closing = circles(graph)
    below = {n: {t for t in ts if (n, t) not in closing} for n, ts in graph.items()}
    kept = {(n, t) for n, ts in below.items() for t in ts}
    kept -= {(n, t) for n, t in kept if any(t in reach(below, o) for o in below[n] - {t})}
    level = {}
    for node in sorted(graph):
        _level(below, node, level)
    rows, links = defaultdict(list), defaultdict(set)
    for node in sorted(graph):
        rows[level[node]].append(node)
    paths = {}
    for a, b in sorted(kept):  # a long arrow takes a place in every row that it crosses
        way = [a, *((a, b, n) for n in range(level[a] - 1, level[b], -1)), b]
        for stop in way[1:-1]:
            rows[stop[2]].append(stop)
        for upper, lower in pairwise(way):
            links[upper].add(lower)
            links[lower].add(upper)
        paths[a, b] = way
    x = places(rows, links)
    y = {node: (max(rows) - n) * ROW + BOX for n, row in rows.items() for node in row}
    width = max(x[node] + size(node) / 2 for node in x) + GAP
    out = [f'<svg viewBox="0 0 {width:.0f} {max(y.values()) + BOX}" role="img" class="house" '
           f'aria-label="{name}" style="max-width:{width:.0f}px">',
           ARROW.format("arrow"), ARROW.format("circle")]  # fmt: skip
    for way in [*paths.values(), *sorted(closing)]:
        kind = "arrow" if way in paths.values() else "circle"
        out.append(f'<path d="{curve(way, x, y)}" class="line {kind}" marker-end="url(#{kind})"/>')
    for node in sorted(graph):
        left, top = x[node] - size(node) / 2, y[node] - BOX / 2
        out.append(f'<rect x="{left:.1f}" y="{top}" width="{size(node):.1f}" height="{BOX}" '
                   f'rx="4"/><text x="{x[node]:.1f}" y="{y[node] + 4}">{node}</text>')  # fmt: skip
    return "".join([*out, "</svg>"])


def circles(graph):
    """The arrows that lead back to a node on the way, found from the top."""
    closing, done = set(), set()

    def walk(node, way):
        for target in sorted(graph[node] - done):
            if target in (*way, node):
                closing.add((node, target))
            else:
                walk(target, (*way, node))
        done.add(node)

    pointed = {t for ts in graph.values() for t in ts}
    for node in sorted(graph, key=lambda n: (n in pointed, n)):
        if node not in done:
            walk(node, ())
    return closing


def reach(below, node):
    """All nodes that arrows lead to from ``node``, itself included."""
    return {node}.union(*(reach(below, t) for t in below[node]))


def _level(below, node, level):
    if node not in level:
        level[node] = 1 + max((_level(below, t, level) for t in below[node]), default=-1)
    return level[node]


def size(node):
    return LETTER * len(node) + 18 if isinstance(node, str) else 4


def places(rows, links):
    """x of the middle of each node; rows are sorted by where their neighbours lie."""
    x = {node: n * 50.0 for row in rows.values() for n, node in enumerate(row)}
    for turn in range(40):
        for n in sorted(rows, reverse=turn % 2 == 0):
            mean = {v: sum(x[o] for o in links[v]) / max(len(links[v]), 1) for v in rows[n]}
            rows[n].sort(key=lambda v: (mean[v], str(v)))
            pack(rows[n], mean, x)
    least = min(x[v] - size(v) / 2 for v in x) - GAP
    return {v: place - least for v, place in x.items()}


def pack(row, wanted, x):
    """Each node as near as may be to where it wants to lie, none over its neighbour."""
    edge = -1e9
    for node in row:
        x[node] = max(wanted[node], edge + size(node) / 2)
        edge = x[node] + size(node) / 2 + GAP
    shift = sum(wanted[v] - x[v] for v in row) / len(row)
    for node in row:
        x[node] += shift


def curve(way, x, y):
    """Through the places of ``way``, from the lower edge of its first node."""
    sign = 1 if y[way[0]] <= y[way[-1]] else -1
    points = [(x[v], y[v]) for v in way]
    points[0] = (points[0][0], points[0][1] + sign * BOX / 2)
    points[-1] = (points[-1][0], points[-1][1] - sign * BOX / 2)
    words = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (a, b), (c, d) in pairwise(points):
        half = (b + d) / 2
        words.append(f"C{a:.1f} {half:.1f} {c:.1f} {half:.1f} {c:.1f} {d:.1f}")
    return "".join(words)
