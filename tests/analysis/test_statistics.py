"""Intervals hold what they promise: coverage and false alarms by simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import dlcf
from dlcf.analysis.statistics import (
    clustered_correlations,
    compare_all,
    compare_models,
    compare_tables,
    holm,
    mean_interval,
)
from dlcf.evaluation import per_user_errors
from dlcf.metrics import mae, rmse


def table(values: np.ndarray, column: str = "ndcg") -> pd.DataFrame:
    return pd.DataFrame({column: values}, index=pd.RangeIndex(len(values), name="userId"))


def test_the_interval_over_seeds_is_students() -> None:
    found = mean_interval([0.80, 0.82, 0.81, 0.79, 0.83])
    expected = stats.ttest_1samp([0.80, 0.82, 0.81, 0.79, 0.83], 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert str(found) == "0.810 [0.790, 0.830]"
    with pytest.raises(ValueError, match="at least 2"):
        mean_interval([0.8])


def test_the_interval_over_users_covers_the_truth_95_times_in_100() -> None:
    """400 worlds of 120 users whose true difference is 0.03; NDCG-like, many zeros."""
    generator = np.random.default_rng(0)
    covered = 0
    for world in range(400):
        skill = generator.beta(1, 4, 120) * (generator.random(120) < 0.7)
        first = skill + generator.normal(0.03, 0.1, 120)
        second = skill + generator.normal(0.0, 0.1, 120)
        found = compare_tables([table(first)], [table(second)], "ndcg", resamples=500, seed=world)
        covered += found.low <= 0.03 <= found.high
    assert 0.92 <= covered / 400 <= 0.975


def test_equal_models_are_told_apart_5_times_in_100() -> None:
    generator = np.random.default_rng(1)
    alarms = 0
    for world in range(400):
        first, second = generator.gamma(2.0, 1.0, size=(2, 80))
        frames = [
            pd.DataFrame({"squared": values, "ratings": 1.0 + np.arange(80) % 7})
            for values in (first, second)
        ]
        found = compare_tables([frames[0]], [frames[1]], "rmse", resamples=400, seed=world)
        alarms += found.p_value < 0.05
    assert 0.025 <= alarms / 400 <= 0.08


def test_a_real_difference_is_found() -> None:
    generator = np.random.default_rng(2)
    base = generator.random(300)
    better = base + generator.normal(0.05, 0.05, 300)
    found = compare_tables([table(better)], [table(base)], "ndcg")
    assert found.p_value < 0.001 and 0.03 < found.low < 0.05 < found.high < 0.07


def test_seeds_do_not_multiply_the_users() -> None:
    """The same table three times holds no more evidence than once."""
    generator = np.random.default_rng(3)
    first, second = table(generator.random(50)), table(generator.random(50))
    once = compare_tables([first], [second], "ndcg")
    thrice = compare_tables([first] * 3, [second] * 3, "ndcg")
    assert once.as_dict() == pytest.approx(thrice.as_dict())


def test_identical_models_do_not_differ() -> None:
    same = table(np.linspace(0, 1, 9))
    found = compare_tables([same], [same], "ndcg")
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_all_pairs_at_once_are_what_each_is_alone() -> None:
    """In a part of the ratings, which some users have none of; they are no evidence."""
    generator = np.random.default_rng(4)
    count = np.where(np.arange(60) < 20, 0, 1 + np.arange(60) % 5)
    tables = {
        name: [
            pd.DataFrame({"squared, warm": count * generator.random(60), "ratings, warm": count})
        ]
        for name in ("a", "b", "c")
    }
    intervals, pairs = compare_all(tables, "rmse, warm", resamples=2000, permutations=2000)
    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (first, second), found in pairs.items():
        alone = compare_tables(tables[first], tables[second], "rmse, warm", resamples=2000)
        assert found.as_dict() == pytest.approx(alone.as_dict())
        assert found.users == 40
        gap = intervals[first].mean - intervals[second].mean
        assert found.difference == pytest.approx(gap)
    of_a = tables["a"][0].to_numpy()[20:]
    draws = [of_a[generator.integers(40, size=40)].sum(axis=0) for _ in range(4000)]
    values = [(squared / ratings) ** 0.5 for squared, ratings in draws]
    interval = intervals["a"]
    assert interval.mean == pytest.approx((of_a[:, 0].sum() / of_a[:, 1].sum()) ** 0.5)
    assert (interval.low, interval.high) == pytest.approx(
        np.quantile(values, [0.025, 0.975]), abs=0.01
    )


def test_more_permutations_find_smaller_p_values() -> None:
    better, base = table(np.arange(200) % 7 + 1.0), table(np.arange(200) % 7 + 0.0)
    both = {"better": [better], "base": [base]}
    for permutations in (999, 10_001):  # the second in more than one block
        _, pairs = compare_all(both, "ndcg", resamples=50, permutations=permutations)
        assert pairs["better", "base"].p_value == pytest.approx(1 / (1 + permutations))


def test_any_pair_of_fitted_models_can_be_compared(toy_ratings: pd.DataFrame) -> None:
    train, test = dlcf.split(toy_ratings, seed=0)
    mean, bias = (dlcf.make(name).fit(train) for name in ("global-mean", "bias"))
    found = compare_models(bias, mean, train, test, "rmse")
    actual = test["rating"]
    expected = rmse(actual, bias.predict(test)) - rmse(actual, mean.predict(test))
    assert found.difference == pytest.approx(expected)
    assert found.users == test["userId"].nunique()
    assert found.high < 0 and found.p_value < 0.01
    ranking = compare_models(bias, mean, train, test, "ndcg", protocol="rated")
    assert ranking.low <= ranking.difference <= ranking.high


def test_error_tables_add_up(toy_ratings: pd.DataFrame) -> None:
    train, test = dlcf.split(toy_ratings, seed=0)
    model = dlcf.make("bias").fit(train)
    total = per_user_errors(model, test).sum()
    predicted = model.predict(test)
    assert (total["squared"] / total["ratings"]) ** 0.5 == pytest.approx(
        rmse(test["rating"], predicted)
    )
    assert total["absolute"] / total["ratings"] == pytest.approx(mae(test["rating"], predicted))


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric"):
        compare_tables([], [], "auc")
    with pytest.raises(ValueError, match="same users"):
        compare_tables([table(np.zeros(3))], [table(np.zeros(4))], "ndcg")


def test_correlations_are_spearmans_and_respect_clusters() -> None:
    """A property that is one number a user is known as well as there are users, not ratings."""
    generator = np.random.default_rng(4)
    user = np.repeat(np.arange(30), 40)
    trait = generator.normal(size=30)
    frame = pd.DataFrame(
        {
            "user": user,
            "weight": 0.6 * trait[user] + 0.3 * generator.normal(size=1200),
            "trait": trait[user],
            "noise": generator.normal(size=1200),
        }
    )
    found = clustered_correlations(frame, "weight", "user")
    for name in ("trait", "noise"):
        expected = stats.spearmanr(frame["weight"], frame[name]).statistic
        assert found.loc[name, "correlation"] == pytest.approx(expected)
        assert found.loc[name, "low"] < expected < found.loc[name, "high"]
    alone = clustered_correlations(frame.assign(user=np.arange(1200)), "weight", "user")
    width = {
        key: t.loc["trait", "high"] - t.loc["trait", "low"]
        for key, t in (("users", found), ("rows", alone))
    }
    assert width["users"] > 2 * width["rows"]


def test_holm_on_a_worked_example() -> None:
    """0.01, 0.02, 0.03, 0.04 become 0.04, 0.06, 0.06, 0.06: each step times what is left."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
