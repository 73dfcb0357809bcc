"""Agreement of the cube's estimators with shapiq, and the ways out: shapiq's own type, pandas."""

from __future__ import annotations

import numpy as np
import pytest
import shapiq
import torch

import deeptaylor as dt


def game(n: int, seed: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(n, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).double().eval()
    return net, torch.randn(1, n, dtype=torch.float64), torch.randn(1, n, dtype=torch.float64)


@pytest.mark.parametrize(("n", "seed"), [(4, 0), (8, 1), (12, 2)])
def test_exact_shapley_taylor_equals_shapiq(n: int, seed: int) -> None:
    net, x, x0 = game(n, seed)

    def value(coalitions: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.where(torch.as_tensor(coalitions, dtype=torch.bool), x, x0))[:, 0].numpy()

    theirs = shapiq.ExactComputer(n_players=n, game=value)("STII", order=2)
    ours = dt.shapley_taylor(net, x, x0, check=False)
    numbers = ours.to_dict()
    for key, index in theirs.interaction_lookup.items():
        if key:
            assert numbers[key] == pytest.approx(theirs.values[index], abs=1e-8)


def test_results_become_shapiq_values_and_tables() -> None:
    net, x, x0 = game(5, 3)
    result = dt.shapley_taylor(net, x, x0)
    values = result.to_shapiq()
    assert values[(0, 1)] == pytest.approx(float(result.interactions[0, 1]))
    assert values.n_players == 5
    frame = result.to_frame()
    assert frame["share"].sum() == pytest.approx(result.value)
    assert len(frame) == 1 + 5 + 10 + 1
