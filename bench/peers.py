"""Fit one model of another library on a given split: ``python bench/peers.py NAME SPLIT.npz``.

It stands alone, so that it runs under an interpreter that has the library and need not have dlcf.
SPLIT.npz holds ``train`` and ``test``, float64 ``(n, 3)``: user, movie, rating. One line of JSON
is printed: library, version, seconds to fit and to predict, RMSE in stars.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

Predict = Callable[[], np.ndarray]
Peer = tuple[str, Callable[[np.ndarray, np.ndarray], tuple[Callable[[], Any], Predict]]]


def surprise_svd(train: np.ndarray, test: np.ndarray) -> tuple[Callable[[], Any], Predict]:
    import pandas as pd
    from surprise import SVD, Dataset, Reader

    frame = pd.DataFrame(train, columns=["user", "movie", "rating"])
    data = Dataset.load_from_df(frame, Reader(rating_scale=(0.5, 5.0))).build_full_trainset()
    model = SVD(n_factors=50, n_epochs=30, reg_all=0.08, random_state=0)
    return lambda: model.fit(data), lambda: np.array([model.predict(u, m).est for u, m, _ in test])


def cornac_mf(train: np.ndarray, test: np.ndarray) -> tuple[Callable[[], Any], Predict]:
    from cornac.data import Dataset
    from cornac.models import MF

    data = Dataset.from_uir([(int(u), int(m), r) for u, m, r in train], seed=0)
    model = MF(k=50, max_iter=30, learning_rate=0.01, lambda_reg=0.05, use_bias=True, seed=0)

    def predict() -> np.ndarray:
        users, movies, mean = data.uid_map, data.iid_map, data.global_mean
        rows = ((users.get(int(u)), movies.get(int(m))) for u, m, _ in test)
        rated = [mean if u is None or m is None else float(model.score(u, m)) for u, m in rows]
        return np.clip(rated, 0.5, 5.0)

    return lambda: model.fit(data), predict


def lenskit_mf(train: np.ndarray, test: np.ndarray) -> tuple[Callable[[], Any], Predict]:
    import pandas as pd
    from lenskit.als import BiasedMFScorer
    from lenskit.batch import predict as predict_ratings
    from lenskit.data import ItemListCollection, from_interactions_df
    from lenskit.pipeline import predict_pipeline

    columns = ["user_id", "item_id", "rating"]
    types = {"user_id": int, "item_id": int}
    data = from_interactions_df(pd.DataFrame(train, columns=columns).astype(types))
    wanted = ItemListCollection.from_df(pd.DataFrame(test, columns=columns).astype(types))
    pipeline = predict_pipeline(BiasedMFScorer(embedding_size=50, epochs=20))

    def predict() -> np.ndarray:
        found = predict_ratings(pipeline, wanted, n_jobs=1).to_df().set_index(columns[:2])["score"]
        keys = pd.MultiIndex.from_arrays([test[:, 0].astype(int), test[:, 1].astype(int)])
        return np.clip(found.reindex(keys).to_numpy(np.float64), 0.5, 5.0)

    return lambda: pipeline.train(data), predict


PEERS: dict[str, Peer] = {
    "surprise-svd": ("scikit-surprise", surprise_svd),
    "cornac-mf": ("cornac", cornac_mf),
    "lenskit-biasedmf": ("lenskit", lenskit_mf),
}


def main(name: str, path: str) -> None:
    """Fit, predict and print."""
    library, build = PEERS[name]
    with np.load(path, allow_pickle=False) as split:
        train, test = split["train"], split["test"]
    fit, predict = build(train, test)
    started = time.perf_counter()
    fit()
    fitted = time.perf_counter()
    rated = predict()
    done = time.perf_counter()
    if not np.isfinite(rated).all():
        raise ValueError(f"{name} leaves {int((~np.isfinite(rated)).sum())} ratings unpredicted")
    error = float(np.sqrt(np.mean((rated - test[:, 2]) ** 2)))
    record = {"library": library, "version": version(library), "rmse": error}
    record |= {"fit_s": fitted - started, "predict_s": done - fitted}
    print(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
