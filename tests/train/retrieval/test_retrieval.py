"""Ranks against a literal float64 sort, shares against counting, and the command as a whole."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from medclipsam.engine.cli.main import main
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.train.phantoms.phantoms import PROMPTS, make_phantom
from medclipsam.train.ranking import TIE, Ranking, rank_partners
from medclipsam.train.retrieval.embedding import Embedder
from medclipsam.train.retrieval.retrieval import TOPS, Retrieval, Retrievals, compare, retrieve
from medclipsam.train.retrieval.table import to_json, to_markdown

PEAK = 4 << 30  # bytes that the biggest retrieval may take


@dataclass(frozen=True)
class Pair:
    image: str
    caption: str
    row: str = "pairs.csv, row 1"


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def diagonal(count):
    return np.stack([np.arange(count)] * 2, 1)


def sorted_ranks(queries, candidates, partners):
    """Sort all candidates, partners last among equals, and look where the first one stands."""
    found = []
    for q, query in enumerate(queries.astype(np.float64)):
        own = {c for p, c in partners if p == q}
        scores = candidates.astype(np.float64) @ query
        best = max(scores[c] for c in own)
        tied = np.where(np.abs(scores - best) <= TIE, best, scores)
        order = sorted(range(len(scores)), key=lambda c, s=tied, own=own: (-s[c], c in own))
        found.append(1 + min(order.index(c) for c in own))
    return found


@pytest.mark.parametrize(("count", "chunk"), [(1, 7), (37, 7), (64, 64), (65, 1), (50, 512)])
def test_ranks_agree_with_a_sort(count, chunk):
    rng = np.random.default_rng(count)
    images, texts = (unit(rng.normal(size=(count, 6))) for _ in range(2))
    for queries, candidates in ((images, texts), (texts, images)):
        ranking = rank_partners(queries, candidates, diagonal(count), chunk)
        assert ranking.ranks.tolist() == sorted_ranks(queries, candidates, diagonal(count))
        assert (ranking.wrong == count - 1).all()


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 11))
def test_ranks_with_ties_and_several_partners(seed, queries, candidates):
    rng = np.random.default_rng(seed)
    grid = rng.integers(-1, 2, (queries + candidates, 2)) + np.array([0, 2])  # many ties
    rows = unit(grid)
    own = [(q, int(rng.integers(candidates))) for q in range(queries)]
    more = rng.integers((queries, candidates), size=(5, 2)).tolist()
    partners = np.array(sorted({*own, *map(tuple, more)}))
    rng.shuffle(partners)
    found = rank_partners(rows[:queries], rows[queries:], partners, chunk=4)
    assert found.ranks.tolist() == sorted_ranks(rows[:queries], rows[queries:], partners.tolist())
    assert found.wrong.tolist() == [
        candidates - (partners[:, 0] == q).sum() for q in range(queries)
    ]


def test_a_model_that_maps_everything_to_one_point_comes_last():
    rows = np.repeat(unit(np.random.default_rng(0).normal(size=(1, 333))), 71, axis=0)
    ranking = rank_partners(rows, rows.copy(), diagonal(71), chunk=13)
    assert (ranking.ranks == 71).all()


def test_wrong_arrays_are_refused():
    rows = unit(np.eye(3))
    with pytest.raises(ValueError, match="finite queries"):
        rank_partners(rows * np.nan, rows, diagonal(3))
    with pytest.raises(ValueError, match="finite candidates float32"):
        rank_partners(rows, rows.astype(np.float64), diagonal(3))
    with pytest.raises(ValueError, match="partner for every query"):
        rank_partners(rows, rows, diagonal(2))
    with pytest.raises(ValueError, match="partners"):
        rank_partners(rows, rows, np.arange(3))


@pytest.mark.parametrize("pool", [2, 3, 5])
def test_chances_in_a_pool_agree_with_all_pools(pool):
    ranks = np.array([1, 2, 4, 6])
    ranking = Ranking(ranks, np.full(4, 5))
    for top in (1, 2):
        drawn = list(itertools.combinations(range(5), pool - 1))
        expected = [
            np.mean([sum(c < rank - 1 for c in others) < top for others in drawn]) for rank in ranks
        ]
        np.testing.assert_allclose(ranking.hits(top, pool), expected, atol=1e-12)
    np.testing.assert_allclose(ranking.hits(2, 6), ranking.hits(2), atol=1e-12)
    np.testing.assert_allclose(ranking.hits(2, 60), ranking.hits(2), atol=1e-12)


class Reader:
    """Pixels by name; names that start with ``bad`` cannot be read."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __call__(self, pair):
        if pair.image.startswith("bad"):
            raise InputError("read_image", "unreadable", f"{pair.image} is no picture")
        return self.pixels[pair.image]


def scan(seed, shape=(40, 56)):
    pixels = make_phantom(seed, size=shape).pixels
    return np.repeat((pixels * 255).astype(np.uint8)[..., None], 3, axis=2)


CAPTIONS = list(PROMPTS.values())
WORDS = ("one", "two", "of", "the")


@pytest.fixture(scope="module")
def embedder(tiny_encoder):
    return Embedder(tiny_encoder, "pad", threads=2)


def test_retrieval_is_that_of_each_image_and_text_alone(embedder, tiny_encoder):
    pixels = {f"{k}.png": scan(k, (40 + k, 56)) for k in range(19)}  # more than one batch of 16
    pairs = [Pair(name, f"{CAPTIONS[k % 3]} {WORDS[k % 4]}")
             for k, name in enumerate(pixels)]  # fmt: skip
    found = retrieve(pairs, [("tiny", embedder)], Reader(pixels))
    captions = list(dict.fromkeys(pair.caption for pair in pairs))
    images = np.concatenate([
        embedder.embed_images([pair], Reader(pixels), None).values for pair in pairs
    ])  # fmt: skip
    texts = tiny_encoder.encode_text(captions).numpy()
    partners = [(k, captions.index(pair.caption)) for k, pair in enumerate(pairs)]
    (model,) = found.models
    assert model.image_to_text.ranks.tolist() == sorted_ranks(images, texts, partners)
    back = [(c, k) for k, c in partners]
    assert model.text_to_image.ranks.tolist() == sorted_ranks(texts, images, back)
    assert (found.images, found.texts, found.pairs) == (19, len(captions), 19)


def test_equal_captions_and_equal_pixels_are_one_thing(embedder):
    pixels = {"a.png": scan(1), "b.png": scan(2), "copy of a.png": scan(1)}
    pairs = [
        Pair("a.png", CAPTIONS[0]),
        Pair("b.png", CAPTIONS[0]),
        Pair("copy of a.png", CAPTIONS[1]),
        Pair("a.png", CAPTIONS[1]),  # says once more what the row before says
    ]
    found = retrieve(pairs, [("tiny", embedder)], Reader(pixels))
    assert (found.images, found.texts, found.pairs) == (2, 2, 3)
    (model,) = found.models
    assert model.image_to_text.wrong.tolist() == [0, 1]  # both captions belong to a
    assert model.text_to_image.wrong.tolist() == [0, 1]
    assert model.image_to_text.ranks[0] == model.text_to_image.ranks[0] == 1


def test_what_cannot_be_read_is_named_and_skipped_for_all(embedder):
    pixels = {"a.png": scan(1), "b.png": scan(2), "c.png": scan(3)}
    pairs = [
        Pair("a.png", CAPTIONS[0]),
        Pair("bad.png", CAPTIONS[1], "row 2"),
        Pair("b.png", "жук", "row 3"),
        Pair("c.png", CAPTIONS[2]),
    ]
    said = []
    models = [("one", embedder), ("two", embedder)]
    found = retrieve(pairs, models, Reader(pixels), "skip", said.append)
    assert found.problems == {"unreadable image": 1, "unknown caption": 1}
    assert (found.images, found.texts) == (2, 2)
    assert [line.partition(":")[0] for line in said] == ["skipped, row 3", "skipped, row 2"]
    with pytest.raises(ConfigError, match=r"row 3: bundle 'one'.*--on-error skip"):
        retrieve(pairs, models, Reader(pixels))
    with pytest.raises(InputError, match=r"row 2: bad.png is no picture.*--on-error skip"):
        retrieve([p for p in pairs if p.caption != "жук"], models, Reader(pixels))
    with pytest.raises(ConfigError, match="at least two different pairs, got 1 of 1"):
        retrieve(pairs[:1], models, Reader(pixels))
    with pytest.raises(ConfigError, match="at least one model"):
        retrieve(pairs, [], Reader(pixels))


def model(name, ranks, wrong=30):
    ranking = Ranking(np.array(ranks), np.full(len(ranks), wrong))
    return Retrieval(name, ranking, ranking)


def test_paired_differences_are_counted():
    first, other = model("a", [1, 1, 3, 9, 1, 2]), model("b", [1, 4, 1, 1, 1, 1])
    found = Retrievals((first, other), 6, 6, 6, Counter())
    gains = {(g.direction, g.top): g for g in compare(found)}
    top1 = gains["text_to_image", 1]
    assert (top1.better, top1.worse) == (3, 1)
    assert top1.p == binomtest(3, 4).pvalue
    assert top1.difference.mean == pytest.approx(2 / 6)
    assert top1.difference.low < 2 / 6 < top1.difference.high
    same = gains["image_to_text", 10]
    assert (same.better, same.worse, same.p, same.difference.mean) == (0, 0, 1.0, 0.0)
    pooled = {(g.direction, g.top): g for g in compare(found, pool=5)}["image_to_text", 1]
    assert (pooled.better, pooled.worse) == (3, 1)
    assert 0 < pooled.difference.mean < top1.difference.mean


def test_tables_say_what_json_says():
    found = Retrievals((model("a|x", [1, 2, 3, 50]), model("b", [1, 1, 1, 1])), 4, 4, 4,
                       Counter(empty=2))  # fmt: skip
    facts = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert facts["rows"][0]["image_to_text"]["top2"]["mean"] == 0.5
    assert facts["rows"][0]["image_to_text"]["median_rank"] == 2.5
    assert facts["skipped"] == {"empty": 2} and len(facts["differences"]) == 2 * len(TOPS)
    text = to_markdown(found)
    assert "| a\\|x | 25.0 [0.0, 75.0] | 50.0 [" in text and "Points over a|x" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line[:1] == "|"}
    assert widths == {10, 8}
    assert "among 3 drawn at random" in to_markdown(found, pool=3)


@pytest.fixture
def table(tmp_path):
    for k, (name, prompt) in enumerate(PROMPTS.items()):
        cv2.imwrite(str(tmp_path / f"{name}.png"), scan(k))
        with (tmp_path / "pairs.csv").open("a") as file:
            file.write("image,caption\n" * (k == 0) + f"{name}.png,{prompt}\n")
    return tmp_path / "pairs.csv"


def test_the_command(table, tiny_bundle_folder, tmp_path):
    out = tmp_path / "t.md"
    with table.open("a") as file:
        file.write("mass.png,\n")
    words = ["retrieval", table, "--on-error", "skip", "--bundle", f"a={tiny_bundle_folder}",
             "--bundle", "phantom", "--device", "cpu", "--threads", "1", "--batch", "4",
             "-o", out]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert result.exit_code == 0 and "skipped, no caption: 1" in result.stderr
    facts = json.loads(result.stdout)
    assert [row["bundle"] for row in facts["rows"]] == ["a", "phantom"]
    assert facts["images"] == facts["texts"] == len(PROMPTS)
    assert len(facts["differences"]) == 2 * len(TOPS)
    assert out.read_text().count("| phantom |") == 1 + 2 * len(TOPS)
    result = CliRunner().invoke(main, [*map(str, words), "--pool", "3"])
    assert result.exit_code == 0 and "Paired differences" in result.stdout


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--bundle", "x=phantom", "--bundle", "x=tiny"], "two bundles are called 'x'"),
        (["--bundle", "=phantom"], "expected BUNDLE or NAME=BUNDLE"),
    ],
)
def test_mistakes_are_told(table, flags, sentence):
    result = CliRunner().invoke(main, ["retrieval", str(table), *flags])
    assert result.exit_code == 2 and sentence in result.output


BIG = """
import re
import numpy as np
from medclipsam.train.ranking import rank_partners
from medclipsam.train.retrieval.retrieval import Retrieval
rng = np.random.default_rng(0)
base = rng.standard_normal((20_000, 512), np.float32)
def rows():
    made = base + 2 * rng.standard_normal(base.shape, np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)
images, texts = rows(), rows()
own = np.stack([np.arange(len(images))] * 2, 1)
model = Retrieval("big", rank_partners(images, texts, own), rank_partners(texts, images, own))
print(model.share("image_to_text", 1).mean, model.share("text_to_image", 1).mean)
# not ru_maxrss, which keeps the peak of the process that started this one
print(1024 * int(re.search("VmHWM:[^0-9]*([0-9]+) kB", open("/proc/self/status").read())[1]))
"""


@pytest.mark.long
def test_twenty_thousand_pairs_stay_in_memory():
    done = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, check=True)
    shares, peak = done.stdout.splitlines()
    assert all(0.5 < float(share) < 1 for share in shares.split())
    assert int(peak) < PEAK
