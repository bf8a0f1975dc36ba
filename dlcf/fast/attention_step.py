"""The training step of the paper's network by hand.

At batches of 64 ratings, the textbook loop spends most of its time around the arithmetic: autograd
records and replays a graph of small operations, Adam walks over 1.3 million embedding weights of
which a batch touches a few thousand, and dropout draws a float for every unit. Here forward and
backward are written out as twelve matrix products, which nothing can save and torch does best, and
loops between them (:mod:`dlcf.fast.kernels`), compiled by numba, that do all that is done to a matrix
element by element in one or two passes. The embeddings take Adam's steps only where a batch
touches them (:class:`~dlcf.fast.adam.DeferredAdam`, equal to dense Adam); all other weights lie
in one flat tensor, which Adam passes once; and dropout compares 16 random bits a unit. Several
processes (:mod:`dlcf.runtime.distributed`) share each batch: moments of batch norms and gradients are
summed over them, dropout is drawn for the whole batch by each, and so their number changes nothing
but rounding.

Two things differ from autograd's step beside rounding. A bias before a batch norm has no effect and
a gradient of zero, so it stays at zero, where Adam would blow up the rounding error of autograd's.
And a dropout rate is held to a multiple of 2^-16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlcf.fast import kernels
from dlcf.fast.adam import DeferredAdam, DistinctRows, FlatAdam
from dlcf.models.deepcf import AttentionNetwork
from dlcf.runtime.distributed import (
    n_processes,
    share,
    sum_array_over_processes,
    sum_over_processes,
)
from dlcf.training import Batch, TrainingConfig, TrainingStep

__all__ = ["AttentionStep"]

# Sets the stream of orders and dropout apart from those that the same seed begins elsewhere.
STREAM = 1
Floats = NDArray[Any]


class HiddenLayer:
    """A linear layer, its batch norm, relu and dropout, forward and backward.

    Parameters
    ----------
    modules
        Linear, batch norm, relu and dropout of the network.
    views
        The layer's weight, gain and shift in the flat tensor of weights, then in that of gradients.
    first_bit
        The layer's first column in the random bits.
    n_rows
        Most ratings of a batch.
    """

    def __init__(
        self,
        modules: tuple[nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout],
        views: tuple[list[Tensor], list[Tensor]],
        first_bit: int,
        n_rows: int,
    ) -> None:
        linear, norm, _, dropout = modules
        (self.weight, gain, shift), (self.by_weight, by_gain, by_shift) = views
        self.gain, self.shift = gain.numpy(), shift.numpy()
        self.by_gain, self.by_shift = by_gain.numpy(), by_shift.numpy()
        assert norm.running_mean is not None and norm.running_var is not None
        self.momentum, self.epsilon = norm.momentum, norm.eps
        self.running = torch.stack([norm.running_mean, norm.running_var])
        self._running = self.running.numpy()
        self.first_bit = first_bit
        self.dropped = np.uint16(round(dropout.p * 2**16))
        self.scale = 2**16 / (2**16 - int(self.dropped))
        n_outputs = linear.out_features
        self._values, self._hidden = self.weight.new_empty(2, n_rows, n_outputs).unbind()
        self._by_inputs = self.weight.new_empty(n_rows, linear.in_features)
        self._views: dict[int, tuple[Tensor, Floats, Tensor, Floats, Tensor]] = {}
        vectors = self.weight.new_empty(8, n_outputs).numpy()
        self._sums, self._squares, self._mean, self._inverse = vectors[:4]
        self._slope, self._offset, self._tilt, self._shifted = vectors[4:]

    def forward(self, inputs: Tensor, bits: NDArray[np.uint16], n: int) -> Tensor:
        """Of some of the batch's `n` rows; keeps what :meth:`backward` needs."""
        self._inputs = inputs
        product, values, hidden, activated, _ = self._view(len(inputs))
        torch.mm(inputs, self.weight.mT, out=product)
        kernels.column_sums(values, self._sums)
        sum_array_over_processes(self._sums)
        kernels.centred_squares(values, self._sums, n, self._squares)
        sum_array_over_processes(self._squares)
        affine = self._mean, self._inverse, self._slope, self._offset
        step = self._running, self.momentum, self.epsilon
        kernels.moments(self._sums, self._squares, n, *step, self.gain, self.shift, *affine)
        dropout = bits, self.first_bit, self.dropped, self.scale
        kernels.activate(values, self._slope, self._offset, *dropout, activated)
        return hidden

    def backward(self, by_hidden: Tensor, n: int) -> Tensor:
        """The gradient by the inputs; `by_hidden` is overwritten."""
        _, values, _, activated, by_inputs = self._view(len(by_hidden))
        by_summed = by_hidden.numpy()
        sides = self.by_gain, self.by_shift
        kernels.close_units(by_summed, activated, values, self._mean, self.scale, *sides)
        sums = sides if n_processes() == 1 else [sum_array_over_processes(s.copy()) for s in sides]
        affine = self._mean, self._inverse, self._slope, self.by_gain, self._tilt, self._shifted
        kernels.moments_backward(*sums, n, *affine)
        kernels.normalise_backward(by_summed, values, self._slope, self._tilt, self._shifted)
        torch.mm(by_hidden.mT, self._inputs, out=self.by_weight)
        return torch.mm(by_hidden, self.weight, out=by_inputs)

    def _view(self, n: int) -> tuple[Tensor, Floats, Tensor, Floats, Tensor]:
        """The memory of `n` rows: products, activations (tensor and array), gradient by inputs."""
        if n not in self._views:
            values, hidden = self._values[:n], self._hidden[:n]
            arrays = values.numpy(), hidden.numpy()
            self._views[n] = values, arrays[0], hidden, arrays[1], self._by_inputs[:n]
        return self._views[n]


class AttentionStep(TrainingStep):
    """A training step of :class:`~dlcf.models.deepcf.AttentionNetwork` on the CPU."""

    optimizer: FlatAdam

    def __init__(self, network: AttentionNetwork, train: Batch, config: TrainingConfig) -> None:
        self.network = network
        self.batch_size = config.batch_size
        low, high = network.scale
        self.scale = low, high - low
        users, movies, ratings = train
        kind = network.output.weight.dtype
        # Users and movies are rows of one table.
        movies = movies + network.user_embedding.num_embeddings
        self.pairs = torch.stack([users, movies], dim=1).numpy()
        self.ratings = ratings.to(kind).numpy()
        self.order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.generator = np.random.default_rng((config.seed, STREAM))
        with torch.no_grad():
            table = torch.cat([own.detach() for own in _tables(network)])
            self.flat = torch.cat([own.detach().ravel() for own in _dense(network)])
        self.embeddings = DeferredAdam(table.numpy())
        self.gradient = torch.zeros_like(self.flat)
        self.optimizer = FlatAdam(self.flat, self.gradient, config.learning_rate)
        self._error = torch.zeros(())
        self._build(table.shape[1], self.batch_size + 1)

    def _build(self, size: int, n_rows: int) -> None:
        """Views of weights and gradients by layer, and memory for a batch of `n_rows`."""
        weights, gradients = (_views(flat, self.network) for flat in (self.flat, self.gradient))
        self.attention, self.attention_bias = (view.numpy() for view in weights[:2])
        self.by_attention, self.by_attention_bias = (view.numpy() for view in gradients[:2])
        self.output, self.output_bias = (view.numpy().ravel() for view in weights[-2:])
        self.by_output, self.by_output_bias = (view.numpy().ravel() for view in gradients[-2:])
        self.layers = []
        self.n_bits = 0
        for index, modules in enumerate(_layers(self.network)):
            own = slice(2 + 3 * index, 5 + 3 * index)
            views = weights[own], gradients[own]
            self.layers.append(HiddenLayer(modules, views, self.n_bits, n_rows))
            self.n_bits += modules[0].out_features
        new = self.flat.new_empty
        self._inputs, self._weight = new(n_rows, 2 * size), new(n_rows).numpy()
        self._by_hidden = new(n_rows, len(self.output))
        self._contrast = new(2 * size).numpy()
        self._by_rows = new(2 * n_rows, size).numpy()
        self._distinct = DistinctRows(len(self.embeddings.table), n_rows)

    def begin_epoch(self) -> None:
        n = len(self.ratings)
        self.order = self.generator.permutation(n)
        self.embeddings.expect(-(-n // self.batch_size))

    def __call__(self, start: int, stop: int) -> Tensor:
        order = self.order[start:stop]
        n, own = len(order), share(len(order))
        rate = self.optimizer.param_groups[0]["lr"]
        pairs = self.pairs[order]
        rows, place = self._distinct(pairs)
        self.embeddings.catch_up(rows, rate)
        by_rows = self._by_rows[: len(rows)]
        bits = self._draw_bits(n)
        squares = self._differentiate(
            pairs[own], place[own], self.ratings[order[own]], bits[own], n, by_rows
        )
        self.embeddings.update(rows, sum_array_over_processes(by_rows), rate)
        sum_over_processes(self.gradient)
        self.optimizer.move()
        return sum_over_processes(self._error.fill_(squares / n))

    def flush(self) -> None:
        self.embeddings.flush(self.optimizer.param_groups[0]["lr"])
        self._write_back()

    def state_dict(self) -> dict[str, Any]:
        return {
            "embeddings": self.embeddings.state_dict(),
            "flat": self.flat,
            "norms": [layer.running for layer in self.layers],
            "optimizer": self.optimizer.state_dict(),
            "order": torch.from_numpy(self.order),
            "generator": self.generator.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.embeddings.load_state_dict(state["embeddings"])
        self.flat.copy_(state["flat"])
        for layer, running in zip(self.layers, state["norms"], strict=True):
            layer.running.copy_(running)
        self.optimizer.load_state_dict(state["optimizer"])
        self.order = state["order"].numpy()
        self.generator.bit_generator.state = state["generator"]
        self._write_back()

    def _draw_bits(self, n: int) -> NDArray[np.uint16]:
        """For every hidden unit of `n` ratings; dropout drops the lowest."""
        n_words = -(-n * self.n_bits // 4)
        words = self.generator.bit_generator.random_raw(n_words)
        return words.view(np.uint16)[: n * self.n_bits].reshape(n, self.n_bits)

    def _differentiate(
        self,
        pairs: NDArray[np.int64],
        place: NDArray[np.int64],
        ratings: Floats,
        bits: NDArray[np.uint16],
        n: int,
        by_rows: Floats,
    ) -> float:
        """Forward and backward on some of the `n` ratings of a batch.

        Leaves the gradient of the mean squared error by the embeddings in `by_rows`, by all other
        weights in :attr:`gradient`; returns the sum of squared errors.
        """
        rows = slice(0, len(pairs))
        inputs, weight = self._inputs[rows], self._weight[rows]
        table, attention = self.embeddings.rows, (self.attention, self.attention_bias)
        kernels.attend(table, pairs, *attention, self._contrast, inputs.numpy(), weight)
        hidden = inputs
        for layer in self.layers:
            hidden = layer.forward(hidden, bits, n)
        by_hidden = self._by_hidden[rows]
        squares, self.by_output_bias[0] = kernels.output(
            hidden.numpy(),
            self.output,
            self.output_bias[0],
            ratings,
            *self.scale,
            n,
            by_hidden.numpy(),
            self.by_output,
        )
        for layer in reversed(self.layers):
            by_hidden = layer.backward(by_hidden, n)
        known = table, pairs, place, self._contrast, weight
        sides = by_rows, self.by_attention, self.by_attention_bias
        kernels.attend_backward(by_hidden.numpy(), *known, *sides)
        return squares

    @torch.no_grad()
    def _write_back(self) -> None:
        """Copy what was learned into the network."""
        tables = _tables(self.network)
        table = torch.from_numpy(self.embeddings.table).split([len(own) for own in tables])
        learned = [*table, *_views(self.flat, self.network)]
        for own, new in zip([*tables, *_dense(self.network)], learned, strict=True):
            own.copy_(new)
        for (_, norm, *_), layer in zip(_layers(self.network), self.layers, strict=True):
            norm.running_mean.copy_(layer.running[0])
            norm.running_var.copy_(layer.running[1])
            norm.num_batches_tracked.fill_(self.embeddings.steps)


def _layers(network: AttentionNetwork) -> list[Any]:
    """Linear, batch norm, relu and dropout of each hidden layer."""
    modules = list(network.tower)
    return [modules[first : first + 4] for first in range(0, len(modules), 4)]


def _tables(network: AttentionNetwork) -> list[Tensor]:
    return [network.user_embedding.weight, network.movie_embedding.weight]


def _dense(network: AttentionNetwork) -> list[Tensor]:
    """What is trained besides the embeddings, in the order of the flat tensor."""
    layers = [(linear.weight, norm.weight, norm.bias) for linear, norm, *_ in _layers(network)]
    attention, output = network.attention, network.output
    hidden = [own for layer in layers for own in layer]
    return [attention.weight, attention.bias, *hidden, output.weight, output.bias]


def _views(flat: Tensor, network: AttentionNetwork) -> list[Tensor]:
    """Parts of `flat` in the order and the shapes of :func:`_dense`."""
    own = _dense(network)
    parts = flat.split([weights.numel() for weights in own])
    return [part.view_as(weights) for part, weights in zip(parts, own, strict=True)]
