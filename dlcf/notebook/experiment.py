"""What a notebook needs around its story: checked parameters, cached models, kept outputs."""

from __future__ import annotations

import ast
import html
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
from IPython.display import display
from matplotlib.figure import Figure

from dlcf.data import is_available
from dlcf.notebook.plots import SCREEN_DPI, figure_bytes, use_style
from dlcf.plus.deepcf_plus import DeepCFPlus
from dlcf.runtime import paths
from dlcf.splits import SPLITS
from dlcf.studies.cache import fit_cached
from dlcf.studies.results import SPLITS as COMPARED
from dlcf.studies.train import set_default_threads

CHECK = "DLCF_CHECK_RESULTS"
OUTPUT = "DLCF_OUTPUT_DIR"
# Last word of a parameter's name -> the least that it can be.
LEAST = {"SEED": 0, "EPOCHS": 1, "FACTORS": 1, "K": 1, "MODELS": 2, "SIZE": 1, "USERS": 1}
LEAST["WEIGHT"] = 0
BELOW = 2**32  # NumPy's older generators take no larger seed
CHOICES = {"SPLIT": SPLITS, "PRESET": tuple(DeepCFPlus.PRESETS)}
CHOICES["07_beyond_accuracy SPLIT"] = COMPARED


def read_parameters(notebook: str) -> dict[str, Any]:
    """Names and stored values of the `parameters` cell of a notebook, named without its ending.

    ValueError where there is no such notebook, or it has no cell tagged `parameters`.
    """
    path = paths.NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in paths.NOTEBOOKS.glob("*.ipynb")))
        raise ValueError(f"no notebook {notebook!r} in {paths.NOTEBOOKS.name}/; there are {known}")
    for cell in nbformat.read(path, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            return {
                ast.unparse(statement.targets[0]): ast.literal_eval(statement.value)
                for statement in _assignments(cell.source)
            }
    raise ValueError(f"{path.name} has no cell tagged 'parameters'")


def check_parameters(notebook: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError where a given parameter is unknown, of a wrong type or a wrong value."""
    stored = read_parameters(notebook)
    unknown = sorted(set(given) - set(stored))
    if unknown:
        raise ValueError(
            f"{notebook} has no parameter {', '.join(unknown)}; it takes {', '.join(stored)}"
        )
    for name, value in given.items():
        wanted = type(stored[name])
        if type(value) is not wanted and (wanted, type(value)) != (float, int):
            raise ValueError(
                f"{notebook}: {name} is {value!r}; give {wanted.__name__}, such as {stored[name]!r}"
            )
        least = LEAST.get(name.split("_")[-1])
        if least is not None and not value >= least:
            raise ValueError(f"{notebook}: {name} is {value}; give {least} or more")
        if wanted in (int, float) and not abs(value) < BELOW:
            raise ValueError(f"{notebook}: {name} is {value}; give a number below {BELOW}")
        choices = CHOICES.get(f"{notebook} {name}", CHOICES.get(name))
        if choices and value not in choices:
            raise ValueError(f"{notebook}: {name} is {value!r}; give one of {', '.join(choices)}")
        if name == "DATASET":
            try:
                is_available(value)
            except ValueError as error:
                raise ValueError(f"{notebook}: DATASET: {error}") from None


def start(notebook: str, namespace: Mapping[str, Any]) -> Run:
    """Begin a notebook: check its parameters, fix the thread count, set the style.

    `notebook` is the file's name without its ending, `namespace` its ``globals()``, right after the
    parameters.
    """
    names = set(read_parameters(notebook))
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):  # papermill's
            names |= {ast.unparse(s.targets[0]) for s in _assignments(source)}
    check_parameters(notebook, {name: namespace[name] for name in sorted(names)})
    # The same numbers on a machine of any size; batches of 64 rows are too small to gain from more.
    set_default_threads()
    use_style()
    run = Run(notebook, {name: namespace[name] for name in read_parameters(notebook)})
    if run.is_default:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is committed was computed without
    else:
        print("These are not the stored parameters: tables and figures are of this run, the text")
        print("and the numbers in it are of the stored one.")
    return run


def output_folder(notebook: str, parameters: Mapping[str, Any]) -> Path:
    """Folder whose `figures/` and `results/` a run with these parameters writes.

    The repository itself where all have their stored values, else a folder in `runs/` that is
    named after those which have not; the environment variable DLCF_OUTPUT_DIR names another.
    """
    if os.environ.get(OUTPUT):
        return paths.path(os.environ[OUTPUT])
    stored = read_parameters(notebook)
    changed = [f"{k}={v}" for k, v in sorted(parameters.items()) if v != stored[k]]
    if not changed:
        return paths.ROOT
    return paths.RUNS / paths.file_name("-".join([notebook, *changed]))


class Run:
    """One execution of a notebook.

    With the stored parameters, figures and results go to `figures/` and `results/`; with any
    other, to a folder of their own under `runs/`, so that an experiment never replaces them.
    """

    fit = staticmethod(fit_cached)  # a model by name, which is not fitted twice

    def __init__(self, notebook: str, parameters: dict[str, Any]) -> None:
        self.notebook = notebook
        self.parameters = parameters
        self.is_default = parameters == read_parameters(notebook)
        self.folder = output_folder(notebook, parameters)

    def save_figure(self, figure: Figure, name: str, alt: str = "") -> None:
        """Write `figures/NAME.pdf` and `.png`, show the figure below the cell, and close it.

        `alt` says what the figure shows to those who do not see it. JupyterLab shows no alternative
        texts of images, so it stands below the figure too, folded.
        """
        for ending in ("pdf", "png"):
            content = figure_bytes(figure, ending)
            if not _checking():
                paths.write_atomically(self.folder / "figures" / f"{name}.{ending}", content)
        shown = {"image/png": figure_bytes(figure, "png", SCREEN_DPI), "text/plain": alt}
        display(shown, metadata={"image/png": {"alt": alt}}, raw=True)
        if alt:
            text = f"<details><summary>The figure in words</summary>{html.escape(alt)}</details>"
            display({"text/html": text, "text/plain": alt}, raw=True)
        plt.close(figure)

    def record(self, numbers: Mapping[str, Any], tolerance: float = 1e-6) -> None:
        """Write the notebook's numbers to `results/NOTEBOOK.json`, with the parameters.

        They are nested mappings and lists of numbers and texts; floats are kept to 6 decimals.
        Where the environment variable DLCF_CHECK_RESULTS is set and the parameters are the stored
        ones, nothing is written: the numbers are compared with the file, and AssertionError lists
        those that differ by more than `tolerance`. Closed-form numbers keep the default; those of
        trained networks differ between processors and need room for it.
        """
        path = self.folder / "results" / f"{self.notebook}.json"
        content = {"parameters": self.parameters, "numbers": _rounded(numbers)}
        if _checking() and self.is_default:
            kept = json.loads(path.read_text(encoding="utf-8"))
            drift = "\n".join(_differences(kept, content, tolerance))
            assert not drift, f"{path.name} does not hold what the notebook computes:\n{drift}"
        elif not _checking():
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            paths.write_atomically(path, text)
        print(f"results/{path.name}: {sum(1 for _ in _leaves(content['numbers']))} values")


def _assignments(source: str) -> list[ast.Assign]:
    return [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]


def _checking() -> bool:
    return os.environ.get(CHECK, "") not in ("", "0")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return round(value, 6) if isinstance(value, float) else value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}[{index}]")
    else:
        yield name, value


def _differences(kept: Any, found: Any, tolerance: float) -> Iterator[str]:
    old, new = dict(_leaves(kept)), dict(_leaves(found))
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            yield f"{name}: only in {'the file' if name in old else 'the notebook'}"
        elif isinstance(old[name], float) and isinstance(new[name], (int, float)):
            if not abs(old[name] - new[name]) <= tolerance:
                yield f"{name}: {old[name]} in the file, {new[name]} in the notebook"
        elif old[name] != new[name]:
            yield f"{name}: {old[name]!r} in the file, {new[name]!r} in the notebook"
