"""Loops that numba compiles, on first use, for what torch would do in many small calls.

Each takes arrays that are there and writes into arrays that are there; none allocates a matrix.
None calls another: compiled into its caller, a loop may round otherwise than when the caller is
loaded from numba's cache, and a first run would have other bits than the second.
Arrays are ``(rows, columns)`` in C order, float32 or float64 alike. Sums run
in the order of the rows; within a row the compiler may reorder them, always in the same way on the
same machine.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

__all__ = [
    "activate",
    "attend",
    "attend_backward",
    "catch_up",
    "centred_squares",
    "close_units",
    "column_sums",
    "deferred_adam",
    "distinct_rows",
    "factor_gradient",
    "first_layer",
    "moments",
    "moments_backward",
    "normalise_backward",
    "output",
]

_REORDER = {"reassoc", "contract", "arcp", "nsz"}  # but infinities and NaN stay what they are


def _compiled(function: Any) -> Any:
    return njit(cache=True, error_model="numpy", fastmath=_REORDER)(function)


def _compiled_apart(function: Any) -> Any:
    """Without Python's lock: for what takes so long that it pays to hand the lock over."""
    return njit(cache=True, nogil=True, error_model="numpy", fastmath=_REORDER)(function)


# ------------------------------------------------------------------- batch norm, relu and dropout


@_compiled
def column_sums(values: Any, sums: Any) -> None:
    """Of each column."""
    sums[:] = 0
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            sums[column] += values[row, column]


@_compiled
def centred_squares(values: Any, sums: Any, n: int, squares: Any) -> None:
    """Of each column the sum of squared distances from its mean, ``sums / n``."""
    share = values.dtype.type(1 / n)
    squares[:] = 0
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            distance = values[row, column] - sums[column] * share
            squares[column] += distance * distance


@_compiled
def moments(
    sums: Any,
    squares: Any,
    n: int,
    running: Any,
    momentum: float,
    epsilon: float,
    gain: Any,
    shift: Any,
    mean: Any,
    inverse: Any,
    slope: Any,
    offset: Any,
) -> None:
    """What a batch norm is for this batch: ``slope * values + offset``.

    `sums` and `squares` are those of all `n` rows. `running` ``(2, columns)``, mean and variance,
    moves by `momentum`; the last four are overwritten, `inverse` by one over the deviation.
    """
    kind = sums.dtype.type
    moved = kind(momentum)
    for column in range(len(sums)):
        mean[column] = sums[column] * kind(1 / n)
        variance = squares[column] * kind(1 / n)
        unbiased = squares[column] * kind(1 / (n - 1))
        running[0, column] += (mean[column] - running[0, column]) * moved
        running[1, column] += (unbiased - running[1, column]) * moved
        inverse[column] = kind(1) / np.sqrt(variance + kind(epsilon))
        slope[column] = gain[column] * inverse[column]
        offset[column] = shift[column] - slope[column] * mean[column]


@_compiled
def moments_backward(
    by_gain: Any,
    by_shift: Any,
    n: int,
    mean: Any,
    inverse: Any,
    slope: Any,
    own_gain: Any,
    tilt: Any,
    offset: Any,
) -> None:
    """What :func:`normalise_backward` takes, from the sums of :func:`close_units` over `n` rows.

    `own_gain`, this process's part of `by_gain` or `by_gain` itself, becomes the gradient by the
    gain. With g the gradient by what the batch norm gave and z what it took, the gradient by z is
    ``slope (g - mean(g) - (z - mean) inverse^2 mean(g (z - mean)))``.
    """
    share = by_gain.dtype.type(1 / n)
    for column in range(len(mean)):
        curved = inverse[column] * inverse[column] * by_gain[column] * share
        tilt[column] = -slope[column] * curved
        offset[column] = -slope[column] * by_shift[column] * share - tilt[column] * mean[column]
        own_gain[column] *= inverse[column]


@_compiled
def activate(
    values: Any,
    slope: Any,
    offset: Any,
    bits: Any,
    first: int,
    dropped: int,
    scale: float,
    out: Any,
) -> None:
    """``relu(slope * values + offset)``, then dropout.

    A unit is dropped where its bits, in the columns of `bits` from `first` on, are below `dropped`;
    what is kept is multiplied by `scale`.
    """
    zero = values.dtype.type(0)
    kept = values.dtype.type(scale)
    for row in range(values.shape[0]):
        own = bits[row, first : first + values.shape[1]]
        for column in range(values.shape[1]):
            value = values[row, column] * slope[column] + offset[column]
            value = value if value > zero else zero
            out[row, column] = value * kept if own[column] >= dropped else zero


@_compiled
def close_units(
    gradient: Any, hidden: Any, values: Any, mean: Any, scale: float, by_gain: Any, by_shift: Any
) -> None:
    """Back through dropout and relu, in place, and the sums that the batch norm's way back needs.

    `by_gain` sums gradient times centred value, not yet divided by the deviation.
    """
    zero = values.dtype.type(0)
    kept = values.dtype.type(scale)
    by_gain[:] = 0
    by_shift[:] = 0
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            # A unit is positive where neither relu nor dropout has closed it.
            slope = gradient[row, column] * (kept if hidden[row, column] > zero else zero)
            gradient[row, column] = slope
            by_shift[column] += slope
            by_gain[column] += slope * (values[row, column] - mean[column])


@_compiled
def normalise_backward(gradient: Any, values: Any, slope: Any, tilt: Any, offset: Any) -> None:
    """``slope * gradient + tilt * values + offset``, in place."""
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            straight = gradient[row, column] * slope[column]
            gradient[row, column] = straight + values[row, column] * tilt[column] + offset[column]


# -------------------------------------------------------------------------- embeddings and output


@_compiled
def distinct_rows(pairs: Any, slot: Any, rows: Any, place: Any) -> int:
    """Each row that `pairs` names, once, in order of appearance.

    Parameters
    ----------
    pairs
        int64 ``(n, 2)``.
    slot
        int64, one for each row of the table, all -1; it is left so.
    rows
        int64 ``(2 n,)``; its first entries are overwritten, as many as are returned.
    place
        int64 ``(n, 2)``: where in `rows` each entry of `pairs` is.
    """
    count = 0
    for index in range(pairs.shape[0]):
        for side in range(2):
            row = pairs[index, side]
            if slot[row] < 0:
                slot[row] = count
                rows[count] = row
                count += 1
            place[index, side] = slot[row]
    for index in range(count):
        slot[rows[index]] = -1
    return count


@_compiled
def attend(
    table: Any, pairs: Any, attention: Any, bias: Any, contrast: Any, inputs: Any, weight: Any
) -> None:
    """Embeddings times their attention weights.

    Parameters
    ----------
    table
        ``(rows, 3, size)``; embeddings are ``table[:, 0]``.
    pairs
        int64 ``(n, 2)``, rows of a user and of a movie.
    attention, bias
        Weights ``(2, 2 size)`` and biases ``(2,)`` of the user's logit and of the movie's. A
        softmax over two logits is the sigmoid of their difference.
    contrast
        ``(2 size,)``, overwritten: the difference of the two rows of weights.
    inputs
        ``(n, 2 size)``, overwritten.
    weight
        ``(n,)``, overwritten: the weight on the user.
    """
    size = table.shape[2]
    for column in range(2 * size):
        contrast[column] = attention[0, column] - attention[1, column]
    for index in range(pairs.shape[0]):
        user = table[pairs[index, 0], 0]
        movie = table[pairs[index, 1], 0]
        logit = bias[0] - bias[1]
        for column in range(size):
            logit += contrast[column] * user[column] + contrast[size + column] * movie[column]
        one = inputs.dtype.type(1)
        share = one / (one + math.exp(-logit))
        weight[index] = share
        for column in range(size):
            inputs[index, column] = share * user[column]
            inputs[index, size + column] = (one - share) * movie[column]


@_compiled_apart
def first_layer(
    share: Any, user_parts: Any, users: Any, movie_parts: Any, movies: Any, bias: Any, out: Any
) -> None:
    """``relu(share user_part + (1 - share) movie_part + bias)`` of some pairs.

    `share` ``(n,)`` is the attention weight on the user; `users` and `movies`, int64 ``(n,)``, are
    rows of `user_parts` and `movie_parts` ``(rows, outputs)``; `out` is ``(n, outputs)``.
    """
    zero, one = out.dtype.type(0), out.dtype.type(1)
    for row in range(len(share)):
        on_user, on_movie = share[row], one - share[row]
        user, movie = user_parts[users[row]], movie_parts[movies[row]]
        for column in range(out.shape[1]):
            value = on_user * user[column] + on_movie * movie[column] + bias[column]
            out[row, column] = value if value > zero else zero


@_compiled
def attend_backward(
    by_inputs: Any,
    table: Any,
    pairs: Any,
    place: Any,
    contrast: Any,
    weight: Any,
    by_rows: Any,
    by_attention: Any,
    by_attention_bias: Any,
) -> None:
    """Back through :func:`attend`.

    `by_rows` ``(distinct rows, size)``, in the order that `place` refers to, and the gradients by
    attention and bias are overwritten.
    """
    size = table.shape[2]
    by_rows[:] = 0
    by_contrast = by_attention[0]
    by_contrast[:] = 0
    by_bias = by_inputs.dtype.type(0)
    one = by_inputs.dtype.type(1)
    for index in range(pairs.shape[0]):
        user = table[pairs[index, 0], 0]
        movie = table[pairs[index, 1], 0]
        by_user = by_rows[place[index, 0]]
        by_movie = by_rows[place[index, 1]]
        share = weight[index]
        slope = by_inputs.dtype.type(0)
        for column in range(size):
            slope += by_inputs[index, column] * user[column]
            slope -= by_inputs[index, size + column] * movie[column]
        slope *= share * (one - share)
        by_bias += slope
        for column in range(size):
            by_user[column] += share * by_inputs[index, column] + slope * contrast[column]
            by_contrast[column] += slope * user[column]
        for column in range(size):
            straight = (one - share) * by_inputs[index, size + column]
            by_movie[column] += straight + slope * contrast[size + column]
            by_contrast[size + column] += slope * movie[column]
    for column in range(2 * size):
        by_attention[1, column] = -by_contrast[column]
    by_attention_bias[0], by_attention_bias[1] = by_bias, -by_bias


@_compiled
def output(
    hidden: Any,
    weights: Any,
    bias: float,
    ratings: Any,
    low: float,
    span: float,
    n: int,
    by_hidden: Any,
    by_weights: Any,
) -> tuple[float, float]:
    """The sigmoid neuron, the squared error of its ratings, and the way back.

    The error that is differentiated is the mean over `n` ratings, of which these may be a part.
    `by_hidden` and `by_weights` are overwritten; the sum of squared errors and the gradient by the
    bias are returned.
    """
    kind = hidden.dtype.type
    by_weights[:] = 0
    by_bias = kind(0)
    squares = kind(0)
    for row in range(hidden.shape[0]):
        logit = kind(bias)
        for column in range(hidden.shape[1]):
            logit += hidden[row, column] * weights[column]
        strength = kind(1) / (kind(1) + math.exp(-logit))
        error = strength * kind(span) + kind(low) - ratings[row]
        squares += error * error
        slope = error * strength * (kind(1) - strength) * kind(2 * span / n)
        by_bias += slope
        for column in range(hidden.shape[1]):
            by_weights[column] += slope * hidden[row, column]
            by_hidden[row, column] = slope * weights[column]
    return squares, by_bias


# --------------------------------------------------------------------------- matrix factorisation


@_compiled
def factor_gradient(
    table: Any,
    pairs: Any,
    place: Any,
    deviations: Any,
    n: int,
    regularization: float,
    bias_regularization: float,
    by_rows: Any,
) -> float:
    """Of biased matrix factorisation (Koren, Bell and Volinsky, 2009, eq. 5) on some pairs.

    The objective is a mean over `n` pairs, of which these may be a part.

    Parameters
    ----------
    table
        ``(rows, 3, factors + 1)``; factors and bias are ``table[:, 0]``.
    pairs
        int64 ``(m, 2)``, rows of a user and of a movie.
    place
        int64 ``(m, 2)``: where in `by_rows` each entry of `pairs` is.
    deviations
        ``(m,)``, ratings less the mean of all.
    by_rows
        ``(distinct rows, factors + 1)``, overwritten.

    Returns
    -------
    float
        The sum of squared errors, without the penalty.
    """
    kind = table.dtype.type
    size = table.shape[2] - 1
    scale = kind(2 / n)
    shrink, shrink_bias = kind(regularization * 2 / n), kind(bias_regularization * 2 / n)
    by_rows[:] = 0
    squares = 0.0
    for index in range(pairs.shape[0]):
        user, movie = table[pairs[index, 0], 0], table[pairs[index, 1], 0]
        by_user, by_movie = by_rows[place[index, 0]], by_rows[place[index, 1]]
        product = kind(0)
        for column in range(size):
            product += user[column] * movie[column]
        error = product + user[size] + movie[size] - deviations[index]
        squares += error * error
        slope = error * scale
        for column in range(size):
            by_user[column] += slope * movie[column] + shrink * user[column]
            by_movie[column] += slope * user[column] + shrink * movie[column]
        by_user[size] += slope + shrink_bias * user[size]
        by_movie[size] += slope + shrink_bias * movie[size]
    return squares


# ------------------------------------------------------------------------------------------- Adam


@_compiled
def deferred_adam(
    table: Any,
    rows: Any,
    gradient: Any,
    rate: float,
    correction: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """A step of Adam for some rows of a table ``(rows, 3, size)`` of value, mean and square.

    `rate` and `correction` hold the bias corrections of the two moments.
    """
    kind = table.dtype.type
    fresh1, fresh2, decay2 = kind(1 - beta1), kind(1 - beta2), kind(beta2)
    move, correct, floor = kind(rate), kind(correction), kind(epsilon)
    for index in range(len(rows)):
        row = rows[index]
        value, mean, square = table[row, 0], table[row, 1], table[row, 2]
        for column in range(table.shape[2]):
            own = gradient[index, column]
            mean[column] += (own - mean[column]) * fresh1
            square[column] = square[column] * decay2 + own * own * fresh2
            scale = np.sqrt(square[column]) * correct + floor
            value[column] -= move * mean[column] / scale


@_compiled
def catch_up(
    table: Any,
    last: Any,
    rows: Any,
    step: int,
    origin: int,
    by_step: Any,
    by_gap: Any,
    rate: float,
) -> None:
    """The steps that rows have missed, in one (see :mod:`dlcf.fast.adam`).

    Parameters
    ----------
    table, rows
        As for :func:`deferred_adam`.
    last
        int64: the step up to which each row is right; set to `step`.
    by_step
        ``(steps, 2)`` from step `origin` on: the series' rest, and epsilon as of that step.
    by_gap
        ``(steps, 3)``: powers of the ratio and of the two betas.
    """
    kind = table.dtype.type
    for index in range(len(rows)):
        row = rows[index]
        gap = step - last[row]
        if gap == 0:
            continue
        since = last[row] - origin
        missed = by_step[since, 0] - by_gap[gap, 0] * by_step[step - origin, 0]
        move, epsilon = kind(rate * missed), kind(by_step[since, 1])
        decay1, decay2 = kind(by_gap[gap, 1]), kind(by_gap[gap, 2])
        value, mean, square = table[row, 0], table[row, 1], table[row, 2]
        for column in range(table.shape[2]):
            value[column] -= move * mean[column] / (np.sqrt(square[column]) + epsilon)
            mean[column] *= decay1
            square[column] *= decay2
        last[row] = step
