"""The ratings of all movies for some users, by the paper's trained network.

This replaces forward passes over all pairs. Attention logits and the first layer are linear in each
embedding, so their user and movie parts are computed once for each user and each movie and only
added for each pair; batch norms, whose statistics are fixed after training, are folded into the
weights of their layers; and a softmax over two logits is the sigmoid of their difference. These are
identities, so the ratings are those of ``forward`` but for rounding.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dlcf.fast import kernels
from dlcf.models.deepcf import AttentionNetwork

BLOCK = 1024  # movies at a time, so many that caches hold what is between two layers

Layer = tuple[Tensor, Tensor]  # weights and biases

_folded: WeakKeyDictionary[AttentionNetwork, FoldedTower] = WeakKeyDictionary()
_buffers = threading.local()


@torch.no_grad()
def score_all(network: AttentionNetwork, users: Tensor) -> Tensor:
    """Ratings of every movie, ``(n, n_movies)``: what `forward` gives, with less arithmetic.

    The folded tower is kept with the network until its weights are written to.
    """
    made_of = [(t.data_ptr(), t._version) for t in (*network.parameters(), *network.buffers())]
    tower = _folded.get(network)
    if tower is None or tower.made_of != made_of:
        tower = _folded[network] = FoldedTower(network)
        tower.made_of = made_of
    low, high = network.scale
    return low + (high - low) * torch.sigmoid(tower.logits(network.user_embedding(users)))


class FoldedTower:
    """A trained :class:`~dlcf.models.deepcf.AttentionNetwork` with its movie parts computed.

    `made_of` holds the address of each tensor of the network, and how often it was written to.
    """

    made_of: list[tuple[int, int]]

    @torch.no_grad()
    def __init__(self, network: AttentionNetwork) -> None:
        size = network.user_embedding.embedding_dim
        movie = network.movie_embedding.weight
        (first_weight, self.first_bias), *self.rest = _folded_layers(network)
        self._biases = [self.first_bias, *(bias for _, bias in self.rest)]
        self.output: Layer = network.output.weight[0], network.output.bias
        contrast = network.attention.weight[0] - network.attention.weight[1]
        bias = network.attention.bias[0] - network.attention.bias[1]
        self.attention, self.first_weight = contrast[:size], first_weight[:, :size]
        self.movie_logits = movie @ contrast[size:] + bias
        self.movie_parts = movie @ first_weight[:, size:].T

    @torch.no_grad()
    def logits(self, users: Tensor) -> Tensor:
        """The output neuron for users' embeddings ``(n, size)`` and all movies, ``(n, n_movies)``.

        Movies are taken in blocks of about equal size.
        """
        n_blocks = -(-len(self.movie_logits) // BLOCK)
        parts = self.movie_logits.tensor_split(n_blocks), self.movie_parts.tensor_split(n_blocks)
        user_parts = users @ self.attention, users @ self.first_weight.T
        blocks = zip(*parts, strict=True)
        return torch.cat([self._block(user_parts, block) for block in blocks], dim=1)

    @torch.no_grad()
    def _block(self, users: tuple[Tensor, Tensor], movies: tuple[Tensor, Tensor]) -> Tensor:
        """The logits of every user and some movies, from attention logits and first-layer parts."""
        logits = movies[0].new_empty(len(users[0]), len(movies[0]))
        first, *others = self._hidden(len(movies[0]))
        for user_logit, user_part, out in zip(*users, logits, strict=True):
            share = torch.sigmoid(user_logit + movies[0])
            self._first_layer(share, user_part, movies[1], first)
            hidden = first
            for (weight, bias), buffer in zip(self.rest, others, strict=True):
                hidden = torch.addmm(bias, hidden, weight.T, out=buffer).relu_()
            torch.addmv(self.output[1], hidden, self.output[0], out=out)
        return logits

    def _first_layer(
        self, share: Tensor, user_part: Tensor, movie_parts: Tensor, out: Tensor
    ) -> None:
        if share.is_cpu:
            given = share, user_part, movie_parts, self.first_bias, out
            kernels.first_layer(*(tensor.numpy() for tensor in given))
        else:
            torch.addcmul(self.first_bias, 1 - share[:, None], movie_parts, out=out)
            out.addcmul_(share[:, None], user_part).relu_()

    def _hidden(self, n: int) -> list[Tensor]:
        """Memory for the hidden layers of `n` pairs, overwritten by the thread's next call.

        It is kept: new memory, which the system clears page by page, costs as much as what is
        computed in it.
        """
        kept = getattr(_buffers, "hidden", [])
        wanted = [(bias.device, bias.dtype, len(bias)) for bias in self._biases]
        if [(own.device, own.dtype, own.shape[1]) for own in kept] != wanted:
            kept = _buffers.hidden = [bias.new_empty(BLOCK, len(bias)) for bias in self._biases]
        return [own[:n] for own in kept]


def _folded_layers(network: AttentionNetwork) -> list[Layer]:
    """Weights and biases of the hidden layers with their batch norms folded in."""
    folded = []
    modules = list(network.tower)
    for linear, norm in zip(modules[0::4], modules[1::4], strict=True):
        assert isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
        assert norm.running_mean is not None and norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = (linear.bias - norm.running_mean) * gain + norm.bias
        folded.append((linear.weight * gain[:, None], shift))
    return folded
