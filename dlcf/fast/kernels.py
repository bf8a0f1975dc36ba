"""Loops that numba compiles on first use, in place of chains of small torch calls.

They replace element-wise torch operations between the matrix products: torch reads and writes a
whole matrix for each operation, a loop does all of them in one or two passes, so what is computed
is the same and only the order of a sum may differ.

All arguments are arrays in C order, ``(rows, columns)`` and float32 or float64 alike, or numbers;
results are written into arrays that the caller gives, and no matrix is allocated. Parameters are
not annotated, because numba compiles a version for the types of each call. Sums run over the rows
in their order; within a row the compiler may reorder them, always in the same way on the same
processor. No kernel calls another: a loop that is compiled into its caller may round differently
from one that is loaded from numba's cache, and a first run would not have the bits of the second.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numba import njit

# Sums may be reordered and products fused with sums; infinities and NaN stay what they are.
_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


def compiled(function) -> Any:
    """Compiled, or from numba's cache, where a file that was cut off counts as absent.

    Other threads run meanwhile: a kernel holds no lock of Python's.
    """
    made: Any = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH)(function)
    load = made._cache.load_overload

    def load_whole(*given: Any) -> Any:
        try:
            return load(*given)
        except (EOFError, UnpicklingError):
            made._cache.flush()
            return None

    made._cache.load_overload = load_whole
    return made


# ------------------------------------------------------------------- batch norm, relu and dropout
#
# For a column z of a layer's products, with m and v its mean and variance in the batch:
#
#     x = (z - m) / sqrt(v + eps)            normalised
#     y = gain x + shift = slope z + offset  inv_std = 1 / sqrt(v + eps), slope = gain inv_std
#     h = dropout(relu(y))
#
# and with g the gradient of y (Ioffe and Szegedy, 2015), means over the batch:
#
#     grad_shift = sum(g),  grad_gain = sum(g x),  grad_z = slope (g - mean(g) - x mean(g x))


@compiled
def column_sums(values, sums):
    """Sum of each column."""
    sums[:] = 0
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            sums[column] += values[row, column]


@compiled
def centred_squares(values, sums, n, squares):
    """Sum of each column's squared distances from its mean, ``sums / n``.

    A second pass, because the mean of squares less the squared mean cancels in float32.
    """
    share = values.dtype.type(1 / n)
    squares[:] = 0
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            distance = values[row, column] - sums[column] * share
            squares[column] += distance * distance


@compiled
def batch_moments(
    sums, squares, n, running, momentum, epsilon, gain, shift, mean, inv_std, slope, offset
):
    """The batch norm as ``slope * values + offset``, and its running statistics.

    `sums` and `squares` are those of all `n` rows of the batch. `running` ``(2, columns)``, mean
    and variance, moves by `momentum`; the last four arguments are overwritten.
    """
    dtype = sums.dtype.type
    moved = dtype(momentum)
    for column in range(len(sums)):
        mean[column] = sums[column] * dtype(1 / n)
        variance = squares[column] * dtype(1 / n)
        # As torch does: the batch is normalised with 1 / n, the running variance takes 1 / (n - 1).
        unbiased = squares[column] * dtype(1 / (n - 1))
        running[0, column] += (mean[column] - running[0, column]) * moved
        running[1, column] += (unbiased - running[1, column]) * moved
        inv_std[column] = dtype(1) / np.sqrt(variance + dtype(epsilon))
        slope[column] = gain[column] * inv_std[column]
        offset[column] = shift[column] - slope[column] * mean[column]


@compiled
def activate(values, slope, offset, bits, first, dropped, scale, out):
    """``relu(slope * values + offset)``, then dropout.

    A unit is dropped where its 16 random bits, in the columns of `bits` from `first` on, are below
    `dropped`; what is kept is multiplied by `scale`, one over the share that is kept.
    """
    zero = values.dtype.type(0)
    kept = values.dtype.type(scale)
    for row in range(values.shape[0]):
        own = bits[row, first : first + values.shape[1]]
        for column in range(values.shape[1]):
            value = values[row, column] * slope[column] + offset[column]
            value = value if value > zero else zero
            # A choice of values and not a jump: branches on random bits cannot be predicted.
            out[row, column] = value * kept if own[column] >= dropped else zero


@compiled
def dropout_relu_backward(grad, hidden, values, mean, scale, grad_gain, grad_shift):
    """Back through dropout and relu, in place, and the two sums that batch norm's backward needs.

    `grad` comes as the gradient of `hidden` and leaves as that of the batch norm's output.
    `grad_shift` is overwritten by its sum over the rows, `grad_gain` by the sum of it times the
    centred value, which :func:`norm_coefficients` multiplies by the inverse deviation.
    """
    zero = values.dtype.type(0)
    kept = values.dtype.type(scale)
    grad_gain[:] = 0
    grad_shift[:] = 0
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            # An output is positive only where neither relu nor dropout has closed the unit, so no
            # mask has to be kept.
            own = grad[row, column] * (kept if hidden[row, column] > zero else zero)
            grad[row, column] = own
            grad_shift[column] += own
            grad_gain[column] += own * (values[row, column] - mean[column])


@compiled
def norm_coefficients(
    sum_gain, sum_shift, n, mean, inv_std, slope, grad_gain, value_coefficient, constant
):
    """What :func:`norm_backward` takes, for ``grad_z`` as above, ordered by powers of ``z``.

    `sum_gain` and `sum_shift` are the sums of :func:`dropout_relu_backward` over all `n` rows.
    `grad_gain` holds this process's part of `sum_gain`, or is the same array, and becomes the
    gradient of the gain; the last two arguments are overwritten.
    """
    share = sum_gain.dtype.type(1 / n)
    for column in range(len(mean)):
        # slope x mean(g x) = slope inv_std^2 mean(g (z - m)) (z - m)
        curved = inv_std[column] * inv_std[column] * sum_gain[column] * share
        value_coefficient[column] = -slope[column] * curved
        straight = -slope[column] * sum_shift[column] * share
        constant[column] = straight - value_coefficient[column] * mean[column]
        grad_gain[column] *= inv_std[column]


@compiled
def norm_backward(grad, values, slope, value_coefficient, constant):
    """``slope * grad + value_coefficient * values + constant``, in place."""
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            own = (
                grad[row, column] * slope[column] + values[row, column] * value_coefficient[column]
            )
            grad[row, column] = own + constant[column]


# -------------------------------------------------------------------------- embeddings and output


@compiled
def distinct_rows(pairs, slot, rows, position):
    """Each row of a table that `pairs` names, once, in order of appearance; returns how many.

    `pairs` is int64 ``(n, 2)``; `slot` int64, one for each row of the table, all -1, and left so.
    The first entries of `rows`, int64 ``(2 n,)``, are overwritten, and so is `position`, int64
    ``(n, 2)``: where in `rows` each entry of `pairs` is.
    """
    count = 0
    for index in range(pairs.shape[0]):
        for side in range(2):
            row = pairs[index, side]
            if slot[row] < 0:
                slot[row] = count
                rows[count] = row
                count += 1
            position[index, side] = slot[row]
    # Only what was written is reset: the table may have a million rows.
    for index in range(count):
        slot[rows[index]] = -1
    return count


@compiled
def attend(table, pairs, attention, bias, contrast, inputs, weight):
    """Embeddings times their attention weights.

    Embeddings are ``table[:, 0]`` of the `table` ``(rows, 3, size)``; `pairs`, int64 ``(n, 2)``,
    are rows of a user and of a movie. `attention` ``(2, 2 size)`` and `bias` ``(2,)`` belong to the
    user's logit and the movie's. Overwritten are `contrast` ``(2 size,)``, the difference of the
    two rows of `attention`, `inputs` ``(n, 2 size)`` and `weight` ``(n,)``, that of the user.
    """
    size = table.shape[2]
    # softmax(a, b) = (sigmoid(a - b), 1 - sigmoid(a - b)): one logit is enough.
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


@compiled
def attend_backward(
    grad_inputs, table, pairs, position, contrast, weight, grad_rows, grad_attention, grad_bias
):
    """Back through :func:`attend`.

    `grad_rows` ``(distinct rows, size)``, in the order that `position` refers to, and the gradients
    of attention and bias are overwritten.
    """
    size = table.shape[2]
    grad_rows[:] = 0
    # The first row of the gradient is that of the contrast, the second is its negative.
    grad_contrast = grad_attention[0]
    grad_contrast[:] = 0
    grad_logits = grad_inputs.dtype.type(0)
    one = grad_inputs.dtype.type(1)
    for index in range(pairs.shape[0]):
        user = table[pairs[index, 0], 0]
        movie = table[pairs[index, 1], 0]
        grad_user = grad_rows[position[index, 0]]
        grad_movie = grad_rows[position[index, 1]]
        share = weight[index]
        # Through the weights: sigmoid' = share (1 - share).
        grad_logit = grad_inputs.dtype.type(0)
        for column in range(size):
            grad_logit += grad_inputs[index, column] * user[column]
            grad_logit -= grad_inputs[index, size + column] * movie[column]
        grad_logit *= share * (one - share)
        grad_logits += grad_logit
        # An embedding has a gradient as an input of the tower and one through its logit; rows that
        # several pairs of the batch name collect those of all.
        for column in range(size):
            grad_user[column] += share * grad_inputs[index, column] + grad_logit * contrast[column]
            grad_contrast[column] += grad_logit * user[column]
        for column in range(size):
            direct = (one - share) * grad_inputs[index, size + column]
            grad_movie[column] += direct + grad_logit * contrast[size + column]
            grad_contrast[size + column] += grad_logit * movie[column]
    for column in range(2 * size):
        grad_attention[1, column] = -grad_contrast[column]
    grad_bias[0], grad_bias[1] = grad_logits, -grad_logits


@compiled
def first_layer(share, user_part, movie_parts, bias, out):
    """``relu(share user_part + (1 - share) movie_part + bias)`` of one user and `n` movies.

    `share` ``(n,)`` is the attention weight on the user, `user_part` ``(outputs,)`` and
    `movie_parts` ``(n, outputs)`` are the layer's products with the embeddings; `out`
    ``(n, outputs)`` is overwritten.
    """
    zero, one = out.dtype.type(0), out.dtype.type(1)
    for row in range(len(share)):
        on_user, on_movie = share[row], one - share[row]
        for column in range(out.shape[1]):
            value = on_user * user_part[column] + on_movie * movie_parts[row, column] + bias[column]
            out[row, column] = value if value > zero else zero


@compiled
def output(hidden, weights, bias, ratings, low, span, n, grad_hidden, grad_weights):
    """The sigmoid neuron, the squared error of its ratings, and the way back.

    The error that is differentiated is the mean over `n` ratings, of which these may be a part.
    `grad_hidden` and `grad_weights` are overwritten; the sum of squared errors and the gradient of
    the bias are returned.
    """
    dtype = hidden.dtype.type
    grad_weights[:] = 0
    grad_bias = dtype(0)
    squares = dtype(0)
    for row in range(hidden.shape[0]):
        logit = dtype(bias)
        for column in range(hidden.shape[1]):
            logit += hidden[row, column] * weights[column]
        strength = dtype(1) / (dtype(1) + math.exp(-logit))
        error = strength * dtype(span) + dtype(low) - ratings[row]
        squares += error * error
        # d (error^2 / n) / d logit, where d error / d logit = span sigmoid'.
        grad_logit = error * strength * (dtype(1) - strength) * dtype(2 * span / n)
        grad_bias += grad_logit
        for column in range(hidden.shape[1]):
            grad_weights[column] += grad_logit * hidden[row, column]
            grad_hidden[row, column] = grad_logit * weights[column]
    return squares, grad_bias


# --------------------------------------------------------------------------- matrix factorisation


@compiled
def factor_gradient(
    table, pairs, position, deviations, n, regularization, bias_regularization, grad_rows
):
    """Gradient of biased matrix factorisation (Koren, Bell and Volinsky, 2009, eq. 5).

    The objective is a mean over `n` pairs, of which these may be a part.

    Factors and bias are ``table[:, 0]`` of the `table` ``(rows, 3, factors + 1)``; `pairs` and
    `position` are as for :func:`distinct_rows`; `deviations` are ratings less the mean of all.
    `grad_rows` ``(distinct rows, factors + 1)`` is overwritten; the sum of squared errors, without
    the penalty, is returned.
    """
    dtype = table.dtype.type
    size = table.shape[2] - 1
    scale = dtype(2 / n)
    shrink, shrink_bias = dtype(regularization * 2 / n), dtype(bias_regularization * 2 / n)
    grad_rows[:] = 0
    squares = 0.0
    for index in range(pairs.shape[0]):
        user, movie = table[pairs[index, 0], 0], table[pairs[index, 1], 0]
        grad_user, grad_movie = grad_rows[position[index, 0]], grad_rows[position[index, 1]]
        product = dtype(0)
        for column in range(size):
            product += user[column] * movie[column]
        error = product + user[size] + movie[size] - deviations[index]
        squares += error * error
        grad_rating = error * scale
        for column in range(size):
            grad_user[column] += grad_rating * movie[column] + shrink * user[column]
            grad_movie[column] += grad_rating * user[column] + shrink * movie[column]
        grad_user[size] += grad_rating + shrink_bias * user[size]
        grad_movie[size] += grad_rating + shrink_bias * movie[size]
    return squares


# ------------------------------------------------------------------------------------------- Adam


@compiled
def deferred_adam(table, rows, gradient, learning_rate, correction, beta1, beta2, epsilon):
    """A step of Adam for some rows of a table ``(rows, 3, size)`` of value, mean and square.

    `learning_rate` and `correction` hold the bias corrections of the two moments.
    """
    dtype = table.dtype.type
    fresh1, fresh2, decay2 = dtype(1 - beta1), dtype(1 - beta2), dtype(beta2)
    move, correct, floor = dtype(learning_rate), dtype(correction), dtype(epsilon)
    for index in range(len(rows)):
        row = rows[index]
        value, mean, square = table[row, 0], table[row, 1], table[row, 2]
        for column in range(table.shape[2]):
            own = gradient[index, column]
            mean[column] += (own - mean[column]) * fresh1
            square[column] = square[column] * decay2 + own * own * fresh2
            scale = np.sqrt(square[column]) * correct + floor
            value[column] -= move * mean[column] / scale


@compiled
def catch_up(table, last, rows, step, origin, per_step, per_gap, learning_rate):
    """The steps that rows have missed, in one (see :mod:`dlcf.fast.adam`).

    `last`, int64, holds the step up to which each row is right, and is set to `step`. `per_step`
    ``(steps, 2)``, from step `origin` on, has the rest of the series and epsilon of that step,
    `per_gap` ``(steps, 3)`` powers of the ratio and of the two betas.
    """
    dtype = table.dtype.type
    for index in range(len(rows)):
        row = rows[index]
        gap = step - last[row]
        if gap == 0:
            continue
        since = last[row] - origin
        # A partial sum of the series as the difference of two rests.
        missed = per_step[since, 0] - per_gap[gap, 0] * per_step[step - origin, 0]
        move, epsilon = dtype(learning_rate * missed), dtype(per_step[since, 1])
        decay1, decay2 = dtype(per_gap[gap, 1]), dtype(per_gap[gap, 2])
        value, mean, square = table[row, 0], table[row, 1], table[row, 2]
        for column in range(table.shape[2]):
            value[column] -= move * mean[column] / (np.sqrt(square[column]) + epsilon)
            mean[column] *= decay1
            square[column] *= decay2
        last[row] = step
