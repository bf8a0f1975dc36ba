"""The fast room against plain PyTorch: same masks and order, same gradients, same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import dlcf.fast
from dlcf.fast import kernels
from dlcf.fast.adam import BETAS
from dlcf.fast.attention_step import AttentionStep
from dlcf.models.deepcf import AttentionNetwork
from dlcf.models.mf import FactorNetwork
from dlcf.models.network import FASTER_SCORES
from dlcf.registry import make
from dlcf.training import FASTER_STEPS, AutogradStep, Batch, TrainingConfig, training_step

N_USERS, N_MOVIES, N_RATINGS, BATCH_SIZE, EPOCHS = 8, 11, 61, 10, 5
# Deferring is exact but for epsilon, so both sides have one that is next to nothing.
EPSILON = 1e-16
LAYERS = {"hidden": (12, 8, 6), "dropout": (0.3, 0.2, 0.0)}


class Masked(nn.Module):
    """In place of a dropout module: multiplies by the mask that is put into it."""

    mask: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.mask


def data() -> Batch:
    generator = np.random.default_rng(0)
    users, movies = generator.integers(0, N_USERS, N_RATINGS), generator.integers(0, 10, N_RATINGS)
    ratings = torch.from_numpy(generator.integers(1, 11, N_RATINGS) / 2)
    return torch.from_numpy(users), torch.from_numpy(movies), ratings


def names_of_biases() -> list[str]:
    """Biases in front of a batch norm, which have no effect and which the fast step leaves out."""
    return [f"tower.{4 * layer}.bias" for layer in range(len(LAYERS["hidden"]))]


def networks() -> tuple[AttentionNetwork, AttentionNetwork]:
    """Two with equal weights in float64, none of them at the symmetry of the initial ones.

    Biases in front of batch norms stay where training begins, at zero.
    """
    torch.manual_seed(0)
    fast, plain = (AttentionNetwork(N_USERS, N_MOVIES, (0.5, 5.0), 5, **LAYERS) for _ in range(2))
    with torch.no_grad():
        for name, parameter in fast.named_parameters():
            if name not in names_of_biases():
                parameter.add_(0.3 * torch.randn_like(parameter))
    plain.load_state_dict(fast.state_dict())
    return fast.double().train(), plain.double().train()


def fast_gradients(
    step: AttentionStep, rows: np.ndarray, grad_rows: np.ndarray
) -> dict[str, Tensor]:
    """By the names of the network's parameters, dense."""
    table = torch.zeros(N_USERS + N_MOVIES, grad_rows.shape[1], dtype=torch.float64)
    table[torch.from_numpy(rows)] = torch.from_numpy(grad_rows)
    user, movie = table.split([N_USERS, N_MOVIES])
    own = {"user_embedding.weight": user, "movie_embedding.weight": movie}
    names = ["attention.weight", "attention.bias"]
    for layer in range(len(step.layers)):
        names += [f"tower.{4 * layer}.weight"]
        names += [f"tower.{4 * layer + 1}.{which}" for which in ("weight", "bias")]
    names += ["output.weight", "output.bias"]
    weights = dict(step.network.named_parameters())
    parts = step.gradient.split([weights[name].numel() for name in names])
    pairs = zip(names, parts, strict=True)
    return own | {name: part.clone().view_as(weights[name]) for name, part in pairs}


def test_both_ways_agree_from_the_same_masks_and_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of all parameters at every step, weights and statistics after 30 steps."""
    fast, plain = networks()
    config = TrainingConfig(batch_size=BATCH_SIZE, learning_rate=0.01, device="cpu")
    monkeypatch.setattr("dlcf.fast.adam.EPSILON", EPSILON)
    step = AttentionStep(fast, data(), config)
    step.embeddings.epsilon = EPSILON
    masked = [Masked() for _ in step.layers]
    for layer, module in enumerate(masked):
        plain.tower[4 * layer + 3] = module
    before = names_of_biases()
    trained = [own for name, own in plain.named_parameters() if name not in before]
    biases = [own for name, own in plain.named_parameters() if name in before]
    reference = AutogradStep(plain, data(), config)
    groups = [{"params": trained}, {"params": biases, "lr": 0.0}]
    reference.optimizer = torch.optim.Adam(groups, config.learning_rate, BETAS, EPSILON)

    generator = np.random.default_rng(1)
    bits = np.empty((0, 0), dtype=np.uint16)
    captured: list[tuple[np.ndarray, np.ndarray]] = []
    update = step.embeddings.update

    def capturing(rows: np.ndarray, gradient: np.ndarray, learning_rate: float) -> None:
        captured.append((rows.copy(), gradient.copy()))
        update(rows, gradient, learning_rate)

    monkeypatch.setattr(step.embeddings, "update", capturing)
    monkeypatch.setattr(step, "draw_bits", lambda n: bits[:n])
    n_steps = 0
    for _ in range(EPOCHS):
        order = generator.permutation(N_RATINGS)
        step.begin_epoch()
        step.order, reference.order = order, torch.from_numpy(order)
        # The last batch has the one rating that is left over.
        starts = range(0, N_RATINGS - 1, BATCH_SIZE)
        for start in starts:
            stop = N_RATINGS if start == starts[-1] else start + BATCH_SIZE
            shape = stop - start, step.n_bits
            bits = generator.integers(0, 2**16, shape, dtype=np.uint16)
            for module, layer in zip(masked, step.layers, strict=True):
                own = bits[:, layer.first_bit : layer.first_bit + len(layer.gain)]
                module.mask = torch.from_numpy(np.where(own >= layer.dropped, layer.scale, 0.0))
            errors = float(step(start, stop)), float(reference(start, stop))
            assert errors[0] == pytest.approx(errors[1], rel=1e-6)  # it is kept in float32
            found = fast_gradients(step, *captured[-1])
            for name, parameter in plain.named_parameters():
                assert parameter.grad is not None
                if name in before:
                    assert float(parameter.grad.abs().max()) < 1e-12, name
                    assert name not in found
                    continue
                torch.testing.assert_close(
                    found.pop(name), parameter.grad, rtol=1e-8, atol=1e-11, msg=name
                )
            assert not found
            n_steps += 1
        step.flush()
    assert n_steps == 30
    moved = dict(networks()[1].named_parameters())
    for (name, own), other in zip(plain.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(other, own, rtol=1e-7, atol=1e-9, msg=name)
        if name not in before:
            assert float((own - moved[name]).detach().abs().max()) > 0.01, name
    for (name, own), other in zip(plain.named_buffers(), fast.buffers(), strict=True):
        torch.testing.assert_close(other, own, rtol=1e-9, atol=1e-12, msg=name)
    assert captured and len(step.layers) == 3


def test_a_kernel_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has to fail where a kernel's result has the wrong sign or size."""
    backward, moments = kernels.norm_backward, kernels.norm_coefficients

    def wrong_sign(grad, values, slope, value_coefficient, constant) -> None:  # type: ignore[no-untyped-def]
        backward(grad, values, slope, -value_coefficient, constant)

    def wrong_size(*arguments) -> None:  # type: ignore[no-untyped-def]
        moments(*arguments)
        arguments[-1][:] *= 1.001

    for name, wrong in (("norm_backward", wrong_sign), ("norm_coefficients", wrong_size)):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, name, wrong)
            with pytest.raises(AssertionError):
                test_both_ways_agree_from_the_same_masks_and_orders(patch)


def hooks() -> tuple[dict[type, object], dict[type, object]]:
    return dict(FASTER_STEPS), dict(FASTER_SCORES)


def test_disabled_takes_the_hooks_away_and_puts_them_back() -> None:
    before = hooks()
    config = TrainingConfig(batch_size=BATCH_SIZE, device="cpu")
    assert FactorNetwork in before[0] and AttentionNetwork in before[1]
    with dlcf.fast.disabled():
        assert hooks() == ({}, {})
        assert type(training_step(networks()[0], data(), config)) is AutogradStep
    assert hooks() == before
    assert type(training_step(networks()[0], data(), config)) is AttentionStep
    with pytest.raises(ValueError, match="inside"), dlcf.fast.disabled():
        raise ValueError("inside")
    assert hooks() == before
    with dlcf.fast.disabled():
        with dlcf.fast.disabled():
            assert hooks() == ({}, {})
        assert hooks() == ({}, {})
    assert hooks() == before


@pytest.mark.parametrize("name", ["deepcf", "mf", "svdpp"])
def test_models_fit_and_score_without_it(
    name: str, toy_ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of the same model agree; a model that was fitted without it is as good."""
    used: list[type] = []
    begin = AutogradStep.begin_epoch

    def noted(step: AutogradStep) -> None:
        used.append(type(step))
        begin(step)

    monkeypatch.setattr(AutogradStep, "begin_epoch", noted)
    with dlcf.fast.disabled():
        plain = make(name, seed=0, epochs=2, batch_size=64).fit(toy_ratings)
        assert set(used) == {AutogradStep}
        slow = plain.score_all(plain.user_ids)
        predicted = plain.predict(toy_ratings)
    np.testing.assert_allclose(plain.score_all(plain.user_ids), slow, rtol=0, atol=1e-5)
    assert np.isfinite(slow).all() and np.isfinite(predicted).all()
    fast = make(name, seed=0, epochs=2, batch_size=64).fit(toy_ratings)
    found = fast.predict(toy_ratings)
    if name == "deepcf":  # draws other orders and dropout
        error, other = (
            float(np.sqrt(np.mean((p - toy_ratings["rating"].to_numpy()) ** 2)))
            for p in (predicted, found)
        )
        assert error == pytest.approx(other, abs=0.1)
    else:
        np.testing.assert_allclose(found, predicted, rtol=0, atol=1e-3)
    with dlcf.fast.disabled():
        exact = fast.score_all(fast.user_ids)
    np.testing.assert_allclose(fast.score_all(fast.user_ids), exact, rtol=0, atol=1e-5)


def test_a_damaged_cache_of_compiled_loops_is_compiled_anew(tmp_path: Path) -> None:
    program = "import numpy as np; from dlcf.fast import kernels; sums = np.empty(2, np.float32);"
    program += "kernels.column_sums(np.ones((3, 2), np.float32), sums); print(sums)"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def output() -> str:
        run = [sys.executable, "-c", program]
        return subprocess.run(
            run, env=environment, text=True, check=True, capture_output=True
        ).stdout

    assert output() == "[3. 3.]\n"
    files = sorted(tmp_path.rglob("*.nb?"))
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    for path in files:
        for n_bytes in (0, path.stat().st_size // 2):
            os.truncate(path, n_bytes)
            assert output() == "[3. 3.]\n", (path.suffix, n_bytes)
