"""Intervals hold what they promise: coverage and false alarms by simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import dlcf
from dlcf.analysis.statistics import (
    clustered_correlations,
    clustered_interval,
    compare_all,
    compare_models,
    compare_tables,
    holm,
    interval_over_seeds,
    mean_interval,
)
from dlcf.evaluation import per_user, per_user_errors
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


def errors(users: list[int], squared: list[float], ratings: list[int]) -> pd.DataFrame:
    columns = {"squared": squared, "absolute": [s / 2 for s in squared], "ratings": ratings}
    return pd.DataFrame(columns, index=pd.Index(users, name="userId"))


def test_sums_over_seeds_weigh_users_by_what_they_hold() -> None:
    """User 1 is tested in both seeds, user 2 in one: means of a user's seeds would differ."""
    first = [errors([1, 2], [4.0, 1.0], [1, 2]), errors([1], [9.0], [3])]
    second = [errors([1, 2], [1.0, 1.0], [1, 2]), errors([1], [0.0], [3])]
    found = compare_tables(first, second, "rmse")
    assert found.difference == pytest.approx(np.sqrt(14 / 6) - np.sqrt(2 / 6))
    assert (found.metric, found.users) == ("rmse", 2)
    assert compare_tables(first, second, "mae").difference == pytest.approx((7 - 1) / 6)
    lists = [
        [table(np.array(values), metric) for values in ([0.2, 0.6], [0.7])]
        for metric in ("precision", "recall", "ndcg")
    ]
    nothing = [table(np.zeros(2)), table(np.zeros(1))]
    for given, metric in zip(lists, ("precision", "recall", "ndcg"), strict=True):
        empty = [t.rename(columns={"ndcg": metric}) for t in nothing]
        assert compare_tables(given, empty, metric).difference == pytest.approx(0.5)


def test_a_comparison_the_other_way_round_is_its_mirror() -> None:
    generator = np.random.default_rng(5)
    first, second = table(generator.random(40)), table(generator.random(40) + 0.1)
    there = compare_tables([first], [second], "ndcg", resamples=500)
    back = compare_tables([second], [first], "ndcg", resamples=500)
    mirrored = (-there.difference, -there.high, -there.low, there.p_value)
    assert (back.difference, back.low, back.high, back.p_value) == pytest.approx(mirrored)
    assert there.low < there.difference < there.high
    other = compare_tables([first], [second], "ndcg", resamples=500, seed=1)
    assert other.difference == there.difference and other.low != there.low
    half = compare_tables([first], [second], "ndcg", confidence=0.5, resamples=500)
    assert half.high - half.low < 0.5 * (there.high - there.low)
    assert half.p_value == there.p_value


def test_the_p_value_is_that_of_a_permutation_test() -> None:
    """Two users, both better by 1: of the four labellings two are as extreme. 60: none by luck."""
    two = compare_tables([table(np.ones(2))], [table(np.zeros(2))], "ndcg", resamples=4000)
    assert two.p_value == pytest.approx(0.5, abs=0.03)
    many = compare_tables([table(np.ones(60))], [table(np.zeros(60))], "ndcg", resamples=99)
    assert many.p_value == 1 / 100
    # The gaps 3 and -1 sum to 2, and no labelling gives less than that.
    uneven = compare_tables(
        [table(np.array([3.0, 0.0]))], [table(np.array([0.0, 1.0]))], "ndcg", resamples=4000
    )
    assert uneven.p_value == 1.0


def test_what_is_compared_is_what_was_asked_for(toy_ratings: pd.DataFrame) -> None:
    train, test = dlcf.split(toy_ratings, seed=0)
    models = [dlcf.make(name).fit(train) for name in ("popular", "bias")]
    for metric in ("precision", "recall", "ndcg"):
        for arguments in ({}, {"protocol": "rated", "k": 3, "threshold": 3.0}):
            found = compare_models(*models, train, test, metric, seed=4, **arguments)
            tables = [per_user(model, train, test, **arguments) for model in models]
            assert found == compare_tables([tables[0]], [tables[1]], metric, seed=4)
    assert compare_models(*models, train, test) == compare_models(*models, train, test, "ndcg")
    mean = dlcf.make("global-mean").fit(train)
    found = compare_models(mean, models[1], train, test, "mae", seed=4)
    tables = [per_user_errors(model, test) for model in (mean, models[1])]
    assert found == compare_tables([tables[0]], [tables[1]], "mae", seed=4)


def test_intervals_over_seeds_are_rounded_and_need_two() -> None:
    assert interval_over_seeds([0.123456789]) == [0.12346, None, None]
    values = [0.81234567, 0.82, 0.79]
    found = mean_interval(values)
    expected = [round(bound, 5) for bound in (found.mean, found.low, found.high)]
    assert interval_over_seeds(values) == expected
    assert found.low < found.mean < found.high
    narrow = mean_interval(values, confidence=0.5)
    assert narrow.high - narrow.mean == pytest.approx(narrow.mean - narrow.low)
    factor = stats.t.ppf(0.75, 2) / stats.t.ppf(0.975, 2)
    assert narrow.high - narrow.mean == pytest.approx(factor * (found.high - found.mean))
    with pytest.raises(ValueError, match=r"in one row, not \(1, 2\)"):
        mean_interval([[0.1, 0.2]])


def test_whole_clusters_are_resampled() -> None:
    """Three of 'a', whose value is 0, and one of 'b', 1: a draw holds aa, ab, ba or bb."""
    clusters, values = np.array(["a", "b", "a", "a"]), np.array([0.0, 1.0, 0.0, 0.0])
    drawn: list[list[int]] = []

    def mean(rows: np.ndarray) -> float:
        drawn.append(sorted(rows.tolist()))
        return float(values[rows].mean())

    found = clustered_interval(clusters, mean, resamples=300)
    assert found.as_dict() == {"mean": 0.25, "low": 0.0, "high": 1.0}
    assert len(drawn) == 301 and drawn[-1] == [0, 1, 2, 3]
    kinds = {tuple(rows): drawn[:-1].count(rows) for rows in drawn[:-1]}
    assert set(kinds) == {(0, 0, 2, 2, 3, 3), (0, 1, 2, 3), (1, 1)}
    assert 100 < kinds[0, 1, 2, 3] < 200
    first, again, other = (
        clustered_interval(np.arange(9), lambda rows: float(rows.mean()), seed=s) for s in (0, 0, 1)
    )
    assert first == again and first.mean == other.mean == 4.0 and first.low != other.low
    half = clustered_interval(np.arange(9), lambda rows: float(rows.mean()), confidence=0.5)
    assert half.high - half.low < 0.7 * (first.high - first.low)


def test_correlations_have_seeds_and_a_confidence() -> None:
    generator = np.random.default_rng(6)
    frame = pd.DataFrame(generator.normal(size=(200, 3)), columns=["x", "y", "z"])
    frame["cluster"] = np.arange(200) // 5
    first, again, other, half, few = (
        clustered_correlations(frame, "x", "cluster", **arguments)
        for arguments in (
            {}, {"seed": 0, "resamples": 200, "confidence": 0.95}, {"seed": 1},
            {"confidence": 0.5}, {"resamples": 5},
        )
    )  # fmt: skip
    assert first.index.tolist() == ["y", "z"] and first.equals(again)
    for changed in (other, half, few):
        assert (changed["correlation"] == first["correlation"]).all()
        assert (changed["low"] != first["low"]).all()
    assert (half["high"] - half["low"] < 0.7 * (first["high"] - first["low"])).all()


def test_two_values_are_enough_for_an_interval() -> None:
    found = mean_interval([0.7, 0.9])
    half = stats.t.ppf(0.975, 1) * 0.1  # 0.2 / 2 is the standard error of the mean
    assert (found.mean, found.low, found.high) == pytest.approx((0.8, 0.8 - half, 0.8 + half))
    assert interval_over_seeds([0.7, 0.9]) == pytest.approx([0.8, 0.8 - half, 0.8 + half], abs=1e-5)
    single = np.array([0.7, 0.9, 0.8], dtype=np.float32)  # is averaged in float64, as all are
    assert mean_interval(single) == mean_interval(single.tolist())


def test_intervals_are_the_central_part_of_the_resamples() -> None:
    draws: list[float] = []

    def mean(rows: np.ndarray) -> float:
        draws.append(float(rows.mean()))
        return draws[-1]

    for confidence, bounds in ((0.95, [0.025, 0.975]), (0.5, [0.25, 0.75])):
        draws.clear()
        found = clustered_interval(np.arange(50), mean, confidence)
        assert [found.low, found.high] == pytest.approx(np.quantile(draws[:-1], bounds))


def test_the_defaults_are_those_that_the_signature_names(toy_ratings: pd.DataFrame) -> None:
    generator = np.random.default_rng(7)
    first, second = table(generator.random(12)), table(generator.random(12))
    both = {"first": [first], "second": [second]}
    found = compare_all(both, "ndcg")
    assert found == compare_all(both, "ndcg", 0.95, 10_000, 100_000, 0)
    found_two = compare_tables([first], [second], "ndcg")
    assert found_two == compare_tables([first], [second], "ndcg", 0.95, 10_000, 0)
    interval = clustered_interval(np.arange(9), np.mean)
    assert interval == clustered_interval(np.arange(9), np.mean, 0.95, 200, 0)
    train, test = dlcf.split(toy_ratings, seed=0)
    models = [dlcf.make(name).fit(train) for name in ("popular", "bias")]
    expected = compare_models(*models, train, test, "ndcg", "full", 10, 4.0, 0)
    assert compare_models(*models, train, test) == expected


def test_one_model_has_an_interval_and_no_pair() -> None:
    alone = table(np.linspace(0, 1, 9))
    intervals, pairs = compare_all({"alone": [alone]}, "ndcg", permutations=10)
    both, _ = compare_all({"alone": [alone], "other": [alone]}, "ndcg", permutations=10)
    assert intervals == {"alone": both["alone"]} and pairs == {}


def test_permutations_in_several_blocks_are_all_counted() -> None:
    """Of equal models every labelling is as extreme as what was seen."""
    same = [table(np.linspace(0, 1, 9))]
    for permutations in (10_000, 10_001, 20_001):
        _, pairs = compare_all({"a": same, "b": same}, "ndcg", 0.95, 10, permutations)
        assert pairs["a", "b"].p_value == 1.0


def test_an_unknown_metric_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"choose one of rmse, mae, precision, recall, ndcg$"):
        compare_tables([], [], "auc")
