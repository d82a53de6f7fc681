"""Paired differences, against scipy and by hand."""

import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.difference import compare, signed_rank
from medclipsam.engine.evaluation.evaluate import Case, Evaluation
from medclipsam.engine.evaluation.metrics import mean_interval


def case(item, dice, label="mass", **others):
    figures = {"iou": dice / 2, "nsd": dice, "hd95": 1 + dice, "status": "scored"}
    return Case(label, item, dice, **figures | others)


def evaluation(*cases):
    return Evaluation(cases, 2.0)


def rows(comparison):
    return {(row.label, row.figure): row for row in comparison.rows}


def test_differences_are_paired_by_case_whatever_their_order():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 23))
    ours = [case(f"{k}", value) for k, value in enumerate(first)]
    theirs = [case(f"{k}", value) for k, value in enumerate(second)][::-1]
    comparison = compare(evaluation(*ours), evaluation(*theirs))
    row = rows(comparison)["mass", "dice"]
    assert row.n == 23 and not comparison.left_out
    assert (row.first, row.second) == pytest.approx((first.mean(), second.mean()))
    low, high = mean_interval(first - second)[1:]
    assert (row.difference.low, row.difference.high) == (low, high)
    assert row.p == wilcoxon(first, second).pvalue
    assert rows(comparison)["mass", "iou"].difference.mean == pytest.approx(
        (first - second).mean() / 2
    )


def test_labels_are_compared_alone_and_together():
    first = evaluation(case("1", 0.5), case("2", 0.7), case("1", 0.9, "cyst"))
    second = evaluation(case("1", 0.4), case("2", 0.4), case("1", 1.0, "cyst"))
    found = rows(compare(first, second))
    assert [label for label, figure in found if figure == "dice"] == ["cyst", "mass", "overall"]
    assert found["mass", "dice"].difference.mean == pytest.approx(0.2)
    assert found["cyst", "dice"].difference.mean == pytest.approx(-0.1)
    assert found["overall", "dice"].difference.mean == pytest.approx(0.1)
    assert found["overall", "dice"].n == 3


def test_only_common_cases_count_and_the_others_are_named():
    first = evaluation(
        case("both", 0.5), case("ours", 0.9), case("lost", 0.0, status="missing", message="none")
    )
    second = evaluation(case("both", 0.4), case("lost", 0.8), case("theirs", 1.0))
    comparison = compare(first, second)
    assert rows(comparison)["mass", "dice"].n == 1
    told = {left.item: left.message for left in comparison.left_out}
    assert told == {
        "ours": "no such case in the second",
        "lost": "missing in the first: none",
        "theirs": "no such case in the first",
    }
    with pytest.raises(ConfigError, match=r"no case was scored in both, of 2; for example, a"):
        compare(evaluation(case("a", 1)), evaluation(case("b", 1)))


def test_figures_that_one_side_lacks_are_counted():
    first = evaluation(case("1", 0.5, hd95=math.inf), case("2", 0.5, auc=0.8))
    second = evaluation(case("1", 0.4), case("2", 0.4))
    found = rows(compare(first, second))
    assert (found["mass", "hd95"].n, found["mass", "hd95"].difference.undefined) == (1, 1)
    auc = found["mass", "auc"]
    assert (auc.n, auc.difference.undefined) == (0, 2)
    assert np.isnan([auc.p, auc.first, auc.difference.mean]).all()


def test_one_label_each_is_the_same_label_under_two_names():
    first, second = evaluation(case("1", 0.5, "run")), evaluation(case("1", 0.1, "other"))
    assert rows(compare(first, second))["run", "dice"].difference.mean == pytest.approx(0.4)


def test_signed_rank_of_few_and_equal_values():
    assert signed_rank(np.zeros(5)) == 1.0
    assert signed_rank(np.array([0.1 + 0.2 - 0.3])) == 1.0  # rounding only
    assert signed_rank(np.array([1.0, 2, 3, 4, 5, 6])) == pytest.approx(2 / 64)  # all one way
    some = np.array([3.0, -1, 2, 5, -4, 6, 7])
    assert signed_rank(np.array([0.0, *some])) == pytest.approx(signed_rank(some))
    assert signed_rank(-some) == pytest.approx(signed_rank(some))
