"""Higher derivatives are right in safe mode, for every nesting, against differences in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp

import deeptaylor as dt
from deeptaylor.taylor.safe import load_forward_mode

load_forward_mode()
NESTINGS = ["".join(n) for k in (2, 3) for n in product("FR", repeat=k)]
"""Outermost first: RF is reverse over forward."""


def seeded(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(z: Tensor, **options: object) -> Tensor:
    q = z.view(1, 1, 4, 3)
    return F.scaled_dot_product_attention(q, q.cos(), q * q, **options)  # type: ignore[arg-type]


def module(make: Callable[[], nn.Module], *shape: int) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(0)
    net = make().double().eval().requires_grad_(False)

    def run(z: Tensor) -> Tensor:
        out = net(z.view(shape))
        return out[0] if isinstance(out, tuple) else out

    return run


def attend() -> Callable[[Tensor], Tensor]:
    torch.manual_seed(0)
    net = nn.MultiheadAttention(4, 2, batch_first=True).double().eval().requires_grad_(False)
    return lambda z: net(z.view(1, 3, 4), z.view(1, 3, 4), z.view(1, 3, 4))[0]


W, B, IMAGE = seeded(12, seed=1), seeded(12, seed=2), (1, 3, 2, 2)
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda z: F.layer_norm(z.view(3, 4), (4,), W[:4], B[:4]),
    "LayerNorm": module(lambda: nn.LayerNorm(4), 3, 4),
    "torch.layer_norm": lambda z: torch.layer_norm(z.view(3, 4), (4,), W[:4], B[:4]),
    "native_layer_norm": lambda z: torch.native_layer_norm(z.view(3, 4), (4,), W[:4], B[:4], 1e-5)[0],
    "instance_norm": lambda z: F.instance_norm(z.view(IMAGE), weight=W[:3], bias=B[:3]),
    "InstanceNorm": module(lambda: nn.InstanceNorm2d(3, affine=True), *IMAGE),
    "batch_norm, its batch's statistics": lambda z: F.batch_norm(z.view(4, 3), None, None, W[:3], B[:3], True),
    "batch_norm, running statistics": lambda z: F.batch_norm(z.view(4, 3), W[:3], B[:3] ** 2 + 1),
    "BatchNorm": module(lambda: nn.BatchNorm1d(3), 4, 3),
    "group_norm": lambda z: F.group_norm(z.view(IMAGE), 1, W[:3], B[:3]),
    "rms_norm": lambda z: F.rms_norm(z.view(3, 4), (4,), W[:4]),
    "attention": attention,
    "attention, causal": lambda z: attention(z, is_causal=True),
    "attention, mask": lambda z: attention(z, attn_mask=B[:4].expand(1, 1, 4, 4)),
    "MultiheadAttention": attend(),
    "TransformerEncoderLayer": module(
        lambda: nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, activation="gelu"), 1, 3, 4
    ),
    "LSTM": module(lambda: nn.LSTM(4, 2, batch_first=True), 1, 3, 4),
    "GRU": module(lambda: nn.GRU(4, 2, batch_first=True), 1, 3, 4),
    "glu": lambda z: F.glu(z),
    "hardsigmoid": lambda z: F.hardsigmoid(z) ** 2,
    "cdist": lambda z: torch.cdist(z.view(3, 4), B.view(3, 4)),
    "normalize": lambda z: F.normalize(z.view(3, 4), dim=1),
    "cosine_similarity": lambda z: F.cosine_similarity(z.view(3, 4), B.view(3, 4)),
    "norm": lambda z: z.norm(),
    "torch.norm": lambda z: torch.norm(z.view(3, 4), dim=1),
    "linalg.norm": lambda z: torch.linalg.norm(z),
    "vector_norm": lambda z: torch.linalg.vector_norm(z.view(3, 4), dim=1),
    "std": lambda z: z.view(3, 4).std(1),
    "softmax": lambda z: z.softmax(0),
    "log_softmax": lambda z: z.log_softmax(0),
    "logsumexp": lambda z: z.logsumexp(0),
    "gelu": lambda z: F.gelu(z),
    "gelu, tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": lambda z: F.silu(z),
    "softplus": lambda z: F.softplus(z),
    "tanh": lambda z: z.tanh(),
    "elu": lambda z: F.elu(-z.square() - 0.3),
    "conv2d": lambda z: F.conv2d(z.view(IMAGE).sigmoid(), seeded(2, 3, 2, 2)) ** 2,
    "avg_pool": lambda z: F.avg_pool2d(z.view(IMAGE) ** 2, 2) ** 2,
    "max_pool": lambda z: F.max_pool2d(z.view(IMAGE), 2) ** 3,
    "bmm": lambda z: torch.bmm(z.view(1, 3, 4), z.view(1, 4, 3)),
    "einsum": lambda z: torch.einsum("ij,kj->ik", z.view(3, 4), z.view(3, 4).cos()),
    "prod": lambda z: z.view(3, 4).prod(1),
    "division": lambda z: z[:6] / (z[6:] ** 2 + 1),
}


def scalar(operation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """h(t) = <w, operation(x + t v)>."""
    x, v = seeded(12), seeded(12, seed=4)

    def h(t: Tensor) -> Tensor:
        out = operation(x + t * v)
        weights = torch.cos(1 + torch.arange(out.numel(), dtype=torch.float64)).view(out.shape)
        return (out * weights).sum()

    return h


def nested(h: Callable[[Tensor], Tensor], nesting: str) -> float:
    for mode in reversed(nesting):
        inner = h
        h = grad(inner) if mode == "R" else (lambda t, f=inner: jvp(f, (t,), (torch.ones_like(t),))[1])
    return float(h(torch.zeros((), dtype=torch.float64)))


def by_differences(h: Callable[[Tensor], Tensor], radius: float = 0.04, nodes: int = 15) -> dict[int, float]:
    """Second and third derivative of the polynomial through Chebyshev nodes: values only, no autodiff."""
    with torch.no_grad():
        t = np.cos((2 * np.arange(nodes) + 1) * np.pi / (2 * nodes))
        values = [float(h(torch.tensor(radius * s, dtype=torch.float64))) for s in t]
    series = np.polynomial.Chebyshev.fit(t, values, nodes - 1, domain=[-1, 1]).convert(kind=np.polynomial.Polynomial)
    return {2: 2 * series.coef[2] / radius**2, 3: 6 * series.coef[3] / radius**3}


@pytest.mark.parametrize("name", OPERATIONS)
def test_all_twelve_nestings_are_right_in_safe_mode(name: str) -> None:
    h = scalar(OPERATIONS[name])
    truth = by_differences(h)
    with dt.taylor.safe_mode():
        for nesting in NESTINGS:
            want = truth[len(nesting)]
            # Differences of order 3 lose eps/r³ ≈ 3e-12 times the function's size.
            assert nested(h, nesting) == pytest.approx(want, rel=2e-6, abs=2e-6), nesting


@pytest.mark.parametrize("name", OPERATIONS)
def test_safe_mode_leaves_values_as_they_are(name: str) -> None:
    x = seeded(12)
    with torch.no_grad():
        plain = OPERATIONS[name](x)
        with dt.taylor.safe_mode():
            assert torch.allclose(OPERATIONS[name](x), plain, rtol=1e-12, atol=1e-12)


def layer_norm_of(t: Tensor) -> Tensor:
    two = torch.stack([t, torch.zeros_like(t)])
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64)
    return F.layer_norm(two, (2,), weight, eps=0.25).sum()


AT, TRUE_SECOND, WRONG_SECOND = torch.tensor(0.7, dtype=torch.float64), 0.7749142079590942, -0.3848740566


def second(t: Tensor) -> float:
    return float(jvp(lambda s: jvp(layer_norm_of, (s,), (torch.ones_like(s),))[1], (t,), (torch.ones_like(t),))[1])


def test_layer_norm_regression_of_pytorch_196700() -> None:
    with dt.taylor.safe_mode():
        assert second(AT) == pytest.approx(TRUE_SECOND, abs=1e-10)


def test_canary_torch_still_returns_the_wrong_second_derivative_without_safe_mode() -> None:
    """When this fails, torch has mended layer_norm: narrow the safe mode, and say so in docs/taylor.md."""
    assert second(AT) == pytest.approx(WRONG_SECOND, abs=1e-9)


def test_safe_mode_sets_back_what_was_set_also_when_the_block_raises() -> None:
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(ZeroDivisionError), dt.taylor.safe_mode():
        raise ZeroDivisionError
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


class Wrong(torch.autograd.Function):
    """x² whose derivative is written so that its own derivative is wrong."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.x = inputs[0].detach()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return 2 * ctx.x * g  # type: ignore[attr-defined]


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Wrong.apply(x)


def test_check_passes_on_a_layer_norm_model_to_order_three() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)).eval()
    rows = dt.check_derivatives(net, torch.randn(1, 5), order=3)
    assert len(rows) == 4
    assert all(row.right for row in rows)


def test_check_passes_on_a_relu_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    assert all(row.right for row in dt.check_derivatives(net, torch.randn(1, 5)))


def test_check_names_the_module_whose_derivative_is_wrong() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), Square(), nn.Tanh(), nn.Linear(8, 3)).eval()
    with pytest.raises(dt.taylor.WrongDerivative, match=r"module '1' \(Square\)") as caught:
        dt.check_derivatives(net, torch.randn(1, 5))
    assert caught.value.module == "1"


def traced(net: nn.Module, x: Tensor) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(net, x)


def exported(net: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(net, (x,))


@pytest.mark.parametrize("compiled", [traced, exported])
def test_a_compiled_graph_is_served_where_its_derivatives_pass_the_check(compiled: Callable[..., object]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)).double().eval().requires_grad_(False)
    x = torch.randn(1, 4, dtype=torch.float64)
    graph = compiled(net, x)
    for estimate in (dt.taylor_terms, dt.integrated_terms):
        ours, theirs = (estimate(m, x, "zero", target=0).matrix() for m in (net, graph))
        assert torch.allclose(ours, theirs, atol=1e-9)
    ours, theirs = (dt.taylor_orders(m, x, "zero", target=0, at="reference").maps for m in (net, graph))
    assert torch.allclose(ours, theirs, atol=1e-8)


def test_a_compiled_graph_is_refused_above_order_one_where_they_do_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, dtype=torch.float64)
    graph = traced(nn.Sequential(nn.Linear(4, 6), Square(), nn.Linear(6, 2)).double().eval(), x)
    with pytest.raises(dt.errors.InputError, match="scripted or exported"):
        dt.taylor_terms(graph, x, "zero", target=0)
    assert bool(dt.taylor_terms(graph, x, "zero", target=0, order=1).terms.any())


def test_a_check_says_in_which_precision_it_was_made():
    class Narrow(torch.nn.Module):
        def forward(self, x):
            return x.float().pow(3).sum(1)

    x = torch.rand(1, 3)
    assert {row.precision for row in dt.check_derivatives(lambda v: v.pow(3).sum(1), x.double())} == {"float64"}
    assert {row.precision for row in dt.check_derivatives(Narrow().eval(), x)} == {"float32"}
