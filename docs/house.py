"""Draws who imports whom, from the sources, each time the documents are built. A hook of mkdocs.

A node is a room; the flat files of ``engine`` that lean on no room are one node, the ground.
"""

import ast
import re
from pathlib import Path

from drawing import draw

ROOT = Path(__file__).parent.parent
FOLDERS = ("engine", "export", "train", "benchmarks")
MARK = re.compile(r"<!-- house: (\w+) -->")


def modules_of(path):
    """Modules of this project that a file imports, each in parts: ``["engine", "errors"]``."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        yield from (n.split(".")[1:] for n in names if n.startswith("medclipsam."))


def room_of(parts, inside):
    """The room in ``inside`` that a module lies in; other folders are one room each."""
    if parts[0] != inside:
        return parts[0]
    name = parts[1] if len(parts) > 1 else "__init__"
    folder = ROOT / inside
    is_module = (folder / name).is_dir() or (folder / f"{name}.py").exists()
    return name if is_module else "__init__"


def arrows(inside, folders):
    """Room → the rooms that it imports."""
    graph = {}
    for path in sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        room = room_of(path.relative_to(ROOT).with_suffix("").parts, inside)
        wanted = {room_of(parts, inside) for parts in modules_of(path) if parts[0] in folders}
        graph[room] = graph.get(room, set()) | wanted - {room}
    graph.pop("__init__", None)
    return {room: targets - {"__init__"} for room, targets in graph.items()}


def merge_ground(graph, inside):
    """The flat files that lean on nothing but each other become one node."""
    ground = {n for n in graph if (ROOT / inside / f"{n}.py").exists()}
    while above := {n for n in ground if graph[n] - ground}:
        ground -= above
    merged = {n: {"ground" if t in ground else t for t in ts} for n, ts in graph.items()}
    return {n: ts for n, ts in merged.items() if n not in ground} | {"ground": set()}, ground


def sentence(room, inside):
    """What a room or a flat file says of itself."""
    places = (f"{inside}/{room}/__init__.py", f"{inside}/{room}.py", f"{room}/__init__.py")
    path = next(ROOT / place for place in places if (ROOT / place).exists())
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))).split("\n\n")[0].replace("\n", " ")


def drawing(match):
    """The mark of a page → its drawing, and all arrows in a table."""
    inside = match[1]
    graph = arrows(inside, FOLDERS if inside == "engine" else (inside,))
    graph, ground = merge_ground(graph, inside)
    lines = ['??? note "Every room, every arrow"', "", "| room | what it is | imports |", "|-|-|-|"]
    for room, targets in sorted(graph.items()):
        said = ", ".join(sorted(ground)) if room == "ground" else sentence(room, inside)
        lines.append(f"| {room} | {said} | {', '.join(sorted(targets))} |")
    return draw(graph, f"rooms of {inside}") + "\n\n" + "\n    ".join(lines) + "\n"


def on_page_markdown(markdown, page, config, files):
    """Draws where a page asks for it."""
    return MARK.sub(drawing, markdown)
