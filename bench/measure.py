"""What the package costs, beside plain ways to do the same: ``python -m bench [SECTION ...]``.

Both sides of a comparison run in one process, in turn, several times. Medians are reported, and
the ratio of the two is the result: the times themselves depend on the computer. A section that is
named replaces its part of `results/bench.json`; the others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from bench import explanations, steps
from bench.synthetic import in_sessions, synthetic_ratings
from dlcf import metrics
from dlcf.data import load_movies, load_ratings
from dlcf.evaluation import evaluate
from dlcf.models.base import Interactions, Recommender
from dlcf.models.deepcf import DeepCF
from dlcf.models.network import NetworkRecommender
from dlcf.notebook.bench_tables import RECORD, limit_of, load_bench
from dlcf.plus import deepcf_plus
from dlcf.ratings import check_ratings
from dlcf.registry import fit_together, make
from dlcf.runtime import paths
from dlcf.runtime.environment import library_versions, processor_name
from dlcf.splits import split

__all__ = [
    "SECTIONS",
    "Options",
    "Tabulated",
    "main",
    "memory_bound",
    "metrics_by_loop",
    "naive_lists",
]

DATASET = "ml-latest-small"
LIBRARIES = ("torch", "numba", "numpy", "pandas", "scipy")
PEERS = ("surprise-svd", "cornac-mf", "lenskit-biasedmf")
BATCH = {"mf": 8192, "deepcf": 1024}  # ratings a step where cost is measured by size

Entry = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes
    ----------
    repeats
        Times that each side is run; the median counts.
    threads
        torch's threads.
    cpu_time
        Count the processor's time of this process, which other programs do not lengthen, and not
        the clock's; only of use with one thread.
    quick
        Tiny sizes, to test the harness: the numbers mean nothing.
    peers_python
        Interpreter that has the other libraries.
    sizes
        Ratings to measure cost at, besides the real data set.
    """

    repeats: int = 5
    threads: int = 1
    cpu_time: bool = False
    quick: bool = False
    peers_python: str = sys.executable
    sizes: tuple[int, ...] = (1_000_000, 10_000_000, 25_000_000)

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds, from wherever."""
        return time.process_time if self.cpu_time else time.perf_counter

    def seconds(self, function: Callable[[], Any]) -> float:
        """How long one call takes."""
        start = self.clock()
        function()
        return self.clock() - start

    @property
    def rounds(self) -> range:
        """One for each time that something is run."""
        return range(1 if self.quick else self.repeats)

    def medians(self, measure: Callable[[], Sequence[float]]) -> list[float]:
        """Of each number that `measure` gives, over all rounds."""
        found = [measure() for _ in _bar(self.rounds, "repeats")]
        return [median(numbers) for numbers in zip(*found, strict=True)]

    def in_turn(self, *functions: Callable[[], Any]) -> list[float]:
        """The median seconds of each, run one after the other in each round."""
        return self.medians(lambda: [self.seconds(function) for function in functions])


def entry(
    ours: float,
    reference: float | None = None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    **more: Any,
) -> Entry:
    """One comparison: seconds of both sides, ratio reference / ours, target and whether it holds.

    Parameters
    ----------
    ours, reference
        Seconds.
    at_least
        Target: the ratio is this or more.
    at_most
        Target: the seconds are this or less; with a reference, ours / reference is.
    """
    found: Entry = {"ours_s": ours, **more}
    if reference is not None:
        found |= {"reference_s": reference, "ratio": reference / ours}
    if at_least is not None and reference is not None:
        found |= {"target": f"ratio >= {at_least:g}", "met": reference / ours >= at_least}
    if at_most is not None:
        value = ours if reference is None else ours / reference
        what = "seconds" if reference is None else "ours / reference"
        found |= {"target": f"{what} <= {at_most:g}", "met": value <= at_most}
    return found


# --------------------------------------------------------------------------------------- training


def bench_training(options: Options) -> dict[str, Entry]:
    """The training step of `deepcf` at the paper's settings, on all threads and on one."""
    found = _steps(options, "step")
    if options.threads > 1:
        torch.set_num_threads(1)
        found |= _steps(options, "step on one thread")
        torch.set_num_threads(options.threads)
    return found


def _steps(options: Options, what: str) -> dict[str, Entry]:
    n = 5 if options.quick else 200
    timers = steps.fast_step_time, steps.textbook_step_time, steps.floor_time
    ours, textbook, floor = options.medians(
        lambda: [timer(steps=n, clock=options.clock) for timer in timers]
    )
    return {
        f"{what}, beside the textbook loop": entry(ours, textbook, at_least=6.0),
        f"{what}, beside its matrix products": entry(ours, floor, at_most=2.5),
    }


def bench_seeds(options: Options) -> dict[str, Entry]:
    """Five networks that differ in their seeds, fitted at once and one after another.

    One after another by the textbook loop, which only trains, and by `fit`, which also validates.
    """
    ratings, epochs = load_ratings(DATASET), 2
    if options.quick:
        ratings, epochs = ratings.sample(2000, random_state=0), 1
    seeds = range(5)
    settings: dict[str, Any] = {"epochs": epochs, "device": "cpu"}
    columns = [np.unique(ratings[name], return_inverse=True)[1] for name in ("userId", "movieId")]
    whole = *map(torch.from_numpy, columns), torch.from_numpy(ratings["rating"].to_numpy())
    held_out = int(make("deepcf").config["validation_fraction"] * len(ratings))
    train = tuple(tensor[held_out:] for tensor in whole)

    def one_by_one() -> None:
        for seed in seeds:
            make("deepcf", seed=seed, **settings).fit(ratings)

    def textbook() -> None:
        for seed in seeds:
            steps.textbook_fit(train, seed, epochs)

    together, separate, plain = options.in_turn(
        partial(fit_together, "deepcf", seeds, ratings, **settings), one_by_one, textbook
    )
    more: dict[str, Any] = {"at_least": 2.5, "ratings": len(ratings), "epochs": epochs}
    return {
        "5 seeds together, beside 5 textbook loops": entry(together, plain, **more),
        "5 seeds together, beside one after another": entry(together, separate, **more),
    }


# ---------------------------------------------------------------------------------------- ranking


def naive_lists(model: Recommender, user_ids: NDArray[np.int64], k: int = 10) -> pd.DataFrame:
    """The best unseen movies of each user by forward passes over the whole catalogue.

    This is what a tutorial does: each user's pairs with all movies go through the network in one
    batch, what the user has rated is dropped, the rest is sorted.
    """
    assert isinstance(model, DeepCF)
    position, column = model.seen(user_ids)
    seen = pd.Series(model.movie_ids[column]).groupby(position).agg(set)
    movies = torch.arange(len(model.movie_ids))
    lists = []
    for position, row in enumerate(np.searchsorted(model.user_ids, user_ids).tolist()):
        with torch.no_grad():
            scores = model.network(torch.full_like(movies, row), movies).numpy()
        columns = {"userId": user_ids[position], "movieId": model.movie_ids, "score": scores}
        table = pd.DataFrame(columns)
        table = table[~table["movieId"].isin(seen[position])]
        lists.append(table.sort_values("score", ascending=False, kind="stable").head(k))
    return pd.concat(lists, ignore_index=True)


def bench_ranking(options: Options) -> dict[str, Entry]:
    """Top 10 of all users over all movies, and of one user, with the paper's network."""
    ratings = load_ratings(DATASET)
    if options.quick:
        ratings = ratings[ratings["userId"] <= 40]
    model = make("deepcf", seed=0, epochs=1 if options.quick else 10, device="cpu").fit(ratings)
    assert isinstance(model, DeepCF)
    users = model.user_ids

    ours, naive = partial(model.recommend_all, users), partial(naive_lists, model, users)
    same = ours()["movieId"].tolist() == naive()["movieId"].tolist()
    fast, plain = options.in_turn(ours, naive)
    some = [int(user) for _ in options.rounds for user in users[:: max(1, len(users) // 50)]]
    one_list = [options.seconds(partial(model.recommend, user)) for user in some]
    # Afterwards, not in turn: torch's threads spin for a while after each product.
    products = _products_of_a_list(model)
    floor = [options.seconds(products) for _ in some]
    return {
        "top 10 of all users": entry(
            fast,
            plain,
            at_least=4.0,
            users=len(users),
            movies=len(model.movie_ids),
            same_lists=same,
        ),
        "top 10 of one user": entry(median(one_list), at_most=0.030, products_s=median(floor)),
    }


def _products_of_a_list(model: DeepCF) -> Callable[[], None]:
    """The matrix products that one user's scores of all movies need, and nothing else."""
    sizes = model.hidden
    weights = [torch.randn(ins, outs) for ins, outs in pairwise(sizes)]
    # Not whatever memory holds: arithmetic with denormal numbers is many times slower.
    outputs = [torch.ones(len(model.movie_ids), size) for size in sizes]

    def products() -> None:
        for inputs, weight, output in zip(outputs, weights, outputs[1:], strict=False):
            torch.mm(inputs, weight, out=output)

    return products


# ------------------------------------------------------------------------------------ explanations


def bench_explain(options: Options) -> dict[str, Entry]:
    """Milliseconds of one explanation by each method; nothing is compared."""
    return explanations.explanation_costs(DATASET, options.clock, options.quick)


# ---------------------------------------------------------------------------------------- metrics


class Tabulated(Recommender):
    """Scores from a table, so that only ranking and counting are measured, not a model."""

    name = "tabulated"

    def _fit(
        self, data: Interactions, validation: Interactions | None, movies: pd.DataFrame | None
    ) -> None:
        row = np.linspace(0.5, 5.0, data.n_movies, dtype=np.float32)  # no ties: their order is free
        table = np.tile(row, (data.n_users, 1))
        self.table = np.random.default_rng(0).permuted(table, axis=1)

    def _predict(
        self,
        users: NDArray[np.int64],
        movies: NDArray[np.int64],
        timestamps: NDArray[np.int64] | None,
    ) -> NDArray[np.float64]:
        return self.table[users, movies].astype(np.float64)

    def _score(self, users: NDArray[np.int64], at: float | None) -> NDArray[np.float32]:
        return self.table[users]


def metrics_by_loop(
    model: Recommender,
    train: pd.DataFrame,
    test: pd.DataFrame,
    protocol: str,
    k: int = 10,
    threshold: float = 4.0,
) -> dict[str, float]:
    """The metrics of :func:`dlcf.evaluate`, user by user in pandas; a second implementation."""
    rows, squared, absolute = [], 0.0, 0.0
    for user, rated in test.groupby("userId"):
        predicted = pd.Series(model.predict(rated), index=rated["movieId"])
        error = predicted - rated.set_index("movieId")["rating"].astype(float)
        squared, absolute = squared + float((error**2).sum()), absolute + float(error.abs().sum())
        relevant = set(rated.loc[rated["rating"] >= threshold, "movieId"])
        if not relevant:
            continue
        if protocol == "rated":
            score = predicted
            gain = rated.set_index("movieId")["rating"].astype(float)
        else:
            score = pd.Series(model.score_all(np.array([user]))[0], index=model.movie_ids)
            score = score.drop(train.loc[train["userId"] == user, "movieId"], errors="ignore")
            gain = pd.Series(1.0, index=sorted(relevant))
        shown = score.sort_values(ascending=False).index[:k]
        discount = 1.0 / np.log2(np.arange(k) + 2)
        got = gain.reindex(shown, fill_value=0.0).to_numpy()
        best = gain.sort_values(ascending=False).to_numpy()[:k]
        hits = len(relevant & set(shown))
        ndcg = (got @ discount[: len(got)]) / (best @ discount[: len(best)])
        rows.append((hits / len(shown), hits / len(relevant), ndcg))
    precision, recall, ndcg = np.mean(rows, axis=0).tolist()
    return {
        "rmse": (squared / len(test)) ** 0.5,
        "mae": absolute / len(test),
        f"precision@{k}": precision,
        f"recall@{k}": recall,
        f"f1@{k}": metrics.f1(precision, recall),
        f"ndcg@{k}": ndcg,
        "ratings": float(len(test)),
        "users": float(len(rows)),
    }


def bench_metrics(options: Options) -> dict[str, Entry]:
    """All metrics of both protocols, of scores that are there already."""
    ratings = load_ratings(DATASET)
    if options.quick:
        ratings = ratings[ratings["userId"] <= 40]
    train, test = split(ratings)
    test = test[test["movieId"].isin(train["movieId"])]  # unknown movies tie
    model = Tabulated().fit(train)

    def both(measure: Any) -> list[dict[str, float]]:
        return [measure(model, train, test, protocol) for protocol in ("rated", "full")]

    same = all(
        abs(one[name] - other[name]) <= 1e-9
        for one, other in zip(both(evaluate), both(metrics_by_loop), strict=True)
        for name in one
    )
    fast, loop = options.in_turn(partial(both, evaluate), partial(both, metrics_by_loop))
    found = entry(fast, loop, at_least=30.0, same_numbers=same, test_ratings=len(test))
    return {"all metrics, both protocols": found}


# ------------------------------------------------------------------------------------------ peers


OWN = ("bias", "mf", "item-knn", "ease", "fm-side", "deepcf", "deepcf-plus")


def bench_peers(options: Options) -> dict[str, Entry]:
    """Fit and prediction on the random split of seed 0, ours and other libraries'."""
    ratings = load_ratings(DATASET)
    if options.quick:
        ratings = ratings[ratings["userId"] <= 40]
    train, test = split(ratings)
    found: dict[str, Entry] = {}
    movies = load_movies(DATASET)
    for name in ("bias", "mf") if options.quick else OWN:
        model = make(name, seed=0)
        fit = options.seconds(partial(model.fit, train, movies=movies))
        predict = options.seconds(partial(model.predict, test))
        error = metrics.rmse(test["rating"].to_numpy(), model.predict(test))
        found[f"dlcf {name}"] = {"fit_s": fit, "predict_s": predict, "rmse": error}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "split.npz"
        columns = ["userId", "movieId", "rating"]
        arrays = {"train": train[columns], "test": test[columns]}
        parts: dict[str, Any] = {name: a.to_numpy(np.float64) for name, a in arrays.items()}
        np.savez(path, **parts)
        script = paths.ROOT / "bench" / "peers.py"
        for name in _bar(PEERS, "peers"):
            command = [options.peers_python, str(script), name, str(path)]
            found[name] = _json_from(command, options)
    return found


# ------------------------------------------------------------------------------------------ scale


def memory_bound(n_ratings: int, n_parameters: int, n_movies: int) -> float:
    """Most bytes that fitting and ranking take beyond what the imports do.

    Of a rating: 28 bytes each for the frame, its train and test parts, the train part in order,
    and the arrays that the model sees (int64 user, movie and time, float32 stars); 12 for the
    matrix of what was seen; up to 64 while one of these is made from another. Of a parameter: 4
    bytes each for value, gradient, two moments, and the kept last and best epochs. Of a movie: its
    part of the paper's first layer, 512 numbers of 4 bytes, which ranking keeps. Then 224 MiB for
    loops and their compilation, one batch and one block of scores.
    """
    return (5 * 28 + 12 + 64) * n_ratings + 6 * 4 * n_parameters + 512 * 4 * n_movies + 224 * 2**20


def measure_size(model: str, n_ratings: int, quick: bool = False, cpu_time: bool = False) -> Entry:
    """One model at one size, in this process alone, so that its peak of memory is its own."""
    clock = Options(cpu_time=cpu_time).clock
    real = load_ratings(DATASET)
    imported = _peak_bytes()
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = clock()
        result = function(*arguments)
        seconds[name] = clock() - start
        return result

    ratings = real
    if n_ratings != len(real):
        ratings = timed("make_s", synthetic_ratings, n_ratings, real)
    timed("check_s", check_ratings, ratings)
    train, _ = timed("split_s", split, ratings)
    fitted = make(model, seed=0, epochs=1, batch_size=BATCH[model])
    timed("fit_s", fitted.fit, train)
    timed("rank_s", fitted.recommend_all, fitted.user_ids[: 8 if quick else 128])
    assert isinstance(fitted, NetworkRecommender)
    n_parameters = sum(p.numel() for p in fitted.network.parameters())
    bound = memory_bound(n_ratings, n_parameters, len(fitted.movie_ids))
    peak = _peak_bytes() - imported
    return {
        "ratings": n_ratings,
        "users": len(fitted.user_ids),
        "movies": len(fitted.movie_ids),
        "batch_size": BATCH[model],
        "parameters": n_parameters,
        **seconds,
        "peak_bytes": peak,
        "bound_bytes": bound,
        "target": "peak <= bound",
        "met": peak <= bound,
    }


def evidence_bound(n_ratings: int, n_users: int, n_movies: int) -> float:
    """Most bytes that fitting `deepcf-plus` takes beyond what the imports do.

    Of a rating: 28 bytes each for the frame, the arrays that the model sees, and these in the order
    of time; 12 for the matrix of what was seen; 44 each for the context of all ratings and that of
    an episode, and up to 164 while it is made. Of a rating that is learned from, 2.475 times as
    many as there are as far as that is no more than `MOST_HIDDEN`: 750, and 2,000 where it is among
    those of one episode, of which there are `folds` with equally many and others with fewer. Of a
    user or movie: 16 numbers of 4 bytes, five times (value, gradient, two moments, the last epoch's
    copy), and 100 bytes of counts and sums. Then 320 MiB for loops, their compilation and batches,
    and 450 MiB of what the lists took before (item-item weights of 5,000 movies at most, candidates
    of some thousand lists), which the allocator does not give back as a whole.
    """
    hidden = min(2.475 * n_ratings, deepcf_plus.MOST_HIDDEN)
    learned = (750 + 2000 / (5 * 1.45)) * hidden
    return 348 * n_ratings + learned + 420 * (n_users + n_movies) + 770 * 2**20


def measure_evidence(n_ratings: int, quick: bool = False, cpu_time: bool = False) -> Entry:
    """`deepcf-plus` at one size, in this process alone, so that its peak of memory is its own."""
    options, imported = Options(cpu_time=cpu_time), _peak_bytes()
    ratings = in_sessions(synthetic_ratings(n_ratings, load_ratings(DATASET)))
    like, movie_ids = load_movies(DATASET), np.unique(ratings["movieId"])
    # Real genres and years, in some order.
    movies = like.iloc[np.arange(len(movie_ids)) % len(like)].assign(movieId=movie_ids)
    model = make("deepcf-plus", seed=0, device="cpu", preset="quick" if quick else "full")
    fit = options.seconds(partial(model.fit, ratings, movies=movies))
    bound = evidence_bound(n_ratings, len(model.user_ids), len(model.movie_ids))
    peak = _peak_bytes()
    some = ratings.sample(min(20_000, n_ratings), random_state=0)
    return {
        "ratings": n_ratings,
        "users": len(model.user_ids),
        "movies": len(model.movie_ids),
        "fit_s": fit,
        "predict_s": options.seconds(partial(model.predict, some)),
        "peak_bytes": peak - imported,
        "bound_bytes": bound,
        "target": "peak <= bound",
        "met": peak - imported <= bound,
    }


def measure_loading(n_ratings: int) -> Entry:
    """Write so many synthetic ratings as csv; read them without and with the Parquet copy."""
    made = synthetic_ratings(n_ratings, load_ratings(DATASET))
    with tempfile.TemporaryDirectory() as scratch:
        paths.CACHE = Path(scratch) / "cache"
        _write_csv(made, Path(scratch) / "ratings.csv")
        options = Options()
        first = options.seconds(partial(load_ratings, Path(scratch)))
        again = options.seconds(partial(load_ratings, Path(scratch)))
        cached = any((paths.CACHE / "ratings").glob("*.parquet"))
        same = load_ratings(Path(scratch)).equals(made)
    check = options.seconds(partial(check_ratings, made))
    halves = {
        how: options.seconds(partial(split, made, how))
        for how in ("random", "user-temporal", "global-temporal")
    }
    return {
        "ratings": n_ratings,
        **entry(again, first, cached=cached, same_ratings=same),
        "check_s": check,
        "split_s": halves,
        "peak_bytes": _peak_bytes(),
        "target": "first and second reading take 60 s at most",
        "met": max(first, again) <= 60.0,
    }


def bench_scale(options: Options) -> dict[str, Entry]:
    """Fit, ranking and memory by number of ratings, each in a process of its own."""
    sizes = (len(load_ratings(DATASET)), *options.sizes)
    if options.quick:
        sizes = (sizes[0], 200_000)
    jobs = [(model, size) for size in sizes for model in BATCH]
    found: dict[str, Entry] = {}
    for model, size in _bar(jobs, "sizes"):
        call = f"measure_size({model!r}, {size}, {options.quick}, {options.cpu_time})"
        found[f"{model}, {size:,} ratings"] = _in_process(call, options)
    return found


def bench_evidence(options: Options) -> dict[str, Entry]:
    """Fit and memory of `deepcf-plus` by number of ratings, each in a process of its own."""
    sizes = (100_000,) if options.quick else (100_000, *options.sizes)
    found: dict[str, Entry] = {}
    for size in _bar(sizes, "sizes"):
        call = f"measure_evidence({size}, {options.quick}, {options.cpu_time})"
        found[f"deepcf-plus, {size:,} ratings"] = _in_process(call, options)
    return found


def bench_vocabulary(options: Options) -> dict[str, Entry]:
    """The training step as users and movies become more, beside dense Adam over their tables."""
    found: dict[str, Entry] = {}
    sizes = (100, 1000) if options.quick else (10_000, 100_000, 1_000_000)
    n_steps = (5, 2) if options.quick else (500, 20)
    jobs = [(model, n_rows) for model in BATCH for n_rows in sizes]
    for model, n_rows in _bar(jobs, "vocabularies"):
        measure = partial(steps.vocabulary_step_times, model, n_rows, *n_steps, options.clock)
        ours, dense, flush = options.medians(measure)
        more = {"model": model, "rows": n_rows, "settling_s": flush}
        found[f"{model}, {n_rows:,} users and movies"] = entry(ours, dense, **more)
    return found


def bench_loading(options: Options) -> dict[str, Entry]:
    """Reading, checking and splitting a large file."""
    size = 200_000 if options.quick else 25_000_000
    return {f"{size:,} ratings": _in_process(f"measure_loading({size})", options)}


# ------------------------------------------------------------------------------------- end to end


def bench_end_to_end(options: Options) -> dict[str, Entry]:
    """The paper's training run, and all notebooks as `make run` executes them."""
    train, _ = split(load_ratings(DATASET))
    paper = make("deepcf", seed=0, epochs=1 if options.quick else 10)
    found = {"the paper's training run": entry(options.seconds(partial(paper.fit, train)))}
    if not options.quick:
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "dlcf", "run", "--output", scratch]
            environment = {**os.environ, "DLCF_CACHE_DIR": scratch, "DLCF_CHECK_RESULTS": "1"}
            start = time.perf_counter()
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            found["make run, nothing cached"] = entry(time.perf_counter() - start)
    return found


# ---------------------------------------------------------------------------------------- running

SECTIONS: dict[str, Callable[[Options], dict[str, Entry]]] = {
    "training": bench_training,
    "seeds": bench_seeds,
    "ranking": bench_ranking,
    "explain": bench_explain,
    "metrics": bench_metrics,
    "peers": bench_peers,
    "scale": bench_scale,
    "evidence": bench_evidence,
    "vocabulary": bench_vocabulary,
    "loading": bench_loading,
    "end-to-end": bench_end_to_end,
}
USUAL = ("training", "seeds", "ranking", "explain", "metrics", "peers", "scale", "vocabulary")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 1 where a section could not be measured or a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=Options.repeats)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: cores")
    parser.add_argument("--cpu-time", action="store_true", help="the process's time; one thread")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a test of the harness")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--sizes", type=int, nargs="*", default=Options.sizes)
    parser.add_argument("--output", type=Path, default=None, help=f"default: {RECORD.name}")
    given = parser.parse_args(arguments)
    names = given.sections or list(USUAL)
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if given.cpu_time and given.threads != 1:
        parser.error("--cpu-time counts all threads together; use it with --threads 1")
    if given.quick and given.output is None:
        parser.error("--quick measures nothing worth keeping; give --output")
    output: Path = given.output or RECORD
    options = Options(
        given.repeats,
        given.threads,
        given.cpu_time,
        given.quick,
        given.peers_python,
        tuple(given.sizes),
    )
    torch.set_num_threads(options.threads)
    record = load_bench(output) if output.is_file() else {}
    failed = False
    for name in _bar(names, "sections"):
        try:
            entries = SECTIONS[name](options)
        except Exception as error:  # the other sections can still be measured
            entries = {name: {"error": f"{type(error).__name__}: {error}"}}
        failed |= any("error" in e or e.get("met") is False for e in entries.values())
        before = _headlines(record.get(name, {}).get("entries", {}))
        record[name] = {
            "machine": _computer(options),
            "entries": _rounded(entries),
            "run before": before,
        }
        ordered = {section: record[section] for section in SECTIONS if section in record}
        paths.write_atomically(output, json.dumps(ordered, indent=1) + "\n")
        print(_report(name, entries), flush=True)
    return int(failed)


def _headlines(entries: Mapping[str, Entry]) -> dict[str, float]:
    """Of what has a number as target, the ratio; the seconds where there is none."""
    aimed = {name: found for name, found in entries.items() if not np.isnan(limit_of(found))}
    return {name: found["ratio" if "ratio" in found else "ours_s"] for name, found in aimed.items()}


def _report(section: str, entries: Mapping[str, Entry]) -> str:
    lines = [f"{section}:"]
    for name, found in entries.items():
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in found.items()}
        lines.append(f"  {name}: " + ", ".join(f"{k} {v}" for k, v in shown.items()))
    return "\n".join(lines)


def _computer(options: Options) -> dict[str, Any]:
    """What the times depend on, without anything that names this very computer."""
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "threads": options.threads,
        "clock": "processor time" if options.cpu_time else "wall",
        "repeats": len(options.rounds),
        "python": platform.python_version(),
        **library_versions(LIBRARIES),
    }


def _in_process(call: str, options: Options) -> Entry:
    code = f"import json; from bench import measure; print(json.dumps(measure.{call}))"
    return _json_from([sys.executable, "-c", code], options)


def _json_from(command: Sequence[str], options: Options) -> Entry:
    """The JSON that a process prints last, or the error that it ends with."""
    threads = str(options.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=7200, env=environment, cwd=paths.ROOT
        )
        if done.returncode == 0:
            return json.loads(done.stdout.strip().splitlines()[-1])
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError) as error:
        lines = [f"{type(error).__name__}: {error}"]
    return {"error": lines[-1]}


def _peak_bytes() -> int:
    """Largest resident size of this process so far."""
    try:  # what getrusage says of a new process can be its parent's
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    try:
        from pyarrow import Table, csv
    except ImportError:
        frame.to_csv(path, index=False)
        return
    csv.write_csv(Table.from_pandas(frame, preserve_index=False), path)


def _rounded(value: Any) -> Any:
    """Four significant digits: what repeats of a measurement agree in at best."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _bar(items: Any, what: str) -> Any:
    return tqdm(items, desc=what, disable=None, leave=False)
