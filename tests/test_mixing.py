"""A model that mixes the samples of a batch is refused, whichever samples it mixes; one that does not, is not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.errors import InputError

MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "the next": lambda y: torch.cat([y[:-1] + y[1:], y[-1:]]),
    "the one before": lambda y: torch.cat([y[:1], y[1:] + y[:-1]]),
    "the next, round": lambda y: y + y.roll(-1, 0),
    "the one before, round": lambda y: y + y.roll(1, 0),
    "the first": lambda y: y + y[:1],
    "the last": lambda y: y + y[-1:],
    "the opposite": lambda y: y + y.flip(0),
    "all": lambda y: y - y.mean(0),
    "all before": lambda y: y.cumsum(0),
    "all, in the first": lambda y: torch.cat([y[:1] + y.sum(0), y[1:]]),
    "all, in the last": lambda y: torch.cat([y[:-1], y[-1:] + y.sum(0)]),
    "pairs": lambda y: (y.view(-1, 2, 3) + y.view(-1, 2, 3).flip(1)).view(-1, 3),
}


class Mixing(nn.Module):
    """A layer, and something done to the batch of its outputs."""

    def __init__(self, done: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.done = nn.Linear(4, 3), done

    def forward(self, x: Tensor) -> Tensor:
        return self.done(self.layer(x))


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("mixed", MIXED)
def test_mixing_is_refused(mixed: str, samples: int):
    with pytest.raises(InputError, match="mixes the samples"):
        dt.Explainer(Mixing(MIXED[mixed]).eval(), torch.randn(samples, 4))


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_what_does_not_mix_is_traced_for_any_number_of_samples(samples: int):
    explainer = dt.Explainer(Mixing(torch.relu).eval(), torch.randn(samples, 4))
    assert explainer.plan.graph.dynamic_batch
