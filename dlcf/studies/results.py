"""What studies share: splits, seeds, options, results files, and what numbers come from."""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dlcf import splits
from dlcf.data import load_ratings
from dlcf.ratings import fingerprint
from dlcf.runtime import paths
from dlcf.runtime.environment import git_state, library_versions, processor_name

DATASET = "ml-latest-small"  # the paper's
SPLITS = ("random", "user-temporal")  # those that studies report on
SEEDS = (0, 1, 2, 3, 4)
INTERVAL = ["mean", "low", "high"]
LIBRARIES = ("torch", "numpy", "pandas", "scipy", "myfm", "implicit")


def options(
    command: str,
    description: str | None,
    output: str,
    arguments: Sequence[str] | None,
    models: Iterable[str] = (),
    reported: Sequence[str] = SPLITS,
    more: Iterable[str] = (),
) -> argparse.Namespace:
    """What is given to a study that writes `output` to `results/`; over seeds and splits, if any.

    `more` are models that it studies on demand only.

    Exit status 2 where a name is given twice, which would narrow intervals; where a part of the
    study, or one of other data, does not name another file; and where there is another's file.
    """
    parser = argparse.ArgumentParser(prog=f"dlcf {command}", description=description)
    parser.add_argument("--dataset", default=DATASET)
    if reported:
        parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
        parser.add_argument("--splits", nargs="+", default=list(reported), choices=splits.SPLITS)
    if models:
        known = [*models, *more]
        parser.add_argument("--models", nargs="+", default=list(models), choices=known)
    if command == "compare":
        parser.add_argument("--tuned", nargs="?", const="", metavar="FILE", help="what tune found")
    parser.add_argument("--workers", type=int, default=None, help="processes; default: cores")
    parser.add_argument("--output", type=paths.path, default=paths.RESULTS / output)
    given = parser.parse_args(arguments)
    if reported and min(given.seeds) < 0:
        parser.error(f"--seeds holds {min(given.seeds)}; give 0 or more")
    whole = given.output.resolve() == parser.get_default("output").resolve()
    for name, value in vars(given).items():
        if isinstance(value, list) and len(set(value)) < len(value):
            parser.error(f"--{name} holds {' '.join(map(str, value))}; give each once")
        if whole and name not in ("workers", "output") and value != parser.get_default(name):
            parser.error(f"with --{name}, give another --output: {output} is of the whole study")
    if not _may_replace(given.output, Path(output).stem):
        parser.error(f"{given.output} is no result of dlcf {command}; give another --output")
    try:
        load_ratings(given.dataset)  # once: the processes find it where it then is
    except ValueError as error:
        parser.error(str(error))
    return given


def _may_replace(path: Path, study: str) -> bool:
    """Whether there is no file, or a result of `study`; an older one is known by its own name."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))["provenance"]
        return about.get("study", path.stem.split("-")[0]) == study
    except FileNotFoundError:
        return True
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def literal(text: str) -> Any:
    """What a user gave as a value: a Python literal where it is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def load_results(path: Path, command: str) -> dict[str, Any]:
    """A results file; FileNotFoundError says what ``make COMMAND`` writes where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run: make {command}")
    return json.loads(path.read_text(encoding="utf-8"))


def interval_frame(rows: dict[str, Any]) -> pd.DataFrame:
    """Intervals by label as a table: ``mean``, ``low``, ``high``."""
    return pd.DataFrame.from_dict(rows, orient="index", columns=INTERVAL)


def provenance(study: str, dataset: str, seeds: Iterable[int]) -> dict[str, Any]:
    """What computed the numbers of `study`: commit, versions, hardware, seeds, data's digest."""
    return {
        "study": study,
        **git_state(),
        "python": platform.python_version(),
        "libraries": library_versions(LIBRARIES),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {processor_name()}",
        "seeds": sorted(set(seeds)),
        "data sha256": {dataset: fingerprint(load_ratings(dataset))},
    }
