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
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dlcf.fast import kernels
from dlcf.models.deepcf import AttentionNetwork
from dlcf.runtime.parallel import map_in_threads, threads_apart, threads_to_use

__all__ = ["FoldedTower", "score_all"]

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


_folded: WeakKeyDictionary[AttentionNetwork, FoldedTower] = WeakKeyDictionary()


@torch.no_grad()
def score_all(network: AttentionNetwork, users: Tensor) -> Tensor:
    """Ratings of every movie, ``(n, n_movies)``: what `forward` gives, with less arithmetic."""
    made_of = [(t.data_ptr(), t._version) for t in (*network.parameters(), *network.buffers())]
    tower = _folded.get(network)
    if tower is None or tower.made_of != made_of:
        tower = _folded[network] = FoldedTower(network)
        tower.made_of = made_of
    low, high = network.scale
    return low + (high - low) * torch.sigmoid(tower.logits(network.user_embedding(users)))


def folded_layers(network: AttentionNetwork) -> list[Layer]:
    """Weights and biases of the hidden layers with their batch norms folded in.

    The norms are fixed after training.
    """
    folded = []
    modules = list(network.tower)
    for linear, norm in zip(modules[0::4], modules[1::4], strict=True):
        assert isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
        assert norm.running_mean is not None and norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = (linear.bias - norm.running_mean) * gain + norm.bias
        folded.append((linear.weight * gain[:, None], shift))
    return folded


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
        (first_weight, self.first_bias), *self.rest = folded_layers(network)
        self.output: Layer = network.output.weight[0], network.output.bias
        contrast = network.attention.weight[0] - network.attention.weight[1]
        bias = network.attention.bias[0] - network.attention.bias[1]
        self.attention, self.first_weight = contrast[:size], first_weight[:, :size]
        self.movie_logits = movie @ contrast[size:] + bias
        self.movie_part = movie @ first_weight[:, size:].T

    @torch.no_grad()
    @threads_apart()
    def logits(self, users: Tensor) -> Tensor:
        """The output neuron for users ``(n, size)`` and all movies, ``(n, n_movies)``."""
        compute = partial(self._of_movies, self._sides(users))
        return torch.cat(map_in_threads(compute, self.movies(_BLOCK)), dim=1)

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
