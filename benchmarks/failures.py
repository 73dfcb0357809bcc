"""Cases in which zennit 1.0.0 or captum 0.9.0 is wrong or breaks, observed on them and on deeptaylor.

`observe` runs a case and says what came out there, what came out here, whether the other is wrong, and whether deeptaylor is right.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import shim  # noqa: F401  before torchvision
import torch
import torch.nn.functional as F
import torchvision
from agree import HIGH, LOW, drawn, ours, seed_at
from torch import Tensor, nn

import deeptaylor as dt

ROOT = Path(__file__).resolve().parent.parent
PAPER = dt.composites.epsilon_plus(convention="paper")


class Finding(NamedTuple):
    """What came out."""

    there: str
    here: str
    wrong: bool
    right: bool


class Failure(NamedTuple):
    """One case."""

    library: str
    case: str
    observe: Callable[[], Finding]


FAILURES: list[Failure] = []


def case(library: str, what: str) -> Callable[[Callable[[], Finding]], Callable[[], Finding]]:
    def add(observe: Callable[[], Finding]) -> Callable[[], Finding]:
        def seeded() -> Finding:
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return observe()

        FAILURES.append(Failure(library, what, seeded))
        return seeded

    return add


class Joined(nn.Module):
    """Modules and a function that joins them."""

    def __init__(self, join: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.join = join
        for name, module in modules.items():
            self.add_module(name, module)
        drawn(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


def images(batch: int = 2, size: int = 16) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64).clamp(LOW, HIGH)


def share(relevance: Tensor, seed: Tensor) -> Tensor:
    """Σ of the inputs' relevance per unit of explained output."""
    return relevance.flatten(1).sum(1) / seed.flatten(1).sum(1)


def shares(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def gap(model: nn.Module, x: Tensor, composite: Any) -> float:
    """What our ledger misses, as a share of the explained output."""
    result = dt.explain(model, x, composite=composite, ledger=True)
    missing = result.relevance.flatten(1).sum(1) + result.ledger.absorbed - result.explained
    return (missing.abs() / result.explained.abs()).max().item()


def attempt(action: Callable[[], Any]) -> str:
    """The error's name and first line, or an empty string."""
    try:
        action()
    except Exception as error:
        message = str(error).splitlines()[0].replace(f"{ROOT}/", "")
        return f"{type(error).__name__}: {message if len(message) < 120 else message[:120] + '…'}"
    return ""


def residual(blocks: int) -> nn.Module:
    """Dense residual blocks without bias, added with `+`."""

    def join(s: Any, x: Tensor) -> Tensor:
        for block in s.blocks:
            x = x + block(x)
        return s.last(x)

    block = [
        nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False)) for _ in range(blocks)
    ]
    return Joined(join, blocks=nn.ModuleList(block), last=nn.Linear(16, 4, bias=False))


BLOCKS = (1, 2, 4, 8)


def residual_blocks(peer: Callable[[nn.Module, Tensor], Tensor]) -> Finding:
    x = torch.randn(1, 16, dtype=torch.float64)
    there, here = [], []
    for blocks in BLOCKS:
        model = residual(blocks)
        seed = seed_at(model, x)
        there.append(share(peer(model, x), seed).item())
        here.append(share(ours(model, x, seed, PAPER), seed).item())
    wrong, right = abs(there[-1] - 1) > 1, all(abs(value - 1) < 1e-2 for value in here)
    return Finding(f"ΣR/f = {shares(there)} for {shares(list(BLOCKS))} blocks", f"ΣR/f = {shares(here)}", wrong, right)


def functions(peer: Callable[[nn.Module, Tensor], str | Tensor]) -> Finding:
    there, here, wrong, right = [], [], False, True
    x = torch.randn(2, 12, dtype=torch.float64)
    for function in (F.gelu, F.silu, torch.tanh):
        model = Joined(
            lambda s, x, f=function: s.b(f(s.a(x))), a=nn.Linear(12, 16, bias=False), b=nn.Linear(16, 3, bias=False)
        )
        seed = seed_at(model, x)
        found = share(peer(model, x), seed)
        relevance = ours(model, x, seed, dt.rules.Epsilon(1e-9))
        there.append(found[0].item())
        here.append(share(relevance, seed)[0].item())
        wrong |= bool((found - 1).abs().max() > 0.1)
        right &= bool((share(relevance, seed) - 1).abs().max() < 1e-3)
    return Finding(f"ΣR/f = {shares(there)}", f"ΣR/f = {shares(here)}", wrong, right)


def reused() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(1)
    shared = Joined(
        lambda s, x: s.c(F.relu(s.a(F.relu(s.a(x))))), a=nn.Linear(12, 12, bias=False), c=nn.Linear(12, 3, bias=False)
    )
    unrolled = Joined(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))),
        a=nn.Linear(12, 12, bias=False), b=nn.Linear(12, 12, bias=False), c=nn.Linear(12, 3, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        for layer, source in ((unrolled.a, shared.a), (unrolled.b, shared.a), (unrolled.c, shared.c)):
            layer.weight.copy_(source.weight)
    return shared, unrolled, torch.randn(2, 12, dtype=torch.float64)


def zoo(name: str) -> nn.Module:
    """A torchvision model without biases; batch norm has statistics but no offsets."""
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name in ("inception_v3", "googlenet") else {}
    model = getattr(torchvision.models, name)(num_classes=10, **options)
    drawn(model)
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith(("bias", "running_mean")):
                tensor.zero_()
            elif key.endswith("layer_scale"):
                tensor.fill_(0.5)
    return model
