"""The trained tower of the paper's network over a whole catalogue: all scores, or the best alone.

Attention logits and the first layer are linear in each embedding, so their user and movie parts are
worked out once for each user and movie and only added for each pair. The products after it are most
of what is left, and all scores need them; but to tell which movies are in a list of ten they need
not be exact. :class:`Screen` computes them in bfloat16, which processors with instructions for that
do several times faster, and bounds what that changes in the output: by how far inputs and weights
are moved by rounding, which is measured, times how much the layers behind can amplify it, which is
the product of their spectral norms. A movie whose guess plus bound stays below the tenth best score
is in no list; the others are scored exactly. The bound holds for every pair, so the lists are the
exact ones whatever the network; one that amplifies more has more to score.
"""

from __future__ import annotations

import threading
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlcf.fast import kernels
from dlcf.models.base import IndexArrays
from dlcf.runtime.parallel import map_in_threads, threads_apart, threads_to_use

if TYPE_CHECKING:
    from dlcf.models.deepcf import AttentionNetwork

__all__ = ["FoldedTower", "Screen", "bfloat16_is_fast"]

_BLOCK = 1024  # pairs, so many that caches hold what is between two layers
_SCREEN_BLOCK = 5120  # more of them: less is computed of each, and calls should not outweigh it
_USERS = 16  # of which the lengths are kept that their bounds are made of
_SAMPLE = 64  # movies, whose hidden layers are averaged
_TRIED = 4  # times as many movies as are wanted: their exact scores set the limit for all others
_SLACK = 1e-5  # of the highest rating: many times what the rounding of a rating can be
_ROUND, _UNIT = torch.bfloat16, 2.0**-8  # a rounded number moves by this share of it at most

Layer = tuple[Tensor, Tensor]  # weights and biases
Sides = tuple[Tensor, Tensor]  # what depends on users alone: attention logits, first layer's part
Pairs = tuple[Tensor, Tensor]  # positions of users among those given, and movies


@cache
def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies matrices of bfloat16 several times faster than of float32.

    It does with AMX; what else it may have for bfloat16 does not count.
    """
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


class FoldedTower:
    """A trained :class:`~dlcf.models.deepcf.AttentionNetwork`, its movie parts worked out.

    Attributes
    ----------
    made_of
        Which tensors, and how often they were written to.
    share_scored
        Of the scores that the last lists were drawn from, the share that had to be exact; 0 before.
    """

    made_of: list[tuple[int, int]]

    @torch.no_grad()
    def __init__(self, network: AttentionNetwork) -> None:
        size = network.user_embedding.embedding_dim
        movie = network.movie_embedding.weight
        (first_weight, self.first_bias), *self.rest = network.folded_layers()
        self.output: Layer = network.output.weight[0], network.output.bias
        self.rating = network.rating
        self._slack = _SLACK * max(map(abs, network.scale))
        contrast = network.attention.weight[0] - network.attention.weight[1]
        bias = network.attention.bias[0] - network.attention.bias[1]
        self.attention, self.first_weight = contrast[:size], first_weight[:, :size]
        self.movie_logits = movie @ contrast[size:] + bias
        self.movie_part = movie @ first_weight[:, size:].T
        self.share_scored = 0.0
        self._screen: Screen | None = None

    @torch.no_grad()
    @threads_apart()
    def logits(self, users: Tensor) -> Tensor:
        """The output neuron for users ``(n, size)`` and all movies, ``(n, n_movies)``."""
        compute = partial(self._of_movies, self._sides(users))
        return torch.cat(map_in_threads(compute, self.movies(_BLOCK)), dim=1)

    @torch.no_grad()
    @threads_apart()
    def list_scores(self, users: Tensor, left_out: IndexArrays, k: int) -> NDArray[np.float32]:
        """Ratings of the movies that may be among a user's best, on the CPU.

        Parameters
        ----------
        users
            Embeddings ``(n, size)``.
        left_out
            Rows and movies of what is in no list.
        k
            The length of the lists.

        Returns
        -------
        ndarray
            ``(n, n_movies)``; ``-inf`` for what is left out, and for what certainly is below the
            `k` best of its row.
        """
        self._screen = self._screen or Screen(self)
        sides = self._sides(users)
        compute = partial(self._screen.of_movies, sides, self._screen.centres(sides))
        blocks = map_in_threads(compute, self.movies(_SCREEN_BLOCK))
        guesses, errors = (torch.cat(part, dim=1) for part in zip(*blocks, strict=True))
        highest = self.rating(guesses + errors)
        guesses[left_out] = -torch.inf
        scores = torch.full_like(guesses, -torch.inf)
        tried = torch.topk(guesses, min(_TRIED * k, guesses.shape[1])).indices
        first = torch.zeros_like(guesses, dtype=torch.bool).scatter_(1, tried, True)
        first[left_out] = False
        self._score(scores, sides, first)
        limit = torch.topk(scores, min(k, scores.shape[1])).values[:, -1:] - self._slack
        # Not `highest >= limit`: what is not a number is ruled out by nothing.
        possible = ~(highest < limit) & ~first
        possible[left_out] = False
        self._score(scores, sides, possible)
        self.share_scored = float((first | possible).float().mean())
        return scores.numpy()

    def _score(self, scores: Tensor, sides: Sides, wanted: Tensor) -> None:
        """Exact ratings of the `wanted` pairs, in their places of `scores`."""
        pairs = wanted.nonzero(as_tuple=True)
        blocks = list(zip(*(index.split(_BLOCK) for index in pairs), strict=True))
        scores[pairs] = self.rating(
            torch.cat(map_in_threads(partial(self._of_pairs, sides), blocks))
        )

    def _sides(self, users: Tensor) -> Sides:
        return users @ self.attention, users @ self.first_weight.T

    def movies(self, size: int) -> list[Tensor]:
        """The catalogue in blocks of about `size` at most, equally many for each thread."""
        n, n_threads = len(self.movie_logits), threads_to_use()
        n_blocks = n_threads * -(-n // (n_threads * size))
        return list(torch.arange(n, device=self.movie_logits.device).tensor_split(min(n_blocks, n)))

    @torch.no_grad()
    def _of_movies(self, sides: Sides, movies: Tensor) -> Tensor:
        """Every user's logits of some movies."""
        logits = self.movie_logits.new_empty(len(sides[0]), len(movies))
        buffers = self._buffers(len(movies))
        for row, out in enumerate(logits):
            self._forward(sides, (torch.full_like(movies, row), movies), buffers, out)
        return logits

    @torch.no_grad()
    def _of_pairs(self, sides: Sides, pairs: Pairs) -> Tensor:
        """The logits of some pairs."""
        n = len(pairs[0])
        out = self.movie_logits.new_empty(n)
        self._forward(sides, pairs, self._buffers(n), out)
        return out

    def _buffers(self, n: int) -> list[Tensor]:
        """Memory for the hidden layers of `n` pairs."""
        biases = [self.first_bias, *(bias for _, bias in self.rest)]
        if not self.first_bias.is_cpu:
            return [bias.new_empty(n, len(bias)) for bias in biases]
        return [scratch(f"hidden {i}", n, len(b), b.dtype) for i, b in enumerate(biases)]

    def _forward(self, sides: Sides, pairs: Pairs, buffers: list[Tensor], out: Tensor) -> None:
        hidden, *others = buffers
        self.first_layer(sides, pairs, hidden)
        for (weight, bias), buffer in zip(self.rest, others, strict=True):
            hidden = torch.addmm(bias, hidden, weight.T, out=buffer).relu_()
        torch.addmv(self.output[1], hidden, self.output[0], out=out)

    def first_layer(self, sides: Sides, pairs: Pairs, out: Tensor) -> None:
        """The first hidden layer of some pairs, from their sides.

        A softmax over two logits is the sigmoid of their difference.
        """
        (user_logits, user_parts), (rows, movies) = sides, pairs
        share = torch.sigmoid(user_logits[rows] + self.movie_logits[movies])
        if share.is_cpu:
            given = share, user_parts, rows, self.movie_part, movies, self.first_bias, out
            kernels.first_layer(*(tensor.numpy() for tensor in given))
        else:
            torch.addcmul(self.first_bias, 1 - share[:, None], self.movie_part[movies], out=out)
            out.addcmul_(share[:, None], user_parts[rows]).relu_()


class Screen:
    """Guesses of a :class:`FoldedTower`'s output, each with a bound on its error.

    With ``h`` what a layer is given, ``c`` its mean over some movies, ``g`` the difference of the
    two in bfloat16, ``W`` the layer's weights and ``V`` their copy in bfloat16, a guess goes on
    with ``W c + fl(V g)`` in place of ``W h``. With ``d = h - c``, these differ by at most (norms
    are Euclidean, of matrices spectral) ::

        |W| |d - g|  +  |W - V| |g|  +  u |fl(V g)|  +  n u' (||V|| |g| + ||W|| (|h'| + |c|))

    the third for the product's own rounding to bfloat16 (unit roundoff u), the last for the float32
    sums of n terms on both sides (unit u', taken twice; ``||W||`` is the norm of absolute values
    and ``h'`` what the exact score has for h). Relu moves nothing apart, so the layers behind
    amplify a difference by their norms at most. To make the product of these small, what goes into
    a unit is multiplied by what divides that which comes out of it (:func:`_balanced`).
    """

    @torch.no_grad()
    def __init__(self, tower: FoldedTower) -> None:
        self.tower = tower
        *layers, (weight, self.bias) = _balanced([*tower.rest, tower.output])
        self.layers = [_RoundedLayer(*layer) for layer in layers]
        self.weight, self._norm = weight, float(weight.double().norm())
        self._offset, self._summed = float(self.bias.abs()), _summed(len(weight))

    @torch.no_grad()
    def centres(self, sides: Sides) -> tuple[list[Tensor], list[Tensor]]:
        """Means of each user's hidden layers over some movies, and what each layer makes of them.

        The output neuron is given what is not rounded: the last means are zeros.
        """
        n_movies, users = len(self.tower.movie_logits), torch.arange(len(sides[0]))
        some = torch.arange(0, n_movies, -(-n_movies // _SAMPLE))
        hidden = self.weight.new_empty(len(users) * len(some), len(self.tower.first_bias))
        pairs = users.repeat_interleave(len(some)), some.repeat(len(users))
        self.tower.first_layer(sides, pairs, hidden)
        centres, offsets = [], []
        for layer in self.layers:
            centres.append(hidden.view(len(users), len(some), -1).mean(dim=1))
            offsets.append(torch.addmm(layer.bias, centres[-1], layer.exact.T))
            hidden = torch.addmm(layer.bias, hidden, layer.exact.T).relu_()
        return [*centres, hidden.new_zeros(len(users), hidden.shape[1])], offsets

    @torch.no_grad()
    def of_movies(
        self, sides: Sides, centred: tuple[list[Tensor], list[Tensor]], movies: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Every user's guesses of some movies' logits, and bounds of their errors.

        `centred` is what :meth:`centres` gives.
        """
        n_users, n = len(sides[0]), len(movies)
        guesses, errors = self.weight.new_empty(2, n_users, n).unbind()
        norms = self.weight.new_empty(1 + len(self.layers), min(_USERS, n_users), n, 3)
        for start in range(0, n_users, _USERS):
            own = slice(start, min(start + _USERS, n_users))
            lengths = norms[:, : own.stop - start]
            self._guess(sides, centred, movies, own, guesses[own], lengths)
            errors[own] = self._errors(lengths.sqrt_(), [centre[own] for centre in centred[0]])
        return guesses, errors

    def _guess(
        self,
        sides: Sides,
        centred: tuple[list[Tensor], list[Tensor]],
        movies: Tensor,
        users: slice,
        out: Tensor,
        norms: Tensor,
    ) -> None:
        """Some users' guesses, and squares of lengths by layer, see :mod:`dlcf.fast.kernels`."""
        centres, offsets = (_arrays([t[users] for t in side]) for side in centred)
        n, sizes = len(movies), [len(layer.bias) for layer in self.layers]
        first = scratch("first", n, len(self.tower.first_bias))
        copies = [
            scratch(f"copy {i}", n, w, _ROUND) for i, w in enumerate([first.shape[1], *sizes])
        ]
        hidden = [scratch("hidden", n, size) for size in sizes]
        products = [scratch("product", n, size, _ROUND) for size in sizes]
        given, copied, made, multiplied = map(_arrays, ([first], copies, hidden, products))
        squares = norms.numpy()
        for row, guess in enumerate(out):
            user = torch.full_like(movies, users.start + row)
            self.tower.first_layer(sides, (user, movies), first)
            kernels.rounded(given[0], centres[0][row], copied[0], squares[0, row])
            for i, layer in enumerate(self.layers):
                torch.mm(copies[i], layer.weight.T, out=products[i])
                rounding = centres[i + 1][row], copied[i + 1], squares[i + 1, row]
                kernels.bias_relu(multiplied[i], offsets[i][row], made[i], *rounding)
            torch.addmv(self.bias, hidden[-1], self.weight, out=guess)

    def _errors(self, lengths: Tensor, centres: list[Tensor]) -> Tensor:
        """The bounds, from the lengths by layer of fl(V g), of d, and of d - g, and from the c."""
        apart = torch.zeros_like(lengths[0, ..., 0])
        for i, layer in enumerate(self.layers):
            centre = centres[i].norm(dim=1, keepdim=True)
            given, made = lengths[i], lengths[i + 1]
            apart = layer.apart(given[..., 1], given[..., 2], made[..., 0], centre, apart)
        summed = self._summed * (self._norm * (lengths[-1, ..., 1] + apart) + self._offset)
        # A thousandth more for the rounding of all these lengths.
        return 1.001 * (self._norm * apart + 2 * summed)


class _RoundedLayer:
    """Weights rounded to bfloat16, and what that and the rounding of inputs can change."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.exact, self.weight, self.bias = weight, weight.to(_ROUND), bias
        exact, rounded = weight.double(), self.weight.double()
        self._norm, self._by_rounding = _norm(exact), _norm(exact - rounded)
        self._sums = _summed(weight.shape[1]) * (_norm(exact.abs()) + _norm(rounded.abs()))
        self._offset = _summed(1) * float(bias.norm())

    def apart(
        self, size: Tensor, gap: Tensor, product: Tensor, centre: Tensor, apart: Tensor
    ) -> Tensor:
        """How far the output may be from the exact one, where the inputs may be `apart`."""
        rounding = self._norm * gap + self._by_rounding * (size + gap) + _UNIT * product
        sums = self._sums * (size + gap + centre + apart) + _summed(1) * product + self._offset
        return self._norm * apart + rounding + sums


def _balanced(layers: list[Layer]) -> list[Layer]:
    """The same function of relu units, scaled so that weights into and out of each are alike.

    The last layer first; `layers` end with the output neuron, a vector.
    """
    weights, biases = ([layer[i] for layer in layers] for i in range(2))
    weights[-1] = weights[-1][None]
    for index in reversed(range(len(weights) - 1)):
        into, out = weights[index].norm(dim=1), weights[index + 1].norm(dim=0)
        scale = torch.sqrt(out / into)
        scale = torch.where((scale > 0) & torch.isfinite(scale), scale, 1.0)[:, None]
        weights[index], biases[index] = weights[index] * scale, biases[index] * scale[:, 0]
        weights[index + 1] = weights[index + 1] / scale.T
    weights[-1] = weights[-1][0]
    return list(zip(weights, biases, strict=True))


def _summed(n: int) -> float:
    """Twice what rounding may change in a float32 sum of `n` terms, as a share of their sizes."""
    return (n + 1) * 2.0**-23


def _norm(matrix: Tensor) -> float:
    """The spectral norm; infinite where a weight is not a finite number, and nothing is known."""
    finite = bool(torch.isfinite(matrix).all())
    return float(torch.linalg.matrix_norm(matrix, 2)) if finite else float("inf")


def _arrays(tensors: list[Tensor]) -> list[NDArray[Any]]:
    """The memory of tensors; of bfloat16, which numpy has no type for, as uint16."""
    return [(t.view(torch.uint16) if t.dtype == _ROUND else t).numpy() for t in tensors]


_kept = threading.local()


def scratch(name: str, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory ``(rows, columns)`` that stays with the thread, for what is soon overwritten.

    What is given under the same name before is not to be used any more. New memory for every block
    costs as much as what is done with it: the system clears it, page by page.
    """
    size = rows * columns
    found = getattr(_kept, name, None)
    if found is None or found.numel() < size or found.dtype != dtype:
        found = torch.empty(size, dtype=dtype)
        setattr(_kept, name, found)
    return found[:size].view(rows, columns)
