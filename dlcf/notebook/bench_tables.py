"""Tables of `results/bench.json`, which ``make bench`` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dlcf.runtime import paths

RECORD = paths.RESULTS / "bench.json"
NONE = float("nan")

Entry = dict[str, Any]


def load_bench(path: Path | None = None) -> dict[str, Any]:
    """What was measured: section -> ``machine``, ``entries`` and the ``run before``."""
    return json.loads((path or RECORD).read_text(encoding="utf-8"))


def limit_of(found: Entry) -> float:
    """The number at the end of an entry's target; NaN where there is none."""
    number = re.search(r"[<>]= ([\d.]+)$", found.get("target", ""))
    return float(number[1]) if number else NONE


def ratio_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Every comparison that has two sides, indexed by what is compared.

    ``ours_s``, ``reference_s``, ``ratio`` (reference / ours), ``met``, ``before`` (the ratio in the
    run before, NaN where there was none) and ``target`` (the least ratio wanted).
    """
    table = _with_target(record, ["ours_s", "reference_s", "ratio", "met", "before", "target"])
    return table[table["ratio"].notna()]


def seconds_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """What is to take no more than some time, beside nothing, indexed by what is measured.

    ``ours_s``, ``before`` (the seconds in the run before, NaN where there was none), ``target``
    (the most seconds wanted) and ``met``.
    """
    table = _with_target(record, ["ours_s", "before", "target", "met", "ratio"])
    return table[table["ratio"].isna()].drop(columns="ratio")


def size_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Cost by size: a row for each model and number of ratings that was measured."""
    rows = [{"model": name.split(",")[0], **found} for name, found in _measured(record, "scale")]
    columns = ["model", "ratings", "users", "movies", "parameters", "batch_size", "fit_s", "rank_s"]
    return pd.DataFrame(rows, columns=[*columns, "peak_bytes", "bound_bytes"])


def vocabulary_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """A step's milliseconds by model and ``rows``, the number of users and movies.

    ``ours_ms``, ``dense_ms`` (by dense Adam), and ``settling_ms``, what bringing all rows up to
    date takes once an epoch.
    """
    names = {"ours_s": "ours_ms", "reference_s": "dense_ms", "settling_s": "settling_ms"}
    rows = [found for _, found in _measured(record, "vocabulary")]
    table = pd.DataFrame(rows, columns=["model", "rows", *names])
    return table.assign(**{name: 1000 * table[name] for name in names}).rename(columns=names)


def _measured(record: Mapping[str, Any], section: str) -> list[tuple[str, Entry]]:
    """Entries of a section, without those that ended in an error."""
    entries = record.get(section, {}).get("entries", {})
    return [(name, found) for name, found in entries.items() if "error" not in found]


def _with_target(record: Mapping[str, Any], columns: list[str]) -> pd.DataFrame:
    """All that has a number as target, section by section; targets of ratios are at least that."""
    rows = {}
    for section, measured in record.items():
        for name, found in _measured(record, section):
            limit = limit_of(found)
            if pd.notna(limit):
                target = 1 / limit if "reference <=" in found["target"] else limit
                before = measured["run before"].get(name, NONE)
                rows[name] = {"ratio": NONE, **found, "before": before, "target": target}
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
