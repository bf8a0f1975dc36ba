"""Tables of README and docs/ from `results/`: ``python -m dlcf.notebook.report`` makes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import groupby
from operator import getitem
from pathlib import Path
from typing import Any

from dlcf.notebook.bench_tables import load_bench, ratio_table, seconds_table
from dlcf.runtime import paths
from dlcf.studies.compare import RELATED, RELATED_NAME, load_comparison

HEADLINE = "04_evaluation"
PAGES = ("README.md", "docs/speed.md")
# What a model knows of a rating that it predicts, where it is more than the two ids.
READS = {
    **dict.fromkeys(("cdl", "cke", "deepconn", "mda-cf"), "ids, title, genres, year"),
    "fm-side": "ids, genres, year, day",
    "deepcf-plus": "ids, genres, year, second",
    "deepcf-plus, days": "ids, genres, year, day",
}
# They predict ratings as `bias` does.
ONLY_RANK = {"popular", "ials", "ease", "ease, per split", "rp3beta", *RELATED}
ONLY_RANK -= {"deepconn", "mda-cf"}
GROUPS = ("ours", "the paper's network", "its related work, and what came after it", "baselines")


def headline_table(results: Path | None = None) -> str:
    """Models by rows, splits and protocols by columns, in Markdown.

    `results` is what a run of notebook 04 wrote; the committed file by default.
    """
    results = results or paths.RESULTS / f"{HEADLINE}.json"
    content = json.loads(results.read_text(encoding="utf-8"))
    splits, k = content["numbers"]["splits"], content["parameters"]["K"]
    ranked = [name for name in splits if name != "global-temporal"]
    header = [f"RMSE, {name}" for name in splits] + [f"NDCG@{k} full, {name}" for name in ranked]
    rows = []
    for model in next(iter(splits.values()))["models"]:
        found = {name: splits[name]["models"][model] for name in splits}
        values = [found[name]["rmse"] for name in splits]
        values += [found[name]["full"][f"ndcg@{k}"] for name in ranked]
        rows.append([model, *(f"{value:.3f}" for value in values)])
    return _markdown(["model", *header], rows)


def comparison_table() -> str:
    """The comparison over seeds, by groups; lowest RMSE first, then what only ranks, without one.

    Means, and half the width of their 95% intervals over the seeds and over users.
    """
    splits = load_comparison()["splits"]
    splits = {how: part["models"] for how, part in splits.items() if how != "global-temporal"}
    beside = load_comparison(paths.RESULTS / RELATED_NAME)["splits"]
    for how, models in splits.items():
        models |= {m: of for m, of in beside[how]["models"].items() if m in RELATED}
    columns: list[Any] = [(how, f"RMSE, {how}", ("rmse",), "rmse") for how in splits]
    served = "parts", "all", "rmse, no times"
    columns.append(("user-temporal", "same, no times", served, "rmse, no times"))
    columns += [(how, f"NDCG@10, {how}", ("full", "ndcg"), "ndcg") for how in splits]
    first = next(iter(splits.values()))
    rows: list[list[str]] = []

    def place(model: str) -> tuple[int, bool, float]:
        ranks = model in ONLY_RANK
        of = first[model]
        return _group(model), ranks, -of["full"]["ndcg"][0] if ranks else of["rmse"][0]

    def cells(model: str) -> Iterator[str]:
        yield READS.get(model) or READS.get(re.sub(r"( \(|,).*", "", model), "ids")
        for how, _, names, over_users in columns:
            found = splits[how][model]
            users = found["over users"]  # times change nothing where there is no entry of them
            users = users.get(over_users, users.get(over_users.removesuffix(", no times")))
            cell = _interval(reduce(getitem, names, found), users)
            yield "–" if model in ONLY_RANK and "rmse" in over_users else cell

    for group, models in groupby(sorted(first, key=place), key=_group):
        rows.append([f"**{GROUPS[group]}**", *[""] * (1 + len(columns))])
        rows += [[model, *cells(model)] for model in models]
    return _markdown(["model", "reads", *(title for _, title, *_ in columns)], rows, texts=2)


def bench_table(path: Path | None = None) -> str:
    """What was measured of all that has a target: times, ratio and target.

    `path` is what ``python -m bench`` wrote; the committed file by default.
    """
    header = ["what", "plain way", "here", "times faster", "run before", "target"]
    rows = []
    record = load_bench(path)
    for name, found in ratio_table(record).iterrows():
        times = [_duration(found[key]) for key in ("reference_s", "ours_s")]
        ratios = [f"{found[key]:.2g}" for key in ("ratio", "before", "target")]
        rows.append([str(name), *times, *ratios])
    for name, found in seconds_table(record).iterrows():
        now, before, target = (_duration(found[key]) for key in ("ours_s", "before", "target"))
        rows.append([str(name), "–", now, "–", before, target])
    return _markdown(header, rows)


def with_tables(text: str) -> str:
    """A page's text with its tables made anew; ValueError where it has no place for any."""
    found = False
    for name, table in (("results", comparison_table), ("bench", bench_table)):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        block = re.compile(f"{begin}.*?{end}", re.DOTALL)
        if block.search(text):
            found, text = True, block.sub(f"{begin}\n{table()}\n{end}", text)
    if not found:
        raise ValueError("the page has no <!-- results:begin --> ... <!-- results:end -->")
    return text


def update_pages() -> None:
    """Rewrite the pages with generated tables in place."""
    for page in PAGES:
        path = paths.ROOT / page
        paths.write_atomically(path, with_tables(path.read_text(encoding="utf-8")))


def _group(model: str) -> int:
    """The place in `GROUPS` of a model, named as in a comparison."""
    if model.startswith("deepcf"):
        return int(not model.startswith("deepcf-plus"))
    return 2 if model in RELATED else 3


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.1f} s"
    return f"{1000 * seconds:.1f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2f} ms"


def _interval(over_seeds: Sequence[float], over_users: Sequence[float] | None) -> str:
    known = [interval for interval in (over_seeds, over_users) if interval is not None]
    halves = [f"{(high - low) / 2:.3f}" for _, low, high in known]
    return f"{over_seeds[0]:.3f} ± {' / '.join(halves)}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    rule = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


if __name__ == "__main__":
    update_pages()
