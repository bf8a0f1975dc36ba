"""What comes in is checked once, at the door; what fails leaves a model as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy_models import TINY, can_be_fitted

import dlcf
from dlcf.models.base import Recommender
from dlcf.registry import available, load_model, make
from dlcf.runtime.saving import read_folder, write_folder


def other_kinds(pairs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The same pairs in columns of other kinds."""
    kinds = ("str", "category", "Int64", ">i8", "float64", "object")
    return {kind: pairs.astype(kind) for kind in kinds}


def state(model: Recommender, ratings: pd.DataFrame) -> list[Any]:
    users = model.user_ids[:5]
    return [model.config, model.predict(ratings).tolist(), model.score_all(users).tolist()]


@pytest.mark.parametrize("name", ["bias", "mf", "deepcf", "deepcf-plus", "ease", "item-knn"])
def test_a_failed_fit_leaves_the_model_as_it_was(
    name: str, toy_ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(name, **TINY.get(name, {})).fit(toy_ratings)
    before = state(model, toy_ratings)
    learn = type(model)._fit

    def fails(self: Any, *arguments: Any) -> None:
        learn(self, *arguments)
        raise MemoryError("no more room")

    monkeypatch.setattr(type(model), "_fit", fails)
    with pytest.raises(MemoryError):
        model.fit(toy_ratings[toy_ratings["userId"] > 100])
    assert state(model, toy_ratings) == before


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("deepcf", "learning_rate", float("nan")),
        ("deepcf", "learning_rate", float("inf")),
        ("deepcf", "batch_size", 1),
        ("deepcf", "epochs", 2.5),
        ("deepcf", "epochs", True),
        ("deepcf", "early_stopping", "3"),
        ("deepcf", "early_stopping", 0),
        ("deepcf", "validation_fraction", -0.1),
        ("deepcf", "dropout", (0.1, 0.2, 0.3, 1.0)),
        ("deepcf", "hidden", "512"),
        ("deepcf", "hidden", (512, 0, 128, 64)),
        ("deepcf", "hidden", ()),
        ("deepcf", "weights", "finest"),
        ("deepcf", "seed", -1),
        ("deepcf", "device", None),
        ("mf", "factors", 0),
        ("mf", "regularization", -1.0),
        ("svdpp", "epochs", -1),
        ("bias", "user_damping", float("nan")),
        ("rp3beta", "alpha", 1e3),
        ("rp3beta", "beta", 1e3),
    ],
)
def test_absurd_settings_are_refused_by_name(name: str, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{setting} is .*; give "):
        make(name, **{setting: value})


def test_numpy_scalars_are_numbers(toy_ratings: pd.DataFrame, tmp_path: Path) -> None:
    settings = {"factors": np.int64(3), "learning_rate": np.float32(0.01), "epochs": np.int32(1)}
    model = make("mf", **settings).fit(toy_ratings)
    assert type(model.config["factors"]) is int and type(model.config["learning_rate"]) is float
    loaded = load_model(model.save(tmp_path / "m"))
    assert np.array_equal(loaded.predict(toy_ratings), model.predict(toy_ratings))


def test_weights_that_are_not_finite_are_an_error(toy_ratings: pd.DataFrame) -> None:
    model = make("mf", factors=3, epochs=30, learning_rate=1e38)
    with pytest.raises(ValueError, match=r"mf: \S+ is not finite after training"):
        model.fit(toy_ratings)


def test_predictions_and_scores_that_are_not_finite_are_an_error(
    toy_ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("bias").fit(toy_ratings)
    for bad in (np.nan, np.inf):
        monkeypatch.setattr(model, "_predict", lambda users, *_, bad=bad: np.full(len(users), bad))
        with pytest.raises(ValueError, match=r"^bias predicts what is not finite; fit the model"):
            model.predict(toy_ratings)
        for ask in (model.score_all, model.recommend_all):
            with pytest.raises(ValueError, match=r"^bias gives scores that are not finite; change"):
                ask([3])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_settings_that_no_score_withstands_are_an_error(toy_ratings: pd.DataFrame) -> None:
    model = make("deepcf-plus", **TINY["deepcf-plus"], rerank=1e39).fit(toy_ratings)
    with pytest.raises(ValueError, match=r"^deepcf-plus gives scores that are not finite"):
        model.recommend_all()
    with pytest.raises(ValueError, match="no rating of train reaches positive_threshold 9; lower"):
        make("ials", positive_threshold=9).fit(toy_ratings)


@pytest.mark.parametrize("name", available())
def test_timestamps_as_text_are_seconds(name: str, toy_ratings: pd.DataFrame) -> None:
    text = toy_ratings.assign(timestamp=toy_ratings["timestamp"].map(lambda t: f" {t}"))
    if name.startswith("fm") or name == "ials":
        pytest.skip("fitted the same way as the others")
    fitted = make(name, **TINY.get(name, {})).fit(toy_ratings)
    again = make(name, **TINY.get(name, {})).fit(text)
    assert np.array_equal(fitted.predict(toy_ratings), again.predict(text))


@pytest.mark.parametrize("how", ["random", "user-temporal", "global-temporal", "leave-last-out"])
def test_a_split_of_text_is_that_of_numbers(how: str, toy_ratings: pd.DataFrame) -> None:
    shorter = toy_ratings.assign(
        timestamp=toy_ratings["timestamp"] // (1 + 9 * (toy_ratings.index % 2))
    )
    text = shorter.astype(str)
    for right, found in zip(dlcf.split(shorter, how), dlcf.split(text, how), strict=True):
        pd.testing.assert_frame_equal(right, found)


WRONG_PAIRS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "infinite": lambda f: f.assign(timestamp=np.inf),
    "missing": lambda f: f.assign(timestamp=pd.NaT),
    "not a number": lambda f: f.assign(timestamp="yesterday"),
    "milliseconds": lambda f: f.assign(timestamp=f["timestamp"] * 1000),
    "userId 'x' is not a number": lambda f: f.assign(userId="x"),
    "comes twice": lambda f: pd.concat([f, f[["movieId"]]], axis=1),
}


@pytest.mark.parametrize("problem", WRONG_PAIRS)
@pytest.mark.parametrize("name", ["bias", "deepcf-plus"])
def test_pairs_are_checked_like_ratings(name: str, problem: str, toy_ratings: pd.DataFrame) -> None:
    model = make(name, **TINY.get(name, {})).fit(toy_ratings)
    with pytest.raises(ValueError, match=problem):
        model.predict(WRONG_PAIRS[problem](toy_ratings[:5]))


@pytest.mark.parametrize("ids", [["3"], [True], [3.5], [None], [float("nan")]])
def test_ids_of_another_kind_are_no_unknown_users(
    ids: list[Any], toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    model = make("popular").fit(toy_ratings, movies=toy_movies)
    for ask in (model.score_all, model.recommend_all, model.seen):
        with pytest.raises(ValueError, match="userId"):
            ask(ids)
    with pytest.raises(ValueError, match="movieId"):
        model.title(ids[0])
    keeps = make("item-knn").fit(toy_ratings)
    for asked in (keeps.ratings_of, lambda user: keeps.revised(user, {})):
        with pytest.raises(ValueError, match="userId"):
            asked(ids[0])
    assert model.score_all([3.0]).shape == (1, len(model.movie_ids))
    assert model.title(2.0) == "Film 2 <b>" and len(model.seen([3.0])[0]) > 0  # type: ignore[arg-type]
    assert model.recommend_all([]).empty and model.score_all([]).shape[0] == 0


@pytest.mark.parametrize("k", [2.0, 2.5, "3", None, True, 0])
def test_a_list_has_a_whole_number_of_movies(k: Any, toy_ratings: pd.DataFrame) -> None:
    model = make("popular").fit(toy_ratings)
    for ask, who in ((model.recommend, 3), (model.recommend_all, [3])):
        with pytest.raises(ValueError, match=r"^k is .*; give a whole number of at least 1$"):
            ask(who, k=k)
    assert len(model.recommend(3, k=np.int64(3))) == 3


@pytest.mark.parametrize("name", ["deepcf", "deepcf-plus"])
def test_ids_as_text_are_explained_or_refused(
    name: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    model = make(name, **TINY[name]).fit(toy_ratings, movies=toy_movies)
    with pytest.raises(ValueError, match="movieId '9' is no number"):
        model.explain(3, "9")  # type: ignore[arg-type]
    text = toy_ratings[:5].astype({"userId": str, "movieId": str})
    assert np.array_equal(model.predict(text), model.predict(toy_ratings[:5]))
    for given, found in zip(model.positions(toy_ratings), model.positions(text), strict=True):
        assert np.array_equal(given[:5], found)


@pytest.mark.parametrize("kind", ["category", "Int64", "UInt32", "uint16", ">i8", "Sparse[int64]"])
def test_columns_of_other_kinds_are_the_same_numbers(kind: str, toy_ratings: pd.DataFrame) -> None:
    given = toy_ratings.assign(movieId=toy_ratings["movieId"].astype(kind))
    expected = make("bias").fit(toy_ratings).predict(toy_ratings)
    assert np.array_equal(make("bias").fit(given).predict(given), expected)


@pytest.mark.parametrize(
    ("genres", "problem"),
    [
        ("Drama|Comedy", "no list"),
        (float("nan"), "no list"),
        ([1, 2], "no list"),
        (None, "no list"),
    ],
)
def test_genres_are_lists_of_texts(
    genres: Any, problem: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    wrong = toy_movies.assign(genres=[genres, *toy_movies["genres"][1:]])
    with pytest.raises(ValueError, match=r"movies frame, row 0: genres .* are no list"):
        make("popular").fit(toy_ratings, movies=wrong)


def test_missing_titles_are_none(toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame) -> None:
    movies = toy_movies.assign(title=[None, *toy_movies["title"][1:]])
    model = make("popular").fit(toy_ratings, movies=movies)
    first, second = toy_movies["movieId"][:2]
    assert model.title(first) is None and model.title(second) == "Film 9 <b>"
    assert make("popular").fit(toy_ratings, movies=toy_movies[["movieId"]]).title(second) is None


def test_a_column_that_comes_twice_is_refused(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    train = pd.concat([toy_ratings, toy_ratings[["rating"]]], axis=1)
    with pytest.raises(ValueError, match=r"^train: column 'rating' comes twice; drop one of them"):
        make("popular").fit(train)
    movies = pd.concat([toy_movies, toy_movies[["title"]]], axis=1)
    with pytest.raises(ValueError, match=r"^movies frame: column 'title' comes twice; drop one"):
        make("popular").fit(toy_ratings, movies=movies)


def test_a_movie_that_comes_twice_is_refused(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    twice = pd.concat([toy_movies, toy_movies[:1]], ignore_index=True)
    with pytest.raises(
        ValueError, match=r"movies frame, row \d+: duplicate movieId 2, which row 0"
    ):
        make("popular").fit(toy_ratings, movies=twice)


# What `fit` itself calls, or what makes a model.
OF_FITTING = {"build_network", "fit", "hidden_ratings", "prepare", "restore", "train_on"}
OF_FITTING |= {"config", "explanation_method", "hyper_parameters", "training_config"}
OF_FITTING |= {"describe", "rows"}
ASKED: dict[str, Any] = {
    "pairs": pd.DataFrame({"userId": [1], "movieId": [1]}),
    "ratings": pd.DataFrame({"userId": [1], "movieId": [1], "rating": [3.0]}),
    "pair": pd.DataFrame({"userId": [1], "movieId": [1]}),
    "kept": np.array([[True]]),
    "places": np.array([0]),
    "user_ids": [1],
    "user_id": 1,
    "movie_id": 1,
    "changes": {1: 2.0},
    "which": "last",
    "folder": "never-made",
    "user": 0,
    "users": np.array([0]),
    "movies": np.array([0]),
    "rows": np.array([0]),
}


@pytest.mark.parametrize("name", available())
def test_an_unfitted_model_says_so(name: str) -> None:
    model = make(name)
    asked = 0
    for member in dir(model):
        found = inspect.getattr_static(type(model), member, None)
        if member.startswith("_") or member in OF_FITTING or inspect.isclass(found):
            continue
        if callable(found):
            needed = list(inspect.signature(found).parameters.values())[1:]
            given = [ASKED[p.name] for p in needed if p.default is p.empty]
            call = partial(getattr(model, member), *given)
        elif isinstance(found, (property, cached_property)):
            call = partial(getattr, model, member)
        else:
            continue
        # A model that never can says that; no other error, and one line.
        with pytest.raises(RuntimeError) as caught:
            call()
        said = str(caught.value)
        if not isinstance(caught.value, NotImplementedError):
            assert said == f"this {name} model is not fitted yet; call fit(train) first", member
        asked += 1
    assert asked > 8


@pytest.mark.parametrize("name", ["bias", "mf", "deepcf", "deepcf-plus", "ease", "item-knn"])
def test_a_model_that_lacks_something_is_refused(
    name: str, toy_ratings: pd.DataFrame, tmp_path: Path
) -> None:
    """As one that another version saved, whose checksums are right."""
    model = make(name, **TINY.get(name, {})).fit(toy_ratings)
    arrays, description = read_folder(model.save(tmp_path / "m"))
    without: list[tuple[dict[str, Any], Any]] = [
        ({k: v for k, v in arrays.items() if k != lost}, description)
        for lost in arrays
        if not lost.endswith("num_batches_tracked")  # torch does without
    ]
    without += [(arrays, {k: v for k, v in description.items() if k != n}) for n in description]
    without += [(arrays, {**description, "name": "foo"}), (arrays, {**description, "name": [1]})]
    without += [(arrays, {**description, "config": {"foo": 1}}), (arrays, [1]), (arrays, "text")]
    for content in without:
        folder = write_folder(tmp_path / "other", *content)
        with pytest.raises(ValueError, match="fit the model and save it again") as caught:
            load_model(folder)
        assert str(caught.value).startswith(f"{folder / 'model.json'} does not suit")
        assert len(str(caught.value).splitlines()) == 1


def test_a_network_goes_to_the_device_that_is_asked_for(
    toy_ratings: pd.DataFrame, tmp_path: Path
) -> None:
    folder = make("mf", **TINY["mf"], device="cpu").fit(toy_ratings).save(tmp_path / "m")
    assert load_model(folder, device="cpu").config["device"] == "cpu"
    with pytest.raises(ValueError, match="device is 'cuda', but CUDA is not available here"):
        load_model(folder, device="cuda")


@pytest.mark.parametrize("name", available())
def test_pairs_of_other_kinds_have_the_same_predictions(
    name: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    """Also those of users and movies without ratings, whom some models serve in their own way."""
    if not can_be_fitted(name):
        pytest.skip('it needs a library: pip install "dlcf[baselines]"')
    other = pd.concat([toy_movies, toy_movies.head(1).assign(movieId=999)], ignore_index=True)
    model = make(name, **TINY.get(name, {})).fit(toy_ratings, movies=other)
    pairs = toy_ratings.head(30)[["userId", "movieId", "timestamp"]].reset_index(drop=True)
    pairs.loc[:4, "movieId"], pairs.loc[5:9, "movieId"], pairs.loc[10:14, "userId"] = 999, 10**9, 1
    asked = [model.predict]
    asked += [getattr(model, n) for n in ("attention_weights", "evidence") if hasattr(model, n)]
    for ask in asked:
        of = pairs if ask == model.predict else pairs.iloc[15:]
        expected = np.asarray(ask(of))
        for kind, given in other_kinds(of).items():
            np.testing.assert_array_equal(np.asarray(ask(given)), expected, err_msg=kind)


@pytest.mark.parametrize("name", ["deepcf", "deepcf-plus"])
def test_an_explanation_is_of_a_user_by_number(name: str, toy_ratings: pd.DataFrame) -> None:
    model = make(name, **TINY.get(name, {})).fit(toy_ratings)
    user, movie = toy_ratings[["userId", "movieId"]].iloc[0].tolist()
    assert model.explain(str(user), movie).user_weight == model.explain(user, movie).user_weight
    for wrong in (True, None, "anna", 2.5):
        with pytest.raises(ValueError, match="userId"):
            model.explain(wrong, movie)


@pytest.mark.parametrize("name", ["mf", "svdpp", "deepcf", "deepcf-plus"])
def test_a_batch_is_no_larger_than_the_ratings(name: str, toy_ratings: pd.DataFrame) -> None:
    models = (make(name, **{**TINY[name], "batch_size": n}) for n in (10**5, 10**9))
    one, huge = (model.fit(toy_ratings).predict(toy_ratings) for model in models)
    assert np.array_equal(one, huge)


def test_an_index_that_is_named_like_a_column_means_nothing(toy_ratings: pd.DataFrame) -> None:
    train, test = dlcf.split(toy_ratings)
    expected = dlcf.evaluate(make("bias").fit(train), train, test)
    train, test = (frame.set_index("userId", drop=False) for frame in (train, test))
    assert dlcf.evaluate(make("bias").fit(train), train, test) == expected


@pytest.mark.parametrize("name", ["mf", "deepcf", "deepcf-plus"])
def test_a_network_of_cuda_is_loaded_without_it(
    name: str, toy_ratings: pd.DataFrame, tmp_path: Path
) -> None:
    model = make(name, **TINY[name], device="cpu").fit(toy_ratings)
    arrays, description = read_folder(model.save(tmp_path / "m"))
    description["config"]["device"] = "cuda"  # all that a model which was fitted there differs in
    folder = write_folder(tmp_path / "of-cuda", arrays, description)
    loaded = load_model(folder, device="cpu")
    assert loaded.config["device"] == "cpu"
    assert state(loaded, toy_ratings) == state(model, toy_ratings)
    with pytest.raises(ValueError, match="device is 'cuda', but CUDA is not available here"):
        load_model(folder)
