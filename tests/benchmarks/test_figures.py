"""Figures that people see are generated: no document, page or plot differs from the results.

A digit that is changed anywhere is noticed, and the file is named.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from medclipsam.benchmarks.figures import markdown
from medclipsam.benchmarks.figures.__main__ import main
from medclipsam.benchmarks.figures.documents import fill_blocks, fill_documents, find_blocks
from medclipsam.benchmarks.figures.generated import MAKERS, PLOT, RESULTS, SHOWN, list_documents
from medclipsam.benchmarks.figures.pages import make_page, read_results
from medclipsam.benchmarks.figures.picture import draw_picture, hash_values, read_hash
from medclipsam.benchmarks.measuring.result import HEAD
from medclipsam.engine.errors import ConfigError

ROOT = Path(__file__).parents[2]
FACTS = {path.stem: json.loads(path.read_text()) for path in (ROOT / RESULTS).glob("*.json")}
NAMES = sorted(FACTS.keys() | {path.stem for path in (ROOT / SHOWN).glob("*.md")})
DOCUMENTS = list_documents(ROOT)
TEXTS = {name: (ROOT / name).read_text("utf-8") for name in DOCUMENTS}
BLOCKS = [(name, block) for name, text in TEXTS.items() for block in find_blocks(text, name)]

CODE = re.compile(r"^( *)```.*?^\1```|`[^`]*`|\]\([^)]*\)", re.MULTILINE | re.DOTALL)
UNITS = r"%|images/s|rows/s|µs|ms|s|min|KiB|MiB|GiB|kB|MB|GB|G?FLOPs?|GFLOP/s|times|hours?"
MEASURED = re.compile(
    rf"\d+\.\d+(?:e[-+]?\d+)?|\d+e-\d+|\d[\d,]*(?:×|[ \u00a0]?(?:{UNITS})(?![\w/²]))"
)
NOT_MEASURED = {
    "Apache-2.0": "the licence",
    "Python ≥ 3.11": "a version",
    "Python 3.11": "a version",
    "torch 2.14": "a version",
    "TensorRT 10.0.1, 10.16.1\nand 11.4.0": "versions",
    "TensorRT 10.1": "a version",
    "In 0.53.6": "a version of Polygraphy",
    "0.49 asks": "a version of Polygraphy",
    "takes about 7 GB": "the size of an installation",
    "15 % too tight to 50 % too loose": "a setting of the phantom SAM's training",
    "IoU ≥ 0.97, worst\n  ≥ 0.8)": "the bar that bf16 must pass",
    "a DSC of 0.7,": "what the calibrated confidence is the probability of",
    "0.98 if nothing is said": "the default of --sensitivity",
    "50 for 0.98": "1/(1 − sensitivity) at its default",
    "0.5–99.5 percentiles": "the window of deep images",
    "a GPU of 24 GB": "where the default of saliency.rows changes",
    "less than 10 GiB of tensors": "a bound that tests on the simulated device hold",
    "at most 16 MiB an image": "the part of a mask that is made at once",
    "200 times with SIGKILL": "what make test-all does",
    "(`make test` 8 times)": "what make test does",
}


def measured(text, document=""):
    """What looks like a measured figure outside blocks, code and links."""
    for block in reversed(list(find_blocks(text, document))):
        text = text[: block.start] + text[block.stop :]
    for phrase in NOT_MEASURED:
        text = text.replace(phrase, "")
    return MEASURED.findall(CODE.sub("", text))


@pytest.fixture
def checkout(tmp_path):
    """A copy of all that figures are in."""
    for name in DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / RESULTS, tmp_path / RESULTS)
    return tmp_path


def run(*arguments):
    """Exit code and words of ``python -m medclipsam.benchmarks.figures``."""
    done = CliRunner().invoke(main, [str(each) for each in arguments])
    return done.exit_code, done.output


def change(path, pattern):
    """One digit in what ``pattern`` finds first."""
    text = path.read_text("utf-8")
    found = re.search(pattern, text)
    place = found.start() + re.search(r"\d(?=\D*$)", found[0]).start()
    digit = str((int(text[place]) + 1) % 10)
    path.write_text(text[:place] + digit + text[place + 1 :], "utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_result_says_how_it_was_measured(name):
    assert all(FACTS[name].get(key) for key in HEAD)


@pytest.mark.parametrize("name", NAMES)
def test_every_page_is_what_its_result_gives(name):
    assert (ROOT / SHOWN / f"{name}.md").read_text("utf-8") == make_page(name, FACTS[name])


@pytest.mark.parametrize(("document", "block"), BLOCKS, ids=[f"{d}-{b.name}" for d, b in BLOCKS])
def test_every_block_is_what_the_results_give(document, block):
    expected = f"\n{MAKERS[block.name](FACTS)}\n\n"
    assert TEXTS[document][block.start : block.stop] == expected


def test_every_maker_has_its_block():
    assert {block.name for _, block in BLOCKS} == MAKERS.keys()


def test_the_plot_belongs_to_its_result():
    assert read_hash((ROOT / PLOT).read_bytes()) == hash_values(FACTS["crf"]["crf"])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_measured_figure_stands_outside_the_blocks(document):
    assert not measured(TEXTS[document], document)


@pytest.mark.parametrize(
    "text",
    ["25.4×", "about 3× as fast", "7 images/s", "6.8 images/s", "12 ms", "12ms", "1,374 MiB",
     "205 GFLOP/s", "a DSC of 0.92", "1.1e-4", "3e-4", "at 20 %", "at 20%", "15 times", "34 s.",
     "[2.0, 3.0](page.md)"],
)  # fmt: skip
def test_what_looks_measured_is_found(text):
    assert measured(f"Some text with {text}\n\nand more.")


@pytest.mark.parametrize(
    "text",
    ["`--set crf.tau=1.2`", "```\n--tau 1.2\n```", "[paper](https://a.org/abs/2403.20253)",
     "12 × 12 cells", "1024² pixels", "top-1, 2, 5 and 10", "600 phantoms", "MedCLIP-SAMv2's",
     "<!-- figures: x -->\n\n0.92\n\n<!-- end of figures -->"],
)  # fmt: skip
def test_what_is_code_or_a_count_is_let_pass(text):
    assert not measured(text)


@pytest.mark.parametrize("phrase", NOT_MEASURED)
def test_what_is_let_pass_is_still_there(phrase):
    assert any(phrase in text for text in TEXTS.values())


def test_nothing_differs(checkout):
    assert run("--check", "--root", checkout) == (0, "all figures are those of the results\n")


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("README.md", r"gradcam \| all \| 0\.\d\d", "README.md, figures: zero-shot"),
        ("docs/figures.md", r"grey smooth \| [\d.]+", "docs/figures.md, figures: crf"),
        ("docs/saliency.md", r"an AUC of\s0\.\d+", "docs/saliency.md, figures: confidence"),
        ("docs/backends.md", r"--count \d|batch 1", "docs/backends.md, figures: exported"),
        (f"{SHOWN}/memory.md", r"few \| \d+", f"{SHOWN}/memory.md"),
        (f"{SHOWN}/losses-short-start.md", r"--seeds \d", f"{SHOWN}/losses-short-start.md"),
    ],
)
def test_one_digit_changed_by_hand_is_named(checkout, name, pattern, expected):
    change(checkout / name, pattern)
    code, words = run("--check", "--root", checkout)
    assert code == 1 and words.splitlines()[:-1] == [f"{expected}: differs"]
    assert run("--root", checkout) == (0, f"{expected}: made anew\n")
    assert (checkout / name).read_bytes() == (ROOT / name).read_bytes()


def test_one_digit_in_a_result_is_named_wherever_it_shows(checkout):
    before = {name: (checkout / name).read_bytes() for name in DOCUMENTS}
    change(checkout / RESULTS / "phantoms.json", r'"dsc": \{\s*"mean": 0\.\d\d')
    code, words = run("--check", "--root", checkout)
    shown = {line.removesuffix(": differs") for line in words.splitlines()[:-1]}
    assert code == 1 and shown == {
        f"{SHOWN}/phantoms.md", "README.md, figures: zero-shot",
        "docs/figures.md, figures: zero-shot",
    }  # fmt: skip
    assert all((checkout / name).read_bytes() == data for name, data in before.items())


def test_a_plot_of_other_values_is_drawn_anew(checkout):
    change(checkout / RESULTS / "crf.json", r'"marginal": [\d.]+')
    code, words = run("--check", "--root", checkout)
    assert code == 1 and f"{PLOT}: differs" in words
    assert run("--root", checkout)[0] == 0
    rows = json.loads((checkout / RESULTS / "crf.json").read_text())["crf"]
    assert read_hash((checkout / PLOT).read_bytes()) == hash_values(rows)
    assert run("--check", "--root", checkout)[0] == 0


@pytest.mark.parametrize("document", ["README.md", "docs/start.md"])
def test_a_figure_written_outside_the_blocks_is_found(document):
    assert measured(TEXTS[document] + "\nIt is 3.2 times as fast.\n", document)


def test_a_result_without_its_head_and_a_page_without_its_result_are_refused(tmp_path):
    facts = {key: "x" for key in HEAD}
    (tmp_path / "a.json").write_text(json.dumps(facts))
    assert read_results(tmp_path) == {"a": facts}
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "b.md").write_text("")
    with pytest.raises(ConfigError, match=r"b\.md has no b\.json"):
        read_results(tmp_path)
    (tmp_path / "b.json").write_text(json.dumps({**facts, "date": ""}))
    with pytest.raises(ConfigError, match=r"b\.json does not say its date"):
        read_results(tmp_path)


def test_a_benchmark_without_page_is_refused():
    with pytest.raises(ConfigError, match=r"rivals has no to_markdown for rivals\.json"):
        make_page("rivals", {})


OPEN, CLOSE = "<!-- figures: speed -->\n", "<!-- end of figures -->\n"


def test_a_block_is_filled_and_all_else_stays():
    text = f"before\n\n{OPEN}old\n{CLOSE}between `<!-- figures: x -->`\n{OPEN}{CLOSE}after"
    once = fill_blocks(text, "a.md", {"speed": "7 ms"})
    block = f"{OPEN}\n7 ms\n\n{CLOSE}"
    assert once == f"before\n\n{block}between `<!-- figures: x -->`\n{block}after"
    assert fill_blocks(once, "a.md", {"speed": "7 ms"}) == once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"\n{OPEN}7", r"a\.md: the block 'speed' is not closed"),
        (f"{OPEN}{OPEN}{CLOSE}", r"a\.md:2: the block 'speed' is not closed"),
        (f"\n{CLOSE}", r"a\.md:2: no block is open here"),
        ("<!-- figures speed -->", r"a\.md:1: write <!-- figures: NAME -->"),
        (f"{OPEN}7\n<!-- end figures -->\n", r"a\.md:3: write <!-- figures: NAME -->"),
        (f" {OPEN}{CLOSE}", r"a\.md:1: write"),
        (f"<!-- figures: weight -->\n{CLOSE}", r"a\.md: nobody makes the block 'weight', only sp"),
        ("no block", "no document has the block speed"),
    ],
)
def test_wrong_blocks_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        fill_documents({"a.md": text}, {"speed": lambda results: "7 ms"}, {})


def test_a_block_without_its_result_is_refused():
    with pytest.raises(ConfigError, match="the block 'speed' needs 'crf', which no result has"):
        fill_documents({"a.md": OPEN + CLOSE}, {"speed": lambda results: results["crf"]}, {})


def test_a_wrong_block_ends_the_command_with_a_sentence(checkout):
    (checkout / "README.md").write_text(OPEN)
    code, words = run("--check", "--root", checkout)
    assert code == 1 and "Error: README.md: the block 'speed' is not closed" in words


def test_a_picture_says_what_it_was_drawn_from():
    def plot(values, path):
        from matplotlib import pyplot

        figure, axes = pyplot.subplots()
        axes.plot(values)
        figure.savefig(path, dpi=50)

    png = draw_picture([1, 2], plot)
    assert read_hash(png) == hash_values([1, 2]) != hash_values([1, 3])


def test_numbers_as_they_are_written():
    assert [markdown.signed(v) for v in (0.0181, -0.011, 0.0004, -0.0004)] == [
        "+0.018", "−0.011", "0.000", "0.000"
    ]  # fmt: skip
    assert [markdown.significant(v) for v in (3.751, 95.16, 461, 1832.6, 0)] == [
        "3.75", "95.2", "461", "1,833", "0.000"
    ]  # fmt: skip
    assert markdown.power(0.00011) == "1.1e-4"
    once = {"median": 25.4, "low": 25.4, "high": 25.4, "count": 1}
    assert markdown.times(once, 1) == "**25.4×** (measured once)"
    spread = {"median": 1.78, "low": 1.7, "high": 1.85, "count": 3}
    assert markdown.times(spread) == "**1.78×** [1.70, 1.85]" and markdown.middle(spread) == 1.78
    assert markdown.table(["a", ""], [[1, ""]]) == "| a | |\n| --- | --- |\n| 1 | |"


def test_code_and_links_are_not_broken():
    words = "word " * 21 + "`python -m this --that` and [a link](page.md)"
    lines = markdown.paragraph(words).splitlines()
    assert len(lines) == 2 and lines[1] == "`python -m this --that` and [a link](page.md)"
