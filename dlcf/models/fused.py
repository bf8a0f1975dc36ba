"""The training step of the paper's network by hand, for one network or several side by side.

At batches of 64 ratings, the textbook loop spends most of its time around the arithmetic: autograd
records and replays a graph of small operations, Adam walks over 1.3 million embedding weights of
which a batch touches a few thousand, and dropout draws a float for every unit. Here forward and
backward are written out, so that a step is about ninety calls of torch, twelve of which are the
matrix products that nothing can save; the embeddings take Adam's steps only where a batch touches
them (:class:`~dlcf.optimizers.DeferredAdam`, equal to dense Adam); all other weights lie in one
flat tensor for each network, which Adam updates in one call; and dropout compares 16 random bits a
unit. Networks trained together have a leading axis in every weight, so that all of them share each
call; each has its own ratings, order and dropout, and becomes what it would alone. Several
processes (:mod:`dlcf.distributed`) share each batch: moments of batch norms and gradients are
summed over them, dropout is drawn for the whole batch by each, and so their number changes nothing
but rounding.

Two things differ from autograd's step beside rounding. A bias before a batch norm has no effect and
a gradient of zero, so it stays at zero, where Adam would blow up the rounding error of autograd's.
And a dropout rate is held to a multiple of 2^-16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dlcf.distributed import n_processes, share, sum_over_processes
from dlcf.optimizers import DeferredAdam, FlatAdam
from dlcf.training import Batch, TrainingConfig, TrainingStep

if TYPE_CHECKING:
    from dlcf.models.deepcf import AttentionNetwork

__all__ = ["AttentionStep"]

# Sets the stream of orders and dropout apart from those that the same seed begins elsewhere.
STREAM = 1


class Weights(NamedTuple):
    """Views of what is not an embedding, or of its gradient; S networks, layers in order."""

    attention: Tensor  # (S, 2, 2 embedding_size)
    attention_bias: Tensor  # (S, 2)
    linear: list[Tensor]  # (S, outputs, inputs), without the leading axis where S = 1
    gain: list[Tensor]  # (S, outputs), of the batch norm; so is the shift
    shift: list[Tensor]
    output: Tensor  # (S, 1, inputs), without the leading axis where S = 1
    output_bias: Tensor  # (S, 1)


class BatchNorm:
    """Batch normalisation of ``(n, features)`` by the batch's own moments, forward and backward."""

    def __init__(self, mean: Tensor, variance: Tensor, momentum: float, epsilon: float) -> None:
        self.running_mean, self.running_variance = mean, variance
        self.momentum, self.epsilon = momentum, epsilon

    def forward(self, inputs: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """Keeps what :meth:`backward` needs."""
        self.inputs, self.gain = inputs, gain
        running = self.running_mean, self.running_variance
        normalised, self.mean, self.inverse_deviation = torch.native_batch_norm(
            inputs, gain, shift, *running, True, self.momentum, self.epsilon
        )
        return normalised

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients by the inputs, the gain and the shift."""
        return torch.ops.aten.native_batch_norm_backward(
            gradient,
            self.inputs,
            self.gain,
            self.running_mean,
            self.running_variance,
            self.mean,
            self.inverse_deviation,
            True,
            self.epsilon,
            [True, True, True],
        )


class SharedBatchNorm(BatchNorm):
    """The same by the moments of the rows of all processes, each of which holds a part."""

    def forward(self, inputs: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        sums = torch.cat([inputs.sum(0), inputs.new_tensor([len(inputs)])])
        *_, n = totals = sum_over_processes(sums)
        mean = totals[:-1] / n
        centred = inputs - mean
        variance = sum_over_processes(centred.square().sum(0)) / n
        self.running_mean.lerp_(mean, self.momentum)
        self.running_variance.lerp_(variance * (n / (n - 1)), self.momentum)
        self.n, self.slope = n, gain / torch.sqrt(variance + self.epsilon)
        self.normalised = centred / torch.sqrt(variance + self.epsilon)
        return torch.addcmul(shift, self.normalised, gain)

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By the inputs, of all rows; by gain and shift, of this process's rows alone."""
        by_gain, by_shift = (gradient * self.normalised).sum(0), gradient.sum(0)
        mean_gain, mean_shift = sum_over_processes(torch.stack([by_gain, by_shift])) / self.n
        by_inputs = (gradient - mean_shift - self.normalised * mean_gain) * self.slope
        return by_inputs, by_gain, by_shift


class AttentionStep(TrainingStep):
    """A training step of :class:`~dlcf.models.deepcf.AttentionNetwork` on the CPU.

    Activations are ``(n, S features)``, n ratings of each of S networks: a plain matrix for what is
    done element by element and for batch norms, and viewed as ``(S, n, features)`` for products.
    """

    def __init__(
        self,
        networks: Sequence[AttentionNetwork],
        trains: Sequence[Batch],
        configs: Sequence[TrainingConfig],
    ) -> None:
        first = networks[0]
        self.networks = networks
        self.batch_size = configs[0].batch_size
        self.low, high = first.scale
        self.span = high - self.low
        dropped = [round(m.p * 2**16) for m in first.tower if isinstance(m, nn.Dropout)]
        units = torch.tensor([linear.out_features for linear in _layers(first)[0]])
        share = torch.tensor(dropped).repeat_interleave(units)
        # A unit is dropped where its 16 bits, read as a signed number, are below this.
        self._dropped = (share - 2**15).to(torch.int16)
        self._scale = (2**16 / (2**16 - share)).to(first.output.weight.dtype)
        n_users = first.user_embedding.num_embeddings
        self.n_rows = n_users + first.movie_embedding.num_embeddings
        # Users and movies of all networks are rows of one table.
        self.pairs = torch.stack(
            [
                torch.stack([users, movies + n_users], dim=1) + self.n_rows * member
                for member, (users, movies, _) in enumerate(trains)
            ],
            dim=1,
        )
        self.ratings = torch.stack([ratings for *_, ratings in trains], dim=1)
        self.ratings = self.ratings.to(first.output.weight.dtype)
        self.order = torch.empty(0, len(networks), dtype=torch.int64)
        self.generators = [np.random.default_rng((config.seed, STREAM)) for config in configs]
        with torch.no_grad():
            self.embeddings = DeferredAdam(torch.cat([t for n in networks for t in _tables(n)]))
            self.flat = torch.stack([torch.cat([p.ravel() for p in _dense(n)]) for n in networks])
        self.gradient = torch.zeros_like(self.flat)
        self.weights, self.gradients = (_views(t, first) for t in (self.flat, self.gradient))
        self.norms = _batch_norms(networks)
        self.optimizers = [
            FlatAdam(weights, gradient, config.learning_rate)
            for weights, gradient, config in zip(self.flat, self.gradient, configs, strict=True)
        ]

    def begin_epoch(self) -> None:
        n = len(self.ratings)
        orders = [generator.permutation(n) for generator in self.generators]
        self.order = torch.from_numpy(np.stack(orders, axis=1))
        self.embeddings.expect(-(-n // self.batch_size))

    @torch.no_grad()
    def __call__(self, start: int, stop: int) -> Tensor:
        order = self.order[start:stop]
        n, own = len(order), share(len(order))
        pairs = self.pairs.gather(0, order[..., None].expand(-1, -1, 2))
        rows, place = torch.unique(pairs.ravel(), return_inverse=True)
        rate = self._rate(rows)
        values = self.embeddings.fetch(rows, rate)
        embedded = values.index_select(0, place.view(n, -1)[own].ravel())
        masks = [mask[own] for mask in self._draw_dropout(n)]
        strength = self._forward(embedded.view(-1, *pairs.shape[1:], values.shape[1]), masks)
        error = strength.mul(self.span).add_(self.low).sub_(self.ratings.gather(0, order)[own])
        # By the logit of the output: mean squared error, scale, sigmoid.
        by_embedded = self._backward(error * strength * (1 - strength) * (2 * self.span / n))
        by_values = torch.zeros_like(values)
        by_values.index_add_(0, place.view(n, -1)[own].ravel(), by_embedded.flatten(0, 2))
        self.embeddings.update(sum_over_processes(by_values), rate)
        sum_over_processes(self.gradient)
        for optimizer in self.optimizers:
            optimizer.step()
        return sum_over_processes(error.square().sum(dim=0)) / n

    def settle(self) -> None:
        rows = torch.arange(len(self.embeddings.table))
        self.embeddings.settle(self._rate(rows))
        self._write_back()

    def state_dict(self) -> dict[str, Any]:
        return {
            "embeddings": self.embeddings.state_dict(),
            "flat": self.flat,
            "norms": [[norm.running_mean, norm.running_variance] for norm in self.norms],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "order": self.order,
            "generators": [generator.bit_generator.state for generator in self.generators],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.embeddings.load_state_dict(state["embeddings"])
        self.flat.copy_(state["flat"])
        for norm, (mean, variance) in zip(self.norms, state["norms"], strict=True):
            norm.running_mean.copy_(mean)
            norm.running_variance.copy_(variance)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.order = state["order"]
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        self._write_back()

    def _forward(self, embedded: Tensor, masks: list[Tensor]) -> Tensor:
        """Strengths ``(n, S)``; what is needed on the way back is kept.

        `embedded` is ``(n, S, 2, embedding_size)``, a user and a movie.
        """
        weights = self.weights
        self._embedded, self._pair, self._masks = embedded, embedded.flatten(1), masks
        # A softmax over two logits is the sigmoid of their difference.
        self._contrast = weights.attention[:, 0] - weights.attention[:, 1]
        difference = weights.attention_bias[:, 0] - weights.attention_bias[:, 1]
        user = torch.sigmoid(_product(self._pair, self._one_row(self._contrast)) + difference)
        self._attention = torch.stack([user, 1 - user], dim=2)[..., None]
        hidden = (embedded * self._attention).flatten(1)
        self._hidden = [hidden]
        for linear, gain, shift, norm, mask in zip(
            weights.linear, weights.gain, weights.shift, self.norms, masks, strict=True
        ):
            normalised = norm.forward(_product(hidden, linear), gain.ravel(), shift.ravel())
            hidden = normalised.relu_()
            hidden.view_as(mask).mul_(mask)
            self._hidden.append(hidden)
        return torch.sigmoid(_product(hidden, weights.output) + weights.output_bias.T)

    def _backward(self, slope: Tensor) -> Tensor:
        """Gradient by the embedded pairs; the others are left in `gradients`.

        `slope` is the gradient by the output's logit, ``(n, S)``.
        """
        weights, gradients = self.weights, self.gradients
        _weight_gradient(slope, self._hidden[-1], gradients.output)
        torch.sum(slope, dim=0, out=gradients.output_bias[:, 0])
        by_hidden = _product(slope, weights.output.mT)
        for layer in reversed(range(len(self.norms))):
            # A unit is positive where neither relu nor dropout has closed it.
            mask = self._masks[layer]
            by_hidden.view_as(mask).mul_(mask)
            by_normalised = torch.ops.aten.threshold_backward(by_hidden, self._hidden[layer + 1], 0)
            by_summed, gain, shift = self.norms[layer].backward(by_normalised)
            gradients.gain[layer].copy_(gain.view_as(gradients.gain[layer]))
            gradients.shift[layer].copy_(shift.view_as(gradients.shift[layer]))
            _weight_gradient(by_summed, self._hidden[layer], gradients.linear[layer])
            by_hidden = _product(by_summed, weights.linear[layer].mT)
        return self._backward_attention(by_hidden.view_as(self._embedded))

    def _backward_attention(self, by_attended: Tensor) -> Tensor:
        """From the gradient by the weighted embeddings to that by the embeddings themselves."""
        gradients = self.gradients
        by_weight = (by_attended * self._embedded).sum(3)
        user, movie = self._attention.squeeze(3).unbind(2)
        slope = (by_weight[:, :, 0] - by_weight[:, :, 1]).mul_(user).mul_(movie)
        _weight_gradient(slope, self._pair, self._one_row(gradients.attention[:, 0]))
        torch.neg(gradients.attention[:, 0], out=gradients.attention[:, 1])
        torch.sum(slope, dim=0, out=gradients.attention_bias[:, 0])
        torch.neg(gradients.attention_bias[:, 0], out=gradients.attention_bias[:, 1])
        through_weights = slope[..., None, None] * self._contrast.view(self._embedded.shape[1:])
        return torch.addcmul(through_weights, by_attended, self._attention)

    def _one_row(self, rows: Tensor) -> Tensor:
        """``(S, inputs)`` as weights of one output."""
        return rows if len(self.networks) == 1 else rows[:, None]

    def _draw_dropout(self, n: int) -> list[Tensor]:
        """For each layer ``(n, S, outputs)``, 0 where a unit is dropped, else 1 / (1 - rate)."""
        sizes = [gain.shape[1] for gain in self.weights.gain]
        n_words = -(-n * sum(sizes) // 4)
        words = [generator.bit_generator.random_raw(n_words) for generator in self.generators]
        bits = torch.from_numpy(np.stack(words).view(np.int16))[:, : n * sum(sizes)]
        bits = bits.view(len(words), n, -1).transpose(0, 1)
        masks = torch.ge(bits, self._dropped, out=self.flat.new_empty(bits.shape)).mul_(self._scale)
        return list(masks.split(sizes, dim=2))

    def _rate(self, rows: Tensor) -> float | Tensor:
        """The learning rate of rows of the table, ``(n, 1)``, or the one of all."""
        rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        if len(set(rates)) == 1:
            return float(rates[0])
        return self.flat.new_tensor(rates)[rows // self.n_rows][:, None]

    @torch.no_grad()
    def _write_back(self) -> None:
        """Copy what was learned into the networks."""
        tables = self.embeddings.table.split(self.n_rows)
        for member, (network, table) in enumerate(zip(self.networks, tables, strict=True)):
            sizes = [len(own) for own in _tables(network)]
            for own, learned in zip(_tables(network), table.split(sizes), strict=True):
                own.copy_(learned)
            own_dense = _dense(network)
            learned_dense = self.flat[member].split([weights.numel() for weights in own_dense])
            for own, learned in zip(own_dense, learned_dense, strict=True):
                own.copy_(learned.view_as(own))
            for own_norm, norm in zip(_layers(network)[1], self.norms, strict=True):
                own_norm.running_mean.copy_(norm.running_mean.view(len(tables), -1)[member])
                own_norm.running_var.copy_(norm.running_variance.view(len(tables), -1)[member])
                own_norm.num_batches_tracked.fill_(self.embeddings.steps)


def _product(inputs: Tensor, weights: Tensor) -> Tensor:
    """``(n, S inputs)`` times the transpose of ``(S, outputs, inputs)``: ``(n, S outputs)``."""
    if weights.dim() == 2:
        return torch.mm(inputs, weights.mT)
    n, members = len(inputs), len(weights)
    products = inputs.new_empty(n, members, weights.shape[1])
    by_member = inputs.view(n, members, -1).transpose(0, 1)
    torch.bmm(by_member, weights.mT, out=products.transpose(0, 1))
    return products.view(n, -1)


def _weight_gradient(by_products: Tensor, inputs: Tensor, out: Tensor) -> None:
    """Of :func:`_product` by its weights."""
    if out.dim() == 2:
        torch.mm(by_products.mT, inputs, out=out)
        return
    n, members = len(inputs), len(out)
    by_products, inputs = by_products.view(n, members, -1), inputs.view(n, members, -1)
    torch.bmm(by_products.permute(1, 2, 0), inputs.transpose(0, 1), out=out)


def _layers(network: AttentionNetwork) -> tuple[list[nn.Linear], list[Any]]:
    """The hidden linear layers and their batch norms."""
    linears = [module for module in network.tower if isinstance(module, nn.Linear)]
    return linears, [module for module in network.tower if isinstance(module, nn.BatchNorm1d)]


def _tables(network: AttentionNetwork) -> list[Tensor]:
    return [network.user_embedding.weight, network.movie_embedding.weight]


def _dense(network: AttentionNetwork) -> list[Tensor]:
    """What is trained besides the embeddings, in the order of :class:`Weights`."""
    linears, norms = _layers(network)
    return [
        network.attention.weight,
        network.attention.bias,
        *(linear.weight for linear in linears),
        *(norm.weight for norm in norms),
        *(norm.bias for norm in norms),
        network.output.weight,
        network.output.bias,
    ]


def _views(flat: Tensor, network: AttentionNetwork) -> Weights:
    """`flat`, ``(S, weights of a network)``, in the shapes of the network."""
    own = _dense(network)
    parts = flat.split([weights.numel() for weights in own], dim=1)
    views = [part.view(-1, *weights.shape) for part, weights in zip(parts, own, strict=True)]
    n = len(_layers(network)[0])
    linears, gains, shifts = (views[2 + kind * n : 2 + (kind + 1) * n] for kind in range(3))
    output = views[-2]
    if len(flat) == 1:
        linears, output = [linear[0] for linear in linears], output[0]
    return Weights(views[0], views[1], linears, gains, shifts, output, views[-1])


def _batch_norms(networks: Sequence[AttentionNetwork]) -> list[BatchNorm]:
    """One a layer, over the features of all networks."""
    kind = BatchNorm if n_processes() == 1 else SharedBatchNorm
    return [
        kind(
            torch.cat([norm.running_mean for norm in norms]),
            torch.cat([norm.running_var for norm in norms]),
            norms[0].momentum,
            norms[0].eps,
        )
        for norms in zip(*(_layers(network)[1] for network in networks), strict=True)
    ]
