"""Tables of README and docs/ from `results/`: ``python -m dlcf.notebook.report`` makes them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from dlcf.notebook.bench_tables import load_bench, ratio_table, seconds_table
from dlcf.runtime import paths
from dlcf.studies.compare import load_comparison

HEADLINE = "04_evaluation"
PAGES = ("README.md", "docs/speed.md")
ONLY_RANK = ("popular", "ials", "ease", "rp3beta")  # they predict ratings as `bias` does


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
    """The comparison over seeds: means and half widths of their 95% intervals, lowest RMSE first.

    Models that only rank come last, without RMSE.
    """
    splits = load_comparison()["splits"]
    splits = {how: part for how, part in splits.items() if how != "global-temporal"}
    header = ["model", *(f"RMSE, {name}" for name in splits), *(f"NDCG@10, {n}" for n in splits)]
    first = next(iter(splits.values()))["models"]
    rows = []
    for model in sorted(first, key=lambda name: (name in ONLY_RANK, first[name]["rmse"][0])):
        found = [part["models"][model] for part in splits.values()]
        errors = ["–" if model in ONLY_RANK else _interval(one["rmse"]) for one in found]
        rows.append([model, *errors, *(_interval(one["full"]["ndcg"]) for one in found)])
    return _markdown(header, rows)


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


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.1f} s"
    return f"{1000 * seconds:.1f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2f} ms"


def _interval(value: Sequence[float]) -> str:
    return f"{value[0]:.3f} ± {value[2] - value[0]:.3f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


if __name__ == "__main__":
    update_pages()
