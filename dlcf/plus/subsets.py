"""The evidence of one pair from many parts of the user's history at once.

Replaces serving a changed history once for each part. What other people's ratings say (means of
movies, their biases and tastes) stays as it is, so a part of the history is a 0/1 row, and a head
with a fixed kernel is a quotient of two products of that row with the kernel: one matrix product
for all parts. Serving a changed history also computes the others' biases again, which moves a
prediction by thousandths of a star; a test holds the difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcf.models.base import USER_DAMPING
from dlcf.plus.evidence import Context, Evidence, content_heads, entries, relevance, time_heads

Values = NDArray[Any]


def describe_parts(
    context: Context, user: int, movie: int, time: float, kept: NDArray[np.bool_], size: int
) -> Evidence:
    """As :meth:`Context.describe` of one pair, had the user given only some of the ratings.

    Parameters
    ----------
    context, user, movie, time
        The pair, by positions; `time` in seconds.
    kept
        ``(m, ratings of the user in the context)``, in the order of their times; no row is empty.
    size
        As `history_size` of :meth:`Context.describe`.
    """
    here, now = np.array([movie]), np.array([time])
    kernels = context.kernels(user, here, now)
    part = kept.astype(np.float32)
    count = kept.sum(axis=1)
    given = context.deviation[context.history(user)].astype(np.float32)
    mean = part @ given / (count + USER_DAMPING).astype(np.float32)

    def attended(weights: Values) -> tuple[Values, Values]:
        """``sum_j w_j d_j`` and ``sum_j w_j`` over each part, of weights ``(history, k)``."""
        mass = part @ weights
        return (part * given) @ weights - mean[:, None] * mass, mass

    squares = part @ (given**2) - (part @ given) ** 2 / count
    of_user = context.user_evidence(user, now, kernels)
    of_user |= {
        "mean": mean,
        "count": np.log1p(count),
        "spread": np.sqrt((np.maximum(squares, 0) + 2.4) / (count + 3)),
    }
    heads = [*time_heads(kernels), *content_heads(kernels)]
    total, mass = attended(np.stack([weights[0] for _, weights, _, _ in heads], axis=1))
    for column, (name, _, null, factor) in enumerate(heads):
        of_user[name] = total[:, column] / (mass[:, column] + np.float32(null))
        of_user[f"{name} mass"] = np.log1p(factor * mass[:, column])
    of_user |= _neighbours(context.times[context.history(user)], time, kept, given, mean)
    signed, _ = attended(kernels["agree"].T)
    of_user["agree, signed"] = signed[:, 0] / (count + 30) * 10
    of_user["co-rated sum"] = np.log1p(part @ kernels["co-rated"][0])

    raters = context.seen[[movie]].indices
    rated = context.movies[context.history(user)]
    shared = part @ context.seen[rated][:, raters]
    product, _ = attended(context.taste[rated][:, raters])
    agreement = product / (shared + 15)
    others = (context.user_count[raters] + 20.0).astype(np.float32)
    overlap = shared / np.sqrt((count[:, None] + 20).astype(np.float32) * others)
    residual = context.residual[[movie]].data
    weight = np.maximum(agreement, 0)
    of_movie = context.movie_evidence(user, here, now) | {
        "raters who agree": weight @ residual / (weight.sum(axis=1) + 0.3),
        "raters, signed": agreement @ residual / (context.movie_count[movie] + 5) * 5,
        "raters who overlap": overlap @ residual / (overlap.sum(axis=1) + 0.3),
    }
    m = len(kept)
    baseline = np.full(m, context.mean + context.movie_bias[movie], np.float32)
    # The learned attention sees the most relevant of the ratings that are kept.
    order = np.argsort(-relevance(kernels)[0])
    ranked = kept[:, order]
    chosen = np.zeros_like(kept)
    chosen[:, order] = ranked & (np.cumsum(ranked, axis=1) <= size)
    row, entry = np.nonzero(chosen)
    place = (np.cumsum(chosen, axis=1) - 1)[row, entry]
    said = entries(kernels, given[None])[0]
    channels = np.zeros((m, size, said.shape[1]), np.float16)
    channels[row, place] = said[entry]
    channels[row, place, 0] = given[entry] - mean[row]
    history = np.zeros((m, size), np.int32)
    history[row, place] = context.start[user] + entry
    sides = _columns(of_user, m), _columns(of_movie, m)
    return Evidence(baseline, *sides, channels, np.minimum(count, size), history)


def _columns(features: dict[str, Values], m: int) -> NDArray[np.float32]:
    """Features ``(m,)``, or alike for all ``(1,)``, side by side."""
    return np.stack([np.broadcast_to(v, m) for v in features.values()], axis=1).astype(np.float32)


def _neighbours(
    history: Values, time: float, kept: NDArray[np.bool_], given: Values, mean: Values
) -> dict[str, Values]:
    """The kept ratings just before and just after, and where among them the time lies."""
    n, index = len(history), np.arange(len(history))
    before = int(np.searchsorted(history, time, "right"))
    after = int(np.searchsorted(history, time, "left"))
    last = np.where(kept[:, :before], index[:before], -1).max(axis=1, initial=-1)
    first = np.where(kept[:, after:], index[after:], n).min(axis=1, initial=n)
    found = {"position": kept[:, :after].sum(axis=1) / kept.sum(axis=1)}
    for name, entry in (("previous", last), ("next", first)):
        exists, entry = (entry >= 0) & (entry < n), np.clip(entry, 0, n - 1)
        found[name] = np.where(exists, given[entry] - mean, 0.0)
        found[f"{name} gap"] = np.where(exists, np.log1p(np.abs(time - history[entry])), 20.0)
    return found
