"""The training step of the paper's network by hand.

It replaces autograd's step on :class:`~dlcf.models.deepcf.AttentionNetwork`, which at batches of 64
ratings spends most of its time around the arithmetic: autograd records and replays a graph of small
operations, and dropout draws a float for every unit. Forward and backward are written out as the
same matrix products, which torch does, and compiled loops between them (:mod:`dlcf.fast.kernels`);
embeddings take Adam's steps by :class:`~dlcf.fast.adam.DeferredAdam`, all other weights lie in one
flat tensor that Adam passes once, and dropout compares 16 random bits a unit. The derivatives are
the chain rule's, so the result is autograd's but for rounding, with two exceptions: a bias before a
batch norm has no effect and a gradient of zero, so it stays at zero, where Adam would blow up the
rounding error of autograd's; and a dropout rate is rounded to a multiple of 2^-16.

Several processes (:mod:`dlcf.runtime.distributed`) share each batch: moments of batch norms and
gradients are summed over them, and each draws the dropout of the whole batch, so that their number
changes nothing but rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlcf.fast import kernels
from dlcf.fast.adam import FlatAdam, Ints, PairStep
from dlcf.models.deepcf import AttentionNetwork
from dlcf.runtime.distributed import n_processes, share, sum_over_processes
from dlcf.training import Batch, TrainingConfig

# Keeps the stream of orders and dropout different from those that the seed begins elsewhere.
STREAM = 1
Floats = NDArray[Any]


class HiddenLayer:
    """A linear layer, its batch norm, relu and dropout, forward and backward.

    `views` are the layer's weight, gain and shift in the flat tensor of weights, then in that of
    gradients; its random bits begin at column `first_bit`; a batch has `n_rows` ratings at most.
    """

    def __init__(
        self,
        modules: tuple[nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout],
        views: tuple[list[Tensor], list[Tensor]],
        first_bit: int,
        n_rows: int,
    ) -> None:
        linear, norm, _, dropout = modules
        (self.weight, gain, shift), (self.grad_weight, grad_gain, grad_shift) = views
        self.gain, self.shift = gain.numpy(), shift.numpy()
        self.grad_gain, self.grad_shift = grad_gain.numpy(), grad_shift.numpy()
        assert norm.running_mean is not None and norm.running_var is not None
        self.momentum, self.epsilon = norm.momentum, norm.eps
        self.running = torch.stack([norm.running_mean, norm.running_var])
        self._running = self.running.numpy()
        self.first_bit = first_bit
        self.dropped = np.uint16(round(dropout.p * 2**16))
        self.scale = 2**16 / (2**16 - int(self.dropped))
        n_outputs = linear.out_features
        self._values, self._hidden = self.weight.new_empty(2, n_rows, n_outputs).unbind()
        self._grad_inputs = self.weight.new_empty(n_rows, linear.in_features)
        self._views: dict[int, tuple[Tensor, Floats, Tensor, Floats, Tensor]] = {}
        vectors = self.weight.new_empty(8, n_outputs).numpy()
        self._sums, self._squares, self._mean, self._inv_std = vectors[:4]
        self._slope, self._offset, self._value_coefficient, self._constant = vectors[4:]

    def forward(self, inputs: Tensor, bits: NDArray[np.uint16], n: int) -> Tensor:
        """Of some of the batch's `n` rows; keeps what :meth:`backward` needs."""
        self._inputs = inputs
        product, values, hidden, activated, _ = self._view(len(inputs))
        torch.mm(inputs, self.weight.mT, out=product)
        kernels.column_sums(values, self._sums)
        sum_over_processes(self._sums)
        kernels.centred_squares(values, self._sums, n, self._squares)
        sum_over_processes(self._squares)
        norm = self._running, self.momentum, self.epsilon, self.gain, self.shift
        found = self._mean, self._inv_std, self._slope, self._offset
        kernels.batch_moments(self._sums, self._squares, n, *norm, *found)
        dropout = bits, self.first_bit, self.dropped, self.scale
        kernels.activate(values, self._slope, self._offset, *dropout, activated)
        return hidden

    def backward(self, grad_hidden: Tensor, n: int) -> Tensor:
        """The gradient of the inputs; `grad_hidden` is overwritten."""
        _, values, _, activated, grad_inputs = self._view(len(grad_hidden))
        grad = grad_hidden.numpy()
        own = self.grad_gain, self.grad_shift
        kernels.dropout_relu_backward(grad, activated, values, self._mean, self.scale, *own)
        # Copies, because with the other gradients each process's part of these is summed later.
        sums = own if n_processes() == 1 else [sum_over_processes(s.copy()) for s in own]
        norm = self._mean, self._inv_std, self._slope
        coefficients = self._value_coefficient, self._constant
        kernels.norm_coefficients(*sums, n, *norm, self.grad_gain, *coefficients)
        kernels.norm_backward(grad, values, self._slope, *coefficients)
        torch.mm(grad_hidden.mT, self._inputs, out=self.grad_weight)
        return torch.mm(grad_hidden, self.weight, out=grad_inputs)

    def _view(self, n: int) -> tuple[Tensor, Floats, Tensor, Floats, Tensor]:
        """The memory of `n` rows: products and activations (tensor, array), gradient of inputs."""
        if n not in self._views:
            values, hidden = self._values[:n], self._hidden[:n]
            arrays = values.numpy(), hidden.numpy()
            self._views[n] = values, arrays[0], hidden, arrays[1], self._grad_inputs[:n]
        return self._views[n]


class AttentionStep(PairStep):
    """A training step of :class:`~dlcf.models.deepcf.AttentionNetwork` on the CPU."""

    def __init__(self, network: AttentionNetwork, train: Batch, config: TrainingConfig) -> None:
        self.network = network
        low, high = network.scale
        self.scale = low, high - low
        self.ratings = train[2].to(network.output.weight.dtype).numpy()
        self.generator = np.random.default_rng((config.seed, STREAM))
        table = torch.cat(_tables(network)).detach()
        super().__init__(table, network.user_embedding.num_embeddings, train, config)
        self.flat = torch.cat([own.detach().ravel() for own in _dense(network)])
        self.gradient = torch.zeros_like(self.flat)
        self.optimizer = FlatAdam(self.flat, self.gradient, config.learning_rate)
        self._build(table.shape[1], self.n_rows)

    def _build(self, size: int, n_rows: int) -> None:
        """Views of weights and gradients by layer, and memory for a batch of `n_rows`."""
        weights, gradients = (_views(flat, self.network) for flat in (self.flat, self.gradient))
        self.attention, self.attention_bias = (view.numpy() for view in weights[:2])
        self.grad_attention, self.grad_attention_bias = (view.numpy() for view in gradients[:2])
        self.output, self.output_bias = (view.numpy().ravel() for view in weights[-2:])
        self.grad_output, self.grad_output_bias = (view.numpy().ravel() for view in gradients[-2:])
        self.layers = []
        self.n_bits = 0  # of a rating: one number of 16 bits for each hidden unit
        for index, modules in enumerate(_layers(self.network)):
            own = slice(2 + 3 * index, 5 + 3 * index)
            views = weights[own], gradients[own]
            self.layers.append(HiddenLayer(modules, views, self.n_bits, n_rows))
            self.n_bits += modules[0].out_features
        new = self.flat.new_empty
        self._inputs, self._weight = new(n_rows, 2 * size), new(n_rows).numpy()
        self._grad_hidden = new(n_rows, len(self.output))
        self._contrast = new(2 * size).numpy()

    def begin_epoch(self) -> None:
        self.order = self.generator.permutation(len(self.ratings))
        super().begin_epoch()

    def state_dict(self) -> dict[str, Any]:
        norms = [layer.running for layer in self.layers]
        generator = self.generator.bit_generator.state
        return {**super().state_dict(), "flat": self.flat, "norms": norms, "generator": generator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.flat.copy_(state["flat"])
        for layer, running in zip(self.layers, state["norms"], strict=True):
            layer.running.copy_(running)
        self.generator.bit_generator.state = state["generator"]
        super().load_state_dict(state)

    def draw_bits(self, n: int) -> NDArray[np.uint16]:
        """Random bits for every hidden unit of `n` ratings; dropout drops the lowest.

        Raw words are reinterpreted, four numbers each, which is faster than to draw numbers.
        """
        n_words = -(-n * self.n_bits // 4)
        words = self.generator.bit_generator.random_raw(n_words)
        return words.view(np.uint16)[: n * self.n_bits].reshape(n, self.n_bits)

    def differentiate(self, order: Ints, position: Ints, n: int, grad_rows: Floats) -> float:
        pairs, ratings, bits = self.pairs[order], self.ratings[order], self.draw_bits(n)[share(n)]
        n_own = len(pairs)
        inputs, weight = self._inputs[:n_own], self._weight[:n_own]
        table, attention = self.embeddings.rows, (self.attention, self.attention_bias)
        kernels.attend(table, pairs, *attention, self._contrast, inputs.numpy(), weight)
        hidden = inputs
        for layer in self.layers:
            hidden = layer.forward(hidden, bits, n)
        grad_hidden = self._grad_hidden[:n_own]
        neuron = self.output, self.output_bias[0]
        squares, self.grad_output_bias[0] = kernels.output(
            hidden.numpy(), *neuron, ratings, *self.scale, n, grad_hidden.numpy(), self.grad_output
        )
        for layer in reversed(self.layers):
            grad_hidden = layer.backward(grad_hidden, n)
        kept = table, pairs, position, self._contrast, weight
        gradients = grad_rows, self.grad_attention, self.grad_attention_bias
        kernels.attend_backward(grad_hidden.numpy(), *kept, *gradients)
        sum_over_processes(self.gradient)
        self.optimizer.update()
        return squares

    @torch.no_grad()
    def _write_back(self) -> None:
        tables = _tables(self.network)
        table = torch.from_numpy(self.embeddings.table).split([len(own) for own in tables])
        learned = [*table, *_views(self.flat, self.network)]
        for own, new in zip([*tables, *_dense(self.network)], learned, strict=True):
            own.copy_(new)
        for (_, norm, *_), layer in zip(_layers(self.network), self.layers, strict=True):
            norm.running_mean.copy_(layer.running[0])
            norm.running_var.copy_(layer.running[1])
            norm.num_batches_tracked.fill_(self.embeddings.steps)


class UnattendedStep(AttentionStep):
    """Of :class:`~dlcf.variants.components.UnattendedNetwork`: attention learns nothing."""

    def _build(self, size: int, n_rows: int) -> None:
        super()._build(size, n_rows)
        self.grad_attention = np.zeros_like(self.grad_attention)  # beside `gradient`, not in it
        self.grad_attention_bias = np.zeros_like(self.grad_attention_bias)


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
