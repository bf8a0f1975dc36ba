"""The package as others install it: its wheel, its requirements, and what importing it costs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from dlcf import __version__
from dlcf.runtime import paths

# What an installation without extras lacks.
EXTRAS_ONLY = (
    "captum implicit IPython ipywidgets matplotlib myfm nbformat optuna papermill pyarrow seaborn"
)
JOURNEY = """
import os
import sys
from pathlib import Path

import numpy as np
import platformdirs

import dlcf

assert Path(sys.prefix) in Path(dlcf.__file__).parents, dlcf.__file__

ratings, movies = dlcf.load_ratings("ml-latest-small"), dlcf.load_movies("ml-latest-small")
assert len(ratings) == 1500 and movies["genres"].iloc[1] == ["Drama", "Comedy"]
train, test = dlcf.split(ratings, "random", test_size=0.2, seed=0)
user, movie = int(test["userId"].iloc[0]), int(test["movieId"].iloc[0])
for name, options in {"bias": {}, "deepcf": {"seed": 0, "epochs": 1}}.items():
    model = dlcf.make(name, **options).fit(train, movies=movies)
    assert len(model.recommend(user, k=5)) == 5
    model.save(f"{name}-model")
    again = dlcf.load_model(f"{name}-model")
    np.testing.assert_array_equal(again.predict(test), model.predict(test))
explanation = model.explain(user, movie)
assert 0 <= explanation.strength <= 1
assert abs(explanation.user_weight + explanation.movie_weight - 1) < 1e-6
assert dlcf.evaluate(model, train, test, protocol="full", k=5)

from dlcf.runtime import paths

assert paths.DATA == platformdirs.user_data_path("dlcf"), paths.DATA
assert paths.CACHE == platformdirs.user_cache_path("dlcf"), paths.CACHE
for folder in (paths.RUNS, paths.RESULTS, paths.FIGURES):
    assert folder.parent == Path.cwd(), folder
assert sorted(os.listdir()) == ["bias-model", "deepcf-model"]
"""


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    """Output of a command that knows neither this checkout nor its data."""
    foreign = ("PYTHONPATH", "PYTHONHOME", "DLCF_DATA_DIR", "DLCF_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout gets no build folder and lends no old one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("dlcf", "bench", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(paths.ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(paths.ROOT / name, source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    run(sys.executable, "-m", "pip", *build, "--wheel-dir", folder, source, folder=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment with the wheel and, of other packages, those it requires.

    They are the ones of the running environment; a checkout that is installed there stays unknown,
    because the .pth files of a folder named in a .pth file are not read.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=os.name != "nt")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = ["--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    run(sys.executable, "-m", "pip", *install, folder=folder)
    own = next(folder.rglob("site-packages"))
    for name in EXTRAS_ONLY.split():
        (own / f"{name}.py").write_text(f'raise ModuleNotFoundError("{name} is left out")')
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "shared.pth").write_text("\n".join(shared))
    return python.parent


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = next(name for name in names if name.endswith("/entry_points.txt"))
        assert "dlcf = dlcf.cli:main" in archive.read(entry_points).decode()
    assert {"dlcf/py.typed", "dlcf/studies/spaces.toml"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"dlcf", f"dlcf-{__version__}.dist-info"}
    sources = {path.relative_to(paths.ROOT) for path in paths.ROOT.glob("dlcf/**/*.py")}
    assert {Path(name) for name in names if name.endswith(".py")} == sources


def test_it_works_in_an_empty_folder(
    installed: Path, tmp_path: Path, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    data = tmp_path / "data" / "ml-latest-small"
    data.mkdir(parents=True)
    toy_ratings.to_csv(data / "ratings.csv", index=False)
    titles = toy_movies["title"] + " (" + toy_movies["year"].astype(str) + ")"
    genres = toy_movies["genres"].str.join("|")
    toy_movies.assign(title=titles, genres=genres).to_csv(data / "movies.csv", index=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"DLCF_DATA_DIR": str(data.parent), "HOME": str(tmp_path / "home")}
    run(installed / "python", "-c", JOURNEY, folder=empty, **places)


def test_the_command_works_without_the_extras(installed: Path, tmp_path: Path) -> None:
    text = run(installed / "dlcf", "--help", folder=tmp_path)
    for command in ("run", "train", "compare", "tune", "ablation"):
        assert re.search(rf"\b{command}\b", text), text


def test_importing_it_loads_nothing_heavy(installed: Path, tmp_path: Path) -> None:
    script = "import sys; before = set(sys.modules); import dlcf; print(*set(sys.modules) - before)"
    loaded = run(installed / "python", "-c", script, folder=tmp_path).split()
    assert "dlcf" in loaded
    assert not {"torch", "numba", "numpy", "pandas", "scipy"} & set(loaded)


# --------------------------------------------------------------------------------- requirements


def test_the_supported_pythons_are_said_the_same_everywhere() -> None:
    settings = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())
    allowed = SpecifierSet(settings["project"]["requires-python"])
    supported = [f"3.{minor}" for minor in range(50) if allowed.contains(f"3.{minor}.9")]
    named = [line.split(" :: ")[-1] for line in settings["project"]["classifiers"]]
    assert supported and [name for name in named if name.startswith("3.")] == supported
    assert settings["tool"]["mypy"]["python_version"] == supported[0]
    assert settings["tool"]["ruff"]["target-version"] == f"py{supported[0].replace('.', '')}"
    assert f"--python-version {supported[0]} " in (paths.ROOT / "Makefile").read_text()
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (paths.ROOT / document).read_text(encoding="utf-8")
        assert f"Python {supported[0]} to {supported[-1]}" in text, document


def required(*left_out: str) -> list[Requirement]:
    """What pyproject.toml asks for, in its dependencies and its extras but for those left out."""
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(left_out) < set(extras)
    texts = [text for extra in extras if extra not in left_out for text in extras[extra]]
    return [Requirement(text) for text in [*project["dependencies"], *texts]]


def exact(requirement: Requirement) -> str:
    """The one version that a requirement allows."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, str(requirement)
    return specifier.version


def locked() -> list[Requirement]:
    return [
        Requirement(line)
        for line in (paths.ROOT / "requirements.lock").read_text().split("\n")
        if line
    ]


def environment() -> tuple[str, dict[str, str]]:
    """Version of Python, and of every package, in environment.yml."""
    text = (paths.ROOT / "environment.yml").read_text()
    (python,) = re.findall(r"^  - python=([\d.]+)$", text, re.MULTILINE)
    pins = [Requirement(line) for line in re.findall(r"^      - ([^-\n].*)$", text, re.MULTILINE)]
    versions = {canonicalize_name(pin.name): exact(pin) for pin in pins}
    assert len(versions) == len(pins)
    return python, versions


def test_the_environment_pins_exactly_what_the_project_names() -> None:
    """But for what only the bench and sweeps need, which is much and is installed by hand."""
    _, versions = environment()
    assert len(versions) >= 12
    assert set(versions) == {canonicalize_name(item.name) for item in required("bench", "sweep")}


def test_the_environment_has_the_versions_of_the_lock() -> None:
    python, versions = environment()
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    lock = {
        canonicalize_name(item.name): exact(item)
        for item in locked()
        if item.marker is None or item.marker.evaluate(here)
    }
    assert len(lock) > 100
    assert versions == {name: lock[name] for name in versions}


def test_every_version_of_the_lock_is_in_the_range_asked_for() -> None:
    for requirement in required():
        operators = [specifier.operator for specifier in requirement.specifier]
        assert sorted(operators) == ["<", ">="], f"{requirement} is no range"
        name = canonicalize_name(requirement.name)
        versions = [exact(item) for item in locked() if canonicalize_name(item.name) == name]
        assert versions, f"{name} is not in requirements.lock"
        for version in versions:
            assert requirement.specifier.contains(version), f"{requirement}, but {version}"
