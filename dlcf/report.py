"""The README's tables, generated from `results/`: ``python -m dlcf.report`` rewrites them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dlcf import paths

__all__ = ["HEADLINE", "headline_table", "readme_with_tables", "update_readme"]

HEADLINE = "04_evaluation"
_BEGIN, _END = "<!-- results:begin -->", "<!-- results:end -->"


def headline_table(results: Path | None = None) -> str:
    """Models by rows, splits and protocols by columns, as a Markdown table.

    Parameters
    ----------
    results
        JSON file that notebook 04 wrote; the committed one by default.
    """
    results = results or paths.RESULTS / f"{HEADLINE}.json"
    numbers = json.loads(results.read_text(encoding="utf-8"))["numbers"]
    splits = numbers["splits"]
    header = ["model", *(f"RMSE, {name}" for name in splits)]
    header += [f"NDCG@10 full, {name}" for name in splits if name != "global-temporal"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for model in next(iter(splits.values()))["models"]:
        cells = [splits[name]["models"][model]["rmse"] for name in splits]
        cells += [
            splits[name]["models"][model]["full"]["ndcg@10"]
            for name in splits
            if name != "global-temporal"
        ]
        rows.append([model, *(f"{cell:.3f}" for cell in cells)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def readme_with_tables(readme: str) -> str:
    """The README's text with its results table made anew."""
    block = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
    if not block.search(readme):
        raise ValueError(f"README.md has no block between {_BEGIN} and {_END}; put it back")
    return block.sub(lambda _: f"{_BEGIN}\n{headline_table()}\n{_END}", readme)


def update_readme() -> None:
    """Rewrite README.md in place."""
    path = paths.ROOT / "README.md"
    paths.write_atomically(path, readme_with_tables(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    update_readme()
