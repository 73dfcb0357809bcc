"""Recurrent layers: the signal takes all, against the formulas of Arras et al. 2017 step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deeptaylor as dt


def sequence(steps: int = 3) -> Tensor:
    return torch.randn(2, steps, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Recurrent(nn.Module):
    """A recurrent layer, whole or as a cell in a loop, and the last hidden state."""

    def __init__(self, kind: str, cell: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind, self.cell = kind, cell
        self.layer = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}[kind](4, 3, batch_first=True)
        self.one = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}[kind](4, 3)
        with torch.no_grad():
            for name, parameter in self.one.named_parameters():
                parameter.copy_(self.layer.get_parameter(f"{name}_l0"))

    def forward(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        if not self.cell:
            return self.layer(x, None if start is None else start[None])[0][:, -1]
        state = start
        for step in x.unbind(1):
            state = self.one(step, state)
        return state[0] if isinstance(state, tuple) else state


def lstm_backwards(layer: nn.LSTM, x: Tensor, r_h: Tensor) -> Tensor:
    """R of every input: R_c += R_h; the cell's candidate and its past share R_c; the gates get nothing."""
    w, u = layer.weight_ih_l0, layer.weight_hh_l0
    b = layer.bias_ih_l0 + layer.bias_hh_l0
    h, c, steps = x.new_zeros(len(x), 3), x.new_zeros(len(x), 3), []
    for now in x.unbind(1):
        i, f, g, o = (now @ w.T + h @ u.T + b).chunk(4, 1)
        before = (h, c)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        steps.append((now, *before, i.sigmoid(), f.sigmoid(), g, c))
        h = o.sigmoid() * c.tanh()
    r_c, found = torch.zeros_like(c), []
    wg, ug = w[6:9], u[6:9]
    for now, h_before, c_before, i, f, g, c_now in reversed(steps):
        r_c = r_c + r_h
        r_g = i * g.tanh() / c_now * r_c
        r_c = f * c_before / c_now * r_c
        s = r_g / g  # one division by the whole pre-activation for both layers that feed it
        found.append(now * (s @ wg))
        r_h = h_before * (s @ ug)
    return torch.stack(found[::-1], 1)


@pytest.mark.parametrize("cell", [False, True], ids=["whole layer", "cells"])
def test_an_lstm_by_hand_on_three_steps(cell: bool) -> None:
    model, x = Recurrent("LSTM", cell).double().eval(), sequence()
    seed = torch.randn(2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        expected = lstm_backwards(model.layer, x, seed)
    found = dt.explain(model, x, target=seed, composite="cp-lrp", ledger=True)
    assert (found.relevance - expected).abs().max() < 1e-10 * expected.abs().max()
    assert found.ledger.gap.abs().max() < 1e-12


def gru_backwards(layer: nn.GRU, x: Tensor, h: Tensor, r_h: Tensor) -> tuple[Tensor, Tensor]:
    """h = (1 − u) n + u h': R_h' = u h'/h R and R_n = (1 − u) n/h R; in n the reset gate gets nothing."""
    w, u, b, a = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
    steps = []
    for now in x.unbind(1):
        ri, zi, ni = (now @ w.T + b).chunk(3, 1)
        rh, zh, nh = (h @ u.T + a).chunk(3, 1)
        reset, update = (ri + rh).sigmoid(), (zi + zh).sigmoid()
        pre = ni + reset * nh
        after = (1 - update) * pre.tanh() + update * h
        steps.append((now, h, reset, update, pre, after))
        h = after
    found = []
    for now, before, reset, update, pre, after in reversed(steps):
        r_n, r_past = (1 - update) * pre.tanh() / after * r_h, update * before / after * r_h
        s = r_n / pre
        found.append(now * (s @ w[6:9]))
        r_h = r_past + before * ((s * reset) @ u[6:9])
    return torch.stack(found[::-1], 1), r_h


@pytest.mark.parametrize("cell", [False, True], ids=["whole layer", "cells"])
def test_a_gru_by_hand_on_three_steps(cell: bool) -> None:
    # from a state of its own: what a reset gate scales would be a constant at first, and the gate all that carries
    model, x = Recurrent("GRU", cell).double().eval(), sequence()
    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seed = torch.randn(2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        expected = dict(zip(("x", "start"), gru_backwards(model.layer, x, start, seed), strict=True))
    found = dt.explain(model, (x, start), target=seed, composite="cp-lrp", ledger=True)
    for name, relevance in expected.items():
        assert (found.relevances[name] - relevance).abs().max() < 1e-10 * relevance.abs().max()
    assert found.ledger.gap.abs().max() < 1e-12


@pytest.mark.parametrize("composite", ["auto", "cp-lrp", "attn-lrp", "epsilon", "gradient-times-input"])
@pytest.mark.parametrize("cell", [False, True], ids=["whole layer", "cells"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_every_recurrent_layer_closes_its_ledger_whole_and_as_cells(kind: str, cell: bool, composite: str) -> None:
    model, x = Recurrent(kind, cell).double().eval(), sequence(5)
    found = dt.explain(model, x, target=1, composite=composite, ledger=True)
    assert (found.ledger.gap.abs() <= 1e-10 * found.explained.abs().clamp(min=1e-3)).all()
    assert torch.allclose(found.output, model(x).detach(), atol=1e-12)


def test_auto_tells_a_recurrent_network_what_its_gates_get() -> None:
    why = dt.Explainer(Recurrent("LSTM", cell=False).double().eval(), sequence()).plan.composite.why
    assert "the signal takes all" in why
