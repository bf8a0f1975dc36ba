"""The evidence of many pairs, by compiled loops over sorted histories.

This replaces the sparse products and the blocks of pairs times history of the plain
:meth:`dlcf.plus.evidence.Context.describe`. The sums are the same, so what comes out differs by
rounding alone; each is taken only once. Of a user: what it shares with all others, for all its
pairs; and sums over its history with weights ``exp(-|gap| / scale)``, which go on from rating to
rating by one multiplication, since ``exp(-(a + b)) = exp(-a) exp(-b)``. Of a movie: in how many
histories each other movie stands beside it, and with what agreement; genres and years once for each
kind of them. A weight below ``exp(-25)`` counts as 0. What is left, a few sums for each pair and
rating of its history, is done pair by pair. A user or a movie is one thread's, so the bits do not
hang on how many threads, torch's number, there are.
"""
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlcf.fast.kernels import compiled
from dlcf.models.base import USER_DAMPING
from dlcf.plus.scales import N_CHANNELS, SESSION, TIME_SCALES

Values = NDArray[Any]
# Columns of the user's features: three of the whole history, heads in time with their masses, the
# place in the history, seven heads by content with their masses, two more sums.
_PLACE = 3 + 2 * len(TIME_SCALES)
_CONTENT = _PLACE + 5
_BLOCKS = 16  # parts of the work for each thread, which are not equally long


def describe(context: Any, users: Values, movies: Values, times: Values, size: int) -> Any:
    """The fields of an `Evidence`; arguments are those of `Context.describe`, after the context."""
    n, users, movies = len(users), np.ascontiguousarray(users), np.ascontiguousarray(movies)
    times = np.ascontiguousarray(times, dtype=float)
    of_user = np.empty((n, _CONTENT + 16), np.float32)
    facts = np.stack(list(context.of_movies(movies, times).values()), axis=1)
    of_movie = np.empty((n, 3 + facts.shape[1]), np.float32)
    channels, count = np.zeros((n, size, N_CHANNELS), np.float32), np.empty(n, np.int64)
    history = np.zeros((n, size), np.int32)
    pairs, matrix = (users, movies, times), context.residual
    # As unsigned indices: numba asks of all others whether they count from the end.
    rated, deviation = context.movies.astype(np.uint32), context.deviation.astype(np.float32)
    ratings = context.start, rated, context.times, deviation
    by_movie = matrix.indptr, matrix.indices.astype(np.uint32), matrix.data
    near = 1 / np.sqrt(context.user_count + 20.0)
    read = *by_movie, context.taste.data, near, np.array(TIME_SCALES)
    _in_groups(users, _of_users, *pairs, *ratings, *read, of_user, of_movie)
    near = (1 / np.sqrt(context.movie_count + 9.0)).astype(np.float32)
    read = *by_movie, context.taste_of, *context.side.kinds, near
    _in_groups(movies, _of_movies, *pairs, *ratings, *read, of_user, channels, count, history)
    of_movie[:, 3:] = facts
    baseline = (context.mean + context.movie_bias[movies]).astype(np.float32)
    return baseline, of_user, of_movie, channels.astype(np.float16), count, history


def _in_groups(of: Values, kernel: Callable[..., None], *arguments: Any) -> None:
    """``kernel(order, edges, ...)`` for pairs with the same user or movie one after another.

    `order` sorts them by `of`; `edges` are where in it groups begin, and its end.
    """
    order = np.argsort(of, kind="stable")
    edges = np.flatnonzero(np.diff(of[order], prepend=-1, append=-1))
    n_threads = torch.get_num_threads()
    blocks = min(_BLOCKS * n_threads if n_threads > 1 else 1, len(edges) - 1)
    ends = np.linspace(0, len(edges) - 1, blocks + 1).astype(int).tolist()
    with ThreadPoolExecutor(n_threads) as pool:
        given = [(order, edges[first : last + 1], *arguments) for first, last in pairwise(ends)]
        for done in [pool.submit(kernel, *block) for block in given]:
            done.result()


@compiled
def _of_users(
    order, edges, users, movies, times, start, rated, rated_at, deviation,
    indptr, raters, residual, taste, near, scales, of_user, of_movie,
):  # fmt: skip
    """Fills what hangs on the whole history and its times, and what the movie's raters say.

    `near` is ``1 / sqrt(n + 20)`` of each user's number of ratings.
    """
    one, nothing = np.float32(1), np.float32(0)
    shared = np.empty((len(start) - 1, 2), np.float32)  # movies, and product of the deviations
    for group in range(len(edges) - 1):
        user = users[order[edges[group]]]
        first, n = start[user], start[user + 1] - start[user]
        history, own = rated_at[first : first + n], deviation[first : first + n].copy()
        total, squares = 0.0, 0.0
        for k in range(n):
            total += own[k]
        for k in range(n):
            squares += (own[k] - total / n) ** 2
            own[k] -= np.float32(total / (n + USER_DAMPING))
        shared[:] = 0
        for k in range(n):
            for r in range(indptr[rated[first + k]], indptr[rated[first + k] + 1]):
                shared[raters[r], 0] += one
                shared[raters[r], 1] += own[k] * taste[r]
        shared[user, 1] = 0
        for other in range(len(start) - 1):  # becomes overlap and agreement
            shared[other, 1] /= shared[other, 0] + np.float32(15)
            shared[other, 0] *= np.float32(near[user] * near[other])

        # Weighted sums of deviations, and of weights, before each rating and from each rating on.
        sums = np.zeros((2, n + 1, len(scales), 2))
        for k in range(n):
            back = n - 1 - k
            gap = history[k] - history[max(k - 1, 0)]
            ahead = history[min(back + 1, n - 1)] - history[back]
            for s in range(len(scales)):
                decay, decay_back = np.exp(-gap / scales[s]), np.exp(-ahead / scales[s])
                sums[0, k + 1, s, 0] = sums[0, k, s, 0] * decay + own[k]
                sums[0, k + 1, s, 1] = sums[0, k, s, 1] * decay + 1
                sums[1, back, s, 0] = sums[1, back + 1, s, 0] * decay_back + own[back]
                sums[1, back, s, 1] = sums[1, back + 1, s, 1] * decay_back + 1

        for p in range(edges[group], edges[group + 1]):
            pair, movie = order[p], movies[order[p]]
            time, found = times[pair], of_user[pair]
            found[0], found[1] = total / (n + USER_DAMPING), np.log1p(n)
            found[2] = np.sqrt((squares + 2.4) / (n + 3))
            before = np.searchsorted(history, time, "right") - 1
            after = np.searchsorted(history, time, "left")
            since = time - history[before] if before >= 0 else 0.0
            until = history[before + 1] - time if before + 1 < n else 0.0
            for s in range(len(scales)):
                left, right = np.exp(-since / scales[s]), np.exp(-until / scales[s])
                value = sums[0, before + 1, s, 0] * left + sums[1, before + 1, s, 0] * right
                mass = sums[0, before + 1, s, 1] * left + sums[1, before + 1, s, 1] * right
                found[3 + 2 * s], found[4 + 2 * s] = value / (mass + 1.5), np.log1p(mass)
            found[_PLACE] = after / n
            for column, entry in ((_PLACE + 1, before), (_PLACE + 3, after)):
                exists = 0 <= entry < n
                found[column] = own[entry] if exists else nothing
                found[column + 1] = np.log1p(abs(time - history[entry])) if exists else 20.0

            agree = mass = signed = overlap = overlap_mass = 0.0
            for r in range(indptr[movie], indptr[movie + 1]):
                common, agreement = shared[raters[r], 0], shared[raters[r], 1]
                weight = max(agreement, nothing)
                agree, mass = agree + residual[r] * weight, mass + weight
                signed += residual[r] * agreement
                overlap, overlap_mass = overlap + residual[r] * common, overlap_mass + common
            of_movie[pair, 0] = agree / (mass + 0.3)
            of_movie[pair, 1] = signed / (indptr[movie + 1] - indptr[movie] + 5) * 5
            of_movie[pair, 2] = overlap / (overlap_mass + 0.3)


@compiled
def _of_movies(
    order, edges, users, movies, times, start, rated, rated_at, deviation, indptr, raters, residual,
    taste_of, genres, genre, years, year, near, of_user, channels, count, positions,
):  # fmt: skip
    """Fills the heads by content, and the most relevant ratings of the history.

    `near` is ``1 / sqrt(n + 9)`` of each movie's number of ratings; the first column of `of_user`
    holds the user's mean deviation already.
    """
    one, nothing, size = np.float32(1), np.float32(0), channels.shape[1]
    page, session = np.float32(TIME_SCALES[1]), np.float32(TIME_SCALES[SESSION])
    beside = np.empty((len(indptr) - 1, 2), np.float32)  # with each movie: co-rated and agree
    cosine, recent = np.empty(len(genres), np.float32), np.empty(len(years), np.float32)
    longest = 1
    for p in range(edges[0], edges[-1]):
        longest = max(longest, start[users[order[p]] + 1] - start[users[order[p]]])
    own = np.empty((5, longest), np.float32)  # deviation, co-rated, agree, genre, year
    weights, relevance = np.empty((7, longest), np.float32), np.empty(longest, np.int64)
    nulls = (0.05, 0.3, 3.0, 3.0, 1.5, 0.3, 0.5)
    for group in range(len(edges) - 1):
        movie = movies[order[edges[group]]]
        beside[:] = 0
        for r in range(indptr[movie], indptr[movie + 1]):
            for k in range(start[raters[r]], start[raters[r] + 1]):
                beside[rated[k], 0] += one
                beside[rated[k], 1] += residual[r] * taste_of[k]
        scale = np.float32(1 / np.sqrt(indptr[movie + 1] - indptr[movie] + 10.0))
        for other in range(len(indptr) - 1):
            beside[other, 1] /= beside[other, 0] + np.float32(15)
            beside[other, 0] *= near[other] * scale
        cosine[:] = 0
        for kind in range(len(genres)):
            for column in range(genres.shape[1]):
                cosine[kind] += genres[kind, column] * genres[genre[movie], column]
        for kind in range(len(years)):
            recent[kind] = np.exp(-abs(years[kind] - years[year[movie]]) / np.float32(5))

        for p in range(edges[group], edges[group + 1]):
            pair = order[p]
            time, found = times[pair], of_user[pair]
            first, n = start[users[pair]], start[users[pair] + 1] - start[users[pair]]
            history, mean = rated_at[first : first + n], found[0]
            near_from = np.searchsorted(history, time - 25 * session, "left")
            near_to = np.searchsorted(history, time + 25 * session, "right")
            signed = together = nothing
            for k in range(n):
                other = rated[first + k]
                co_rated, agree = beside[other, 0], beside[other, 1]
                alike, square = cosine[genre[other]], cosine[genre[other]] ** 2
                value, positive = deviation[first + k] - mean, max(agree, nothing)
                here = nothing
                if near_from <= k < near_to:
                    here = np.exp(-np.float32(abs(time - history[k])) / session)
                own[0, k], own[1, k], own[2, k] = value, co_rated, agree
                own[3, k], own[4, k] = alike, recent[year[other]]
                weights[0, k], weights[1, k] = co_rated * co_rated, positive
                weights[2, k], weights[3, k] = square * square, recent[year[other]]
                weights[4, k], weights[5, k] = square * here, co_rated * here
                weights[6, k] = co_rated * alike
                signed, together = signed + agree * value, together + co_rated
                close = here + np.float32(3) * co_rated + np.float32(0.5) * square
                close += np.float32(0.2) * positive
                relevance[k] = np.int64(np.rint(np.float32(1e5) * close))
            for head in range(7):
                value = mass = nothing
                for k in range(n):
                    mass += weights[head, k]
                    value += weights[head, k] * own[0, k]
                found[_CONTENT + 2 * head] = value / (mass + np.float32(nulls[head]))
                found[_CONTENT + 2 * head + 1] = np.log1p(np.float32(10) * mass)
            found[_CONTENT + 14] = signed / (n + 30) * 10
            found[_CONTENT + 15] = np.log1p(together)

            # Halving finds the least relevance that is kept; of those that tie, the earliest are.
            kept, least, beyond = min(size, n), 0, np.max(relevance[:n]) + 1
            while beyond - least > 1:
                middle, enough = (least + beyond) // 2, 0
                for k in range(n):
                    enough += relevance[k] >= middle
                if enough >= kept:
                    least = middle
                else:
                    beyond = middle
            place, ties = 0, kept - np.sum(relevance[:n] > least)
            for k in range(n):
                if relevance[k] > least or (relevance[k] == least and ties > 0):
                    ties -= relevance[k] == least
                    gap, entry = np.float32(time - history[k]), channels[pair, place]
                    entry[0], entry[1] = own[0, k], np.log1p(abs(gap)) / np.float32(10)
                    entry[2], entry[3] = np.exp(-abs(gap) / page), np.sign(gap)
                    entry[4], entry[5] = np.float32(3) * own[1, k], np.float32(2) * own[2, k]
                    entry[6], entry[7] = own[3, k], own[4, k]
                    positions[pair, place] = first + k
                    place += 1
            count[pair] = kept
