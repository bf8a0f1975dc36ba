"""Tables of `results/bench.json`, which ``make bench`` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dlcf.runtime import paths

__all__ = [
    "RECORD",
    "limit_of",
    "load_bench",
    "measured_costs",
    "ratio_table",
    "seconds_table",
    "size_table",
    "vocabulary_table",
]

RECORD = paths.RESULTS / "bench.json"

Entry = dict[str, Any]


def load_bench(path: Path | None = None) -> dict[str, Any]:
    """What was measured: section -> ``machine`` and ``entries``."""
    return json.loads((path or RECORD).read_text(encoding="utf-8"))


def ratio_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Every comparison that has two sides, for :func:`dlcf.notebook.plots.bench` and for reading.

    Returns
    -------
    DataFrame
        Index: what is compared; columns ``ours_s``, ``reference_s``, ``ratio`` (reference / ours),
        ``before`` (the ratio in the run before, NaN where there was none), ``target`` (the least
        ratio wanted) and ``met``.
    """
    rows = {}
    for name, found, before in _with_limit(record):
        if "ratio" in found:
            limit = limit_of(found)
            target = limit if "ratio >=" in found["target"] else 1 / limit
            columns = {key: found[key] for key in ("ours_s", "reference_s", "ratio", "met")}
            rows[name] = {**columns, "before": before, "target": target}
    return pd.DataFrame.from_dict(rows, orient="index")


def seconds_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """What is to take no more than some time, beside nothing.

    Returns
    -------
    DataFrame
        Index: what is measured; columns ``ours_s``, ``before`` (the seconds in the run before, NaN
        where there was none), ``target`` (the most seconds wanted) and ``met``.
    """
    rows = {
        name: {
            "ours_s": found["ours_s"],
            "before": before,
            "target": limit_of(found),
            "met": found["met"],
        }
        for name, found, before in _with_limit(record)
        if "ratio" not in found
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _with_limit(record: Mapping[str, Any]) -> Iterator[tuple[str, Entry, float]]:
    """Name, entry and the run before of all with a number as target, section by section."""
    for measured in record.values():
        for name, found in measured["entries"].items():
            if not np.isnan(limit_of(found)):
                yield name, found, measured["run before"].get(name, float("nan"))


def limit_of(found: Entry) -> float:
    """The number at the end of the target, as :func:`entry` writes it; NaN where there is none."""
    number = re.search(r"[<>]= ([\d.]+)$", found.get("target", ""))
    return float(number[1]) if number else float("nan")


def size_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Cost by size: a row for each model and number of ratings that was measured."""
    rows = [
        {"model": name.split(",")[0], **found}
        for name, found in record.get("scale", {}).get("entries", {}).items()
        if "error" not in found
    ]
    columns = ["model", "ratings", "users", "movies", "parameters", "batch_size", "fit_s", "rank_s"]
    return pd.DataFrame(rows, columns=[*columns, "peak_bytes", "bound_bytes"])


def vocabulary_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """A step's milliseconds by model and number of users and movies.

    Returns
    -------
    DataFrame
        Columns ``model``, ``rows``, ``ours_ms``, ``dense_ms`` and ``settling_ms``, what bringing
        all rows up to date takes once an epoch.
    """
    entries = record.get("vocabulary", {}).get("entries", {}).values()
    rows = [
        {
            "model": found["model"],
            "rows": found["rows"],
            "ours_ms": 1000 * found["ours_s"],
            "dense_ms": 1000 * found["reference_s"],
            "settling_ms": 1000 * found["settling_s"],
        }
        for found in entries
        if "error" not in found
    ]
    return pd.DataFrame(rows, columns=["model", "rows", "ours_ms", "dense_ms", "settling_ms"])


def measured_costs(path: Path = RECORD) -> pd.Series:
    """Milliseconds by method, as they were measured; empty where nothing was."""
    record = load_bench(path) if path.is_file() else {}
    entries = record.get("explain", {}).get("entries", {})
    return pd.Series({n: e["ms"] for n, e in entries.items() if "ms" in e}, dtype=float)
