"""The bench compares like with like and keeps its record; no time is asserted here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dlcf
from bench import measure as bench
from bench.explanations import PLAYERS
from bench.steps import made_up_ratings, textbook_fit
from dlcf.evaluation import evaluate
from dlcf.models.deepcf import DeepCF
from dlcf.notebook import bench_tables
from dlcf.notebook.report import bench_table

QUICK = bench.Options(quick=True)


@pytest.fixture(scope="module")
def wide() -> tuple[DeepCF, pd.DataFrame]:
    """The paper's network on 150 users and 5,000 movies: more than are scored at once."""
    generator = np.random.default_rng(3)
    pairs = np.unique(
        generator.integers(150, size=30_000) * 5_000 + generator.integers(5_000, size=30_000)
    )
    rating = generator.integers(1, 11, len(pairs)).astype(np.float32) / 2
    ratings = pd.DataFrame({"userId": pairs // 5_000, "movieId": pairs % 5_000, "rating": rating})
    model = dlcf.make("deepcf", embedding_size=16, hidden=(32, 16), dropout=(0.1, 0.1))
    model.epochs, model.batch_size = 1, 512
    return model.fit(ratings), ratings


def test_lists_are_those_of_forward_passes(wide: tuple[DeepCF, pd.DataFrame]) -> None:
    model, _ = wide
    naive = bench.naive_lists(model, model.user_ids)
    ours = model.recommend_all()
    assert ours["movieId"].tolist() == naive["movieId"].tolist()
    np.testing.assert_allclose(ours["score"], naive["score"], atol=1e-5)
    one = model.recommend(17)
    assert one["movieId"].tolist() == ours.loc[ours["userId"] == 17, "movieId"].tolist()


def test_lists_of_all_users_on_real_ratings_are_the_same(ratings: pd.DataFrame) -> None:
    model = dlcf.make("deepcf", epochs=1, batch_size=1024).fit(ratings)
    some = model.user_ids[::60]
    naive = bench.naive_lists(model, some)
    assert model.recommend_all(some)["movieId"].tolist() == naive["movieId"].tolist()


@pytest.mark.parametrize("protocol", ["rated", "full"])
def test_the_loop_gives_the_same_numbers(toy_ratings: pd.DataFrame, protocol: str) -> None:
    train, test = dlcf.split(toy_ratings)
    model = bench.Tabulated().fit(train)
    ours, loop = (f(model, train, test, protocol) for f in (evaluate, bench.metrics_by_loop))
    assert ours.keys() == loop.keys()
    assert list(ours.values()) == pytest.approx(list(loop.values()), rel=1e-9)


def test_the_textbook_loop_learns_and_leaves_out_a_last_rating_alone() -> None:
    train = made_up_ratings(64 * 40 + 1)
    users, movies, ratings = train
    errors = []
    for epochs in (1, 6):
        network = textbook_fit(train, seed=0, epochs=epochs).eval()
        with torch.no_grad():
            errors.append(float(((network(users, movies) - ratings) ** 2).mean()))
    assert errors[1] < 0.8 * errors[0] < 0.8 * float(ratings.var()) * 1.5


def test_targets_are_judged_by_ratio_or_seconds() -> None:
    assert bench.entry(1.0, 5.0, at_least=4.0)["met"] is True
    assert bench.entry(1.0, 3.0, at_least=4.0)["met"] is False
    assert bench.entry(3.0, 1.0, at_most=2.5)["met"] is False
    assert bench.entry(2.0, 1.0, at_most=2.5)["met"] is True
    assert bench.entry(0.02, at_most=0.03)["met"] is True
    assert "met" not in bench.entry(1.0, 2.0)


def test_the_record_keeps_other_sections_and_reports_broken_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: bench.Options) -> dict[str, bench.Entry]:
        raise RuntimeError("no such thing")

    sections = {"a": lambda _: {"x": bench.entry(1.0, 9.0, at_least=2.0)}, "b": broken}
    monkeypatch.setattr(bench, "SECTIONS", sections)
    output = tmp_path / "bench.json"
    arguments = ["--quick", "--threads", "1", "--output", str(output)]
    assert bench.main(["a", *arguments]) == 0
    assert bench.main(["b", *arguments]) == 1
    record = json.loads(output.read_text())
    assert record["a"]["entries"]["x"]["ratio"] == 9.0 and record["a"]["machine"]["threads"] == 1
    assert record["a"]["machine"]["cpu"] and record["a"]["machine"]["numba"]
    assert record["b"]["entries"]["b"]["error"] == "RuntimeError: no such thing"
    with pytest.raises(SystemExit):
        bench.main(["c", *arguments])
    assert "no section c; there are a, b" in capsys.readouterr().err


def test_tables_show_this_run_and_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([(8.0, 0.05), (9.0, 0.02)])

    def section(_: bench.Options) -> dict[str, bench.Entry]:
        reference, alone = next(times)
        return {
            "two ways": bench.entry(1.0, reference, at_least=8.5),
            "one way": bench.entry(alone, at_most=0.03),
            "no limit": {"target": "peak <= bound", "met": True},
        }

    monkeypatch.setattr(bench, "SECTIONS", {"a": section})
    output = tmp_path / "bench.json"
    arguments = ["--quick", "--threads", "1", "--output", str(output)]
    assert [bench.main([*arguments, "a"]) for _ in range(2)] == [1, 0]
    record = bench_tables.load_bench(output)
    assert record["a"]["run before"] == {"two ways": 8.0, "one way": 0.05}
    assert bench_tables.ratio_table(record).loc["two ways", ["before", "ratio"]].tolist() == [
        8.0,
        9.0,
    ]
    assert bench_tables.seconds_table(record).loc["one way", ["before", "ours_s"]].tolist() == [
        0.05,
        0.02,
    ]
    assert bench_table(output).splitlines()[2:] == [
        "| two ways | 9.0 s | 1.0 s | 9 | 8 | 8.5 |",
        "| one way | – | 20.0 ms | – | 50.0 ms | 30.0 ms |",
    ]


def test_a_peer_that_is_missing_is_reported(tmp_path: Path) -> None:
    found = bench._json_from(["python-that-is-not-there", "x"], QUICK)
    assert "FileNotFoundError" in found["error"]


def test_peak_memory_stays_below_the_bound() -> None:
    """At ten times the real ratings, where what grows with them outweighs what does not."""
    found = bench._in_process("measure_size('mf', 1_000_000, True)", QUICK)
    assert found.get("met") is True, found
    assert found["peak_bytes"] > 28 * found["ratings"]


def test_steps_are_measured_by_vocabulary(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    assert bench_tables.vocabulary_table({}).empty
    assert bench.main(["vocabulary", "--quick", "--output", str(output)]) == 0
    table = bench_tables.vocabulary_table(bench_tables.load_bench(output)).set_index(
        ["model", "rows"]
    )
    assert table.index.tolist() == [(m, n) for m in ("mf", "deepcf") for n in (100, 1000)]
    assert (table > 0).all(axis=None)


def test_what_explaining_costs_is_kept_by_method(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    assert bench.main(["explain", "--quick", "--output", str(output)]) == 0
    entries = bench_tables.load_bench(output)["explain"]["entries"]
    costs = pd.Series({name: found["ms"] for name, found in entries.items()})
    readers = ("deepcf-plus", "item-knn", "ease")
    history = {f"history: {model}, single deletion" for model in readers}
    assert history | set(PLAYERS) - {"integrated gradients"} <= set(costs.index)
    assert (costs > 0).all()
    # Every order of the Shapley values predicts as often as all single deletions together.
    deletion, shapley = (
        costs[f"history: deepcf-plus, {m}"] for m in ("single deletion", "shapley")
    )
    assert shapley > deletion
