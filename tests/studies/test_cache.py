"""The same fit is done once, and anything that could change it is another fit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dlcf.fast
from dlcf.models.baselines import Bias
from dlcf.paper.fits import Fit, fitted
from dlcf.registry import available, make
from dlcf.runtime import paths
from dlcf.studies import ablation, cache
from dlcf.studies.compare import TABLES, Job, study

SETTINGS: dict[str, Any] = {"epochs": 2, "factors": 4, "seed": 0}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's source."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(cache.PACKAGE, tmp_path / "dlcf", ignore=ignored))


def test_a_fit_is_done_once(
    tmp_path: Path, toy_ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    first = cache.fit_cached("mf", toy_ratings, **SETTINGS)
    assert len(list((tmp_path / "models").iterdir())) == 1
    monkeypatch.setattr(type(first), "fit", None)  # a second fit would fail
    again = cache.fit_cached("mf", toy_ratings, **SETTINGS)
    assert np.array_equal(first.predict(toy_ratings), again.predict(toy_ratings))
    for changed in ({"seed": 1}, {"epochs": 3}):
        with pytest.raises(TypeError):
            cache.fit_cached("mf", toy_ratings, **{**SETTINGS, **changed})
    with pytest.raises(TypeError):
        cache.fit_cached("mf", toy_ratings[1:], **SETTINGS)
    monkeypatch.setattr(cache, "code_version", lambda model: "another")
    with pytest.raises(TypeError):
        cache.fit_cached("mf", toy_ratings, **SETTINGS)


def test_the_key_holds_all_that_a_fit_depends_on(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(movies: pd.DataFrame = toy_movies, **settings: Any) -> str:
        return cache.fit_key(make("mf", **{**SETTINGS, **settings}), toy_ratings, movies=movies)

    keys = [key(), key(seed=1), cache.fit_key(make("bias"), toy_ratings, movies=toy_movies)]
    for column in ("title", "year", "genres"):
        values = [toy_movies[column][0], *toy_movies[column][:-1]]
        keys.append(key(toy_movies.assign(**{column: values})))
    keys.append(cache.fit_key(make("mf", **SETTINGS), toy_ratings, toy_ratings[:9], toy_movies))
    with dlcf.fast.disabled():
        keys.append(key())
    for library in ("numba", "torch", "implicit"):
        with monkeypatch.context() as patch:
            installed = cache.library_versions(cache.LIBRARIES)
            patch.setattr(cache, "library_versions", lambda _, own={**installed, library: "0"}: own)
            keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr("torch.get_num_threads", lambda: 7)
        keys.append(key())
    assert len(set(keys)) == len(keys)
    assert keys[0] == key()


def test_a_models_code_is_all_that_it_is_made_of() -> None:
    """Also modules that only its parts use; but not those of other models."""
    modules = {name: cache.import_closure({type(make(name)).__module__}) for name in available()}
    expected = {f"dlcf.{name}" for name in ("models", "models.base", "training", "ratings")}
    assert all(expected - {"dlcf.training"} <= found for found in modules.values())
    assert expected | {"dlcf.variants.networks", "dlcf.models.deepcf"} <= modules["deepcf"]
    assert "dlcf.plus.evidence" not in modules["deepcf"]
    assert "dlcf.plus.evidence" in modules["deepcf-plus"]
    assert not {"dlcf", "dlcf.registry"} & modules["deepcf"]


@pytest.mark.parametrize("model", ["deepcf", "mf", "item-knn"])
def test_the_version_follows_what_comes_in_by_a_hook(model: str, package: Path) -> None:
    """No import leads from a model to its faster training step."""
    kind = type(make(model))
    before = cache.code_version(kind, package=package)
    assert before == cache.code_version(kind)
    versions = {before}
    names = [f"fast/{path.name}" for path in (package / "fast").glob("*.py")]
    assert "fast/__init__.py" in names and len(names) > 4
    for name in [*names, "training.py", "models/base.py", "ratings.py"]:
        with (package / name).open("a") as file:
            file.write("\n# changed\n")
        cache.code_version.cache_clear()
        versions.add(cache.code_version(kind, package=package))
    assert len(versions) == len(names) + 4
    with (package / "plus" / "evidence.py").open("a") as file:
        file.write("\n# changed\n")
    cache.code_version.cache_clear()
    assert cache.code_version(kind, package=package) in versions


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    sources = {
        "room/__init__.py": "",
        "room/model.py": "from . import near\ndef f():\n    import dlcf.other.late",
        "room/near.py": "import numpy",
        "other/__init__.py": "from dlcf.top import name, another",
        "other/late.py": "from ..room.model import f",
        "top.py": "",
        "unused.py": "",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    found = cache.import_closure({"dlcf.room.model"}, tmp_path)
    names = ("room", "room.model", "room.near", "other", "other.late", "top")
    assert found == {f"dlcf.{name}" for name in names}


def test_a_name_stands_for_its_module_alone(package: Path) -> None:
    before = cache.code_version("splits", "analysis.beyond", package=package)
    (package / "metrics.py").write_text("")
    cache.code_version.cache_clear()
    assert cache.code_version("splits", "analysis.beyond", package=package) == before
    (package / "analysis" / "beyond.py").write_text("")
    cache.code_version.cache_clear()
    assert cache.code_version("splits", "analysis.beyond", package=package) != before
    with pytest.raises(ValueError, match=r"no module dlcf\.beyond"):
        cache.code_version("beyond", package=package)


Use = Callable[[], Any]


@pytest.fixture(params=["models", "studies", "paper", "ablation"])
def use(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    toy_ratings: pd.DataFrame,
    toy_movies: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> Use:
    """What is kept in each folder of the cache, as plain values; little of it is fitted."""
    data = tmp_path / "toy"
    data.mkdir()
    toy_ratings.to_csv(data / "ratings.csv", index=False)
    movies = toy_movies.assign(genres=toy_movies["genres"].str.join("|"))
    movies.to_csv(data / "movies.csv", index=False)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")

    def of_a_study() -> Any:
        found = study(Job("bias", str(data), "random", 0))["bias"]
        return found["numbers"], *(found[name].reset_index().to_dict("list") for name in TABLES)

    def of_the_paper() -> Any:
        small = {"epochs": 1, "embedding_size": 4, "hidden": (6,), "dropout": (0.1,)}
        found = fitted(Fit(str(data), "random", 0, small))
        predicted = {which: values.tolist() for which, values in found.predicted.items()}
        return predicted, found.history, found.train_error

    class Whole(Bias):
        def variant(self, wanted: ablation.Variant) -> Whole:
            return self

    monkeypatch.setattr(ablation, "AblatedDeepCFPlus", lambda **_: Whole())
    monkeypatch.setattr(ablation, "DeepCF", lambda seed, weights: Whole())
    monkeypatch.setattr(ablation, "DeepCFPlus", Whole)
    monkeypatch.setattr(ablation, "code_version", lambda *_: "code")
    monkeypatch.setattr(ablation, "_ranking", lambda *_: {"nothing": 0.5})
    return {
        "models": lambda: (
            cache.fit_cached("mf", toy_ratings, **SETTINGS).predict(toy_ratings).tolist()
        ),
        "studies": of_a_study,
        "paper": of_the_paper,
        "ablation": lambda: ablation.run_seed(str(data), ("random", 0)),
    }[request.param]


def warnings_of(use: Use) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = use()
    return found, [str(item.message) for item in caught]


DAMAGES = ["cut", "altered", "no tensors", "no model.json", "no JSON", "empty"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_computed_anew_and_replaced(
    damage: str, use: Use, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlcf.runtime.saving.TRIES", 1)
    first = use()
    (kept,) = paths.CACHE.glob(f"{request.node.callspec.params['use']}/**/model.json")
    (tensors,) = kept.parent.glob("*.safetensors")
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-3])
    elif damage == "altered":
        kept.write_text(kept.read_text().replace("0.", "1."))
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "no model.json":
        kept.unlink()
    else:
        kept.write_text("{" if damage == "no JSON" else "")
    again, texts = warnings_of(use)
    if damage == "no model.json":  # it was killed before all was written
        assert not texts
    else:
        assert len(texts) == 1 and str(kept.parent) in texts[0] and "\n" not in texts[0]
    assert again == first
    written = kept.stat().st_ino
    assert warnings_of(use) == (first, []) and kept.stat().st_ino == written


@pytest.mark.parametrize("problem", [PermissionError("denied"), OSError(30, "Read-only"), None])
def test_where_the_cache_cannot_be_written_what_is_computed_is_returned(
    problem: OSError | None, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = use()

    def refuse(*_: Any, **__: Any) -> None:
        raise problem or AssertionError

    monkeypatch.setattr(paths, "CACHE", paths.CACHE / "none")
    if problem is None:
        paths.CACHE.write_text("a file")
    else:
        monkeypatch.setattr(cache.FileLock, "acquire", refuse)
        monkeypatch.setattr("dlcf.runtime.saving.write_atomically", refuse)
    found, texts = warnings_of(use)
    assert found == expected
    assert texts and all("not kept" in text for text in texts)


def test_a_cache_that_cannot_be_written_is_read(
    tmp_path: Path, toy_ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(paths, "CACHE", tmp_path)
    first = cache.fit_cached("mf", toy_ratings, **SETTINGS)
    monkeypatch.setattr(cache.FileLock, "acquire", refuse)
    monkeypatch.setattr(type(first), "fit", None)
    cache.fit_cached("mf", toy_ratings, **SETTINGS)


PROGRAM = """
import sys
import pandas as pd, torch
from dlcf.models.mf import MatrixFactorization as Model
from dlcf.studies import cache
torch.set_num_threads(1)
fit = Model.fit
def counted(self, *arguments):
    print("fitted", flush=True)
    return fit(self, *arguments)
Model.fit = counted
train = pd.read_csv(sys.argv[1]).astype({"rating": "float32"})
print(cache.fit_cached("mf", train, epochs=60, factors=4, seed=0).predict(train).sum())
"""


def test_two_that_fit_the_same_at_once_fit_once(tmp_path: Path, toy_ratings: pd.DataFrame) -> None:
    toy_ratings.to_csv(tmp_path / "ratings.csv", index=False)
    known = {"PYTHONPATH": str(paths.ROOT), "DLCF_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "ratings.csv")]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | known}
    running = [subprocess.Popen(command, **options) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0].split() for process in running]
    assert sorted(map(len, printed)) == [1, 2]
    assert printed[0][-1] == printed[1][-1]
