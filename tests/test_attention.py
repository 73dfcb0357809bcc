"""Attention, norms, gates and residual sums: the numbers of the papers, explicit rules, and what they cost."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from counting import LinearOperations
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.rules import Gradient, ProportionalProduct, ResidualGamma, SignalTakesAll, Tangent, Uniform


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- closed forms -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shift", "expected"), [(0.0, (0.30422, -0.66439, 0.0)), (5.0, (1.8253, -2.3253, 0.1399))], ids=["at x", "at x + 5"]
)
def test_softmax_is_expanded_at_x_and_shifting_x_moves_relevance_but_not_its_sum(
    shift: float, expected: tuple[float, ...]
) -> None:
    x, seed = tensor(1.0, 2.0, 0.0)[None] + shift, tensor(0.5, 0.2, 0.1)[None]
    found = dt.explain(lambda x: x.softmax(-1), x, target=seed, composite="attn-lrp", ledger=True)
    assert found.relevance[0].tolist() == pytest.approx(expected, abs=1e-4)
    assert found.relevance.sum().item() == pytest.approx(-0.36017, abs=1e-5)
    assert found.ledger.absorbed.item() == pytest.approx(1.16017, abs=1e-5)


def bilinear(operands: Tensor) -> Tensor:
    left, right = operands.unflatten(1, (2, 2, 2)).unbind(1)
    return (left @ right).flatten(1)


def test_a_product_of_matrices_gives_each_half_worked_example() -> None:
    x = tensor(0.7, 0.3, 0.2, 0.8, 1.0, 2.0, 3.0, -1.0)[None]
    found = dt.explain(bilinear, x, target=tensor(1.0, 0.5, 2.0, -1.0)[None], composite="attn-lrp").relevance[0]
    assert found[:4].tolist() == pytest.approx([0.536932, 0.213068, 0.576923, -0.076923], abs=1e-6)
    assert found[4:].tolist() == pytest.approx([0.295673, 0.818182, 1.204327, -1.068182], abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (SignalTakesAll(), (0.0, 1.2)),
        (Uniform(), (0.6, 0.6)),
        (Gradient(), (1.2, 1.2)),
        (ProportionalProduct(), (1.2 * 0.8 / 2.3, 1.2 * 1.5 / 2.3)),
    ],
    ids=str,
)
def test_a_gate_of_point_eight_and_a_signal(rule: dt.rules.Rule, expected: tuple[float, float]) -> None:
    # the gate is a sigmoid, and what reaches it is read there
    x = torch.stack([torch.logit(tensor(0.8)), tensor(1.5)], 1)
    gated = dt.Explainer(
        lambda x: x[:, :1].sigmoid() * x[:, 1:], x, composite=dt.Composite([(dt.composites.role("product"), rule)])
    )
    result = gated(x, target=0, inner=["sigmoid"] if expected[0] else [])
    gate = result.inner["sigmoid"].item() if expected[0] else 0.0
    assert (gate, result.relevance[0, 1].item()) == pytest.approx(expected, abs=1e-12)


def test_gradient_times_input_leaks_through_layer_norm_by_eps_over_eps_plus_variance() -> None:
    x, seed = tensor(1.0, 2.0, 4.0)[None], tensor(0.3, 1.0, -0.4)[None]
    found = dt.explain(lambda x: F.layer_norm(x, (3,), eps=0.1), x, target=seed, composite="gradient-times-input")
    variance = x.var(correction=0).item()
    assert found.relevance.sum().item() == pytest.approx(seed.sum().item() * 0.1 / (0.1 + variance), abs=1e-12)
    assert 0.1 / (0.1 + variance) * 0.2 == pytest.approx(0.2 * 0.060403, rel=1e-4)


def by_hand(x: Tensor, eps: float = 0.1) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps)


def by_variance(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + 0.1)


def by_moments(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
    return (x - mean) * (variance + 0.1) ** -0.5


@pytest.mark.parametrize("written", [by_hand, by_variance, by_moments])
@pytest.mark.parametrize("composite", ["attn-lrp", "cp-lrp", "gradient-times-input"])
def test_layer_norm_in_plain_python_is_the_operation(written: object, composite: str) -> None:
    x, seed = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    whole = dt.explain(lambda x: F.layer_norm(x, (5,), eps=0.1), x, target=seed, composite=composite)
    found = dt.explain(written, x, target=seed, composite=composite)
    assert torch.allclose(found.relevance, whole.relevance, atol=1e-12)


@pytest.mark.parametrize("composite", ["attn-lrp", "cp-lrp"])
def test_rms_norm_passes_relevance_unchanged_also_in_plain_python(composite: str) -> None:
    x, seed = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    for norm in (
        lambda x: F.rms_norm(x, (5,), eps=0.1),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1),
        lambda x: x / x.norm(dim=-1, keepdim=True),
        lambda x: F.normalize(x),
    ):
        found = dt.explain(norm, x, target=seed, composite=composite)
        assert torch.allclose(found.relevance, seed, atol=1e-12)


# --- a whole block, written twice ---------------------------------------------------------------------------------
class Block(nn.Module):
    """A pre-norm block: attention and an MLP with GELU, both with residual sums, biases everywhere."""

    def __init__(self, fused: bool, width: int = 6, heads: int = 2) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.fused, self.heads = fused, heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-3) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 9), nn.Linear(9, width)
        for norm in self.norms:
            nn.init.normal_(norm.weight, 1, 0.2), nn.init.normal_(norm.bias, 0, 0.2)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norms[0](x)
        q, k, v = (self.split(f(n)) for f in (self.q, self.k, self.v))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return (x + self.down(F.gelu(self.up(self.norms[1](x))))).flatten(1)


def block(fused: bool) -> tuple[Block, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    seed = torch.randn(2, 24, generator=generator, dtype=torch.float64)
    return Block(fused).double().eval(), x, seed


def linear_backwards(layer: nn.Linear, x: Tensor, r: Tensor) -> Tensor:
    return x * ((r / layer(x)) @ layer.weight)


def norm_backwards(norm: nn.LayerNorm, x: Tensor, r: Tensor) -> Tensor:
    """The statistic held constant; centering shared by LRP-0, R_i = x_i Σ_j (δ_ij − 1/n)/(x_j − mean) R_j; the bias keeps its own."""
    centred = x - x.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + norm.eps) * norm.weight
    r = r * y / (y + norm.bias)
    return x * (r / centred - (r / centred).mean(-1, keepdim=True))


def explicit(block: Block, x: Tensor, seed: Tensor, gamma: float = 0.0) -> Tensor:
    """AttnLRP from the formulas of the paper, each with relevance itself, nothing in product form."""

    def shared(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        wa, wb = ((1 + gamma * (part * (a + b) > 0)) * part for part in (a, b))
        return wa / (wa + wb) * r, wb / (wa + wb) * r

    with torch.no_grad():
        n1 = block.norms[0](x)
        q, k, v = (block.split(f(n1)) for f in (block.q, block.k, block.v))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        weights = scores.softmax(-1)
        mixed = weights @ v
        joined = mixed.transpose(1, 2).flatten(2)
        first = block.o(joined)
        middle = x + first
        n2 = block.norms[1](middle)
        up = block.up(n2)
        act = F.gelu(up)

        r_middle, r = shared(middle, block.down(act), seed.view_as(x))
        r = linear_backwards(block.up, n2, linear_backwards(block.down, act, r))  # GELU: relevance passes
        r_middle = r_middle + norm_backwards(block.norms[1], middle, r)
        r_x, r = shared(x, first, r_middle)
        r_mixed = block.split(linear_backwards(block.o, joined, r))
        s = r_mixed / (2 * mixed)
        r_weights, r_v = weights * (s @ v.mT), v * (weights.mT @ s)
        r_scores = scores * (r_weights - weights * r_weights.sum(-1, keepdim=True))
        s = r_scores / (2 * scores * math.sqrt(q.shape[-1]))
        r_q, r_k = q * (s @ k), k * (s.mT @ q)
        r_n = torch.zeros_like(n1)
        for layer, part in ((block.q, r_q), (block.k, r_k), (block.v, r_v)):
            r_n += linear_backwards(layer, n1, part.transpose(1, 2).flatten(2))
        return r_x + norm_backwards(block.norms[0], x, r_n)


@pytest.mark.parametrize("fused", [False, True], ids=["softmax by itself", "fused attention"])
@pytest.mark.parametrize("record", [False, True], ids=["traced", "recorded"])
def test_attn_lrp_is_the_explicit_rules(fused: bool, record: bool) -> None:
    model, x, seed = block(fused)
    found = dt.explain(model, x, target=seed, composite="attn-lrp", record=record, ledger=True)
    expected = explicit(model, x, seed)
    assert (found.relevance - expected).abs().max() < 1e-10 * expected.abs().max()
    assert found.ledger.gap.abs().max() < 1e-12


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
def test_res_lrp_is_the_explicit_rule_in_its_conserving_form(gamma: float) -> None:
    model, x, seed = block(fused=True)
    found = dt.explain(model, x, target=seed, composite=dt.composites.res_lrp(gamma), ledger=True)
    expected = explicit(model, x, seed, gamma)
    assert (found.relevance - expected).abs().max() < 1e-10 * expected.abs().max()
    assert found.ledger.gap.abs().max() < 1e-12


def test_res_lrp_without_gamma_is_attn_lrp() -> None:
    model, x, seed = block(fused=True)
    without, plain = (
        dt.explain(model, x, target=seed, composite=composite) for composite in (dt.composites.res_lrp(0.0), "attn-lrp")
    )
    assert torch.allclose(without.relevance, plain.relevance, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
def test_a_residual_sum_keeps_its_bound_where_the_branches_cancel(gamma: float) -> None:
    x = torch.randn(50, 1, dtype=torch.float64)
    branch = -x * (1 - 1e-6 * torch.rand_like(x))  # almost all of it cancels
    inputs, seed = torch.cat([x, branch], 1), torch.randn(50, 1, dtype=torch.float64)
    rule = dt.Composite([(dt.composites.op("add"), ResidualGamma(gamma))])
    found = dt.explain(lambda x: x[:, :1] + x[:, 1:], inputs, target=seed, composite=rule)
    assert torch.allclose(found.relevance.sum(1), seed[:, 0], atol=1e-9)
    assert (found.relevance.abs().sum(1) <= (1 + 2 / gamma) * seed[:, 0].abs() * (1 + 1e-9)).all()


@pytest.mark.parametrize("fused", [False, True], ids=["softmax by itself", "fused attention"])
def test_cp_lrp_is_the_gradient_with_weights_and_statistics_detached(fused: bool) -> None:
    model, x, seed = block(fused)

    def detached(x: Tensor) -> Tensor:
        def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
            scale = torch.rsqrt(x.var(-1, keepdim=True, correction=0) + layer.eps).detach()
            return (x - x.mean(-1, keepdim=True)) * scale * layer.weight + layer.bias

        n = norm(model.norms[0], x)
        q, k, v = (model.split(f(n)) for f in (model.q, model.k, model.v))
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).detach()
        x = x + model.o((weights @ v).transpose(1, 2).flatten(2))
        up = model.up(norm(model.norms[1], x))
        return (x + model.down(up * (F.gelu(up) / up).detach())).flatten(1)

    leaf = x.clone().requires_grad_()
    out = detached(leaf)
    (gradient,) = torch.autograd.grad(out, leaf, seed / out)
    found = dt.explain(model, x, target=seed, composite="cp-lrp")
    assert (found.relevance - x * gradient).abs().max() < 1e-10 * found.relevance.abs().max()


def test_cp_lrp_conserves_where_there_is_no_bias() -> None:
    model, x, seed = block(fused=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    found = dt.explain(model, x, target=seed, composite="cp-lrp", ledger=True)
    assert torch.allclose(found.relevance.sum((1, 2)), seed.sum(1), atol=1e-9)
    assert found.ledger.absorbed.abs().max() < 1e-9


@pytest.mark.parametrize("fused", [False, True], ids=["softmax by itself", "fused attention"])
def test_attn_lrp_needs_no_matrix_product_beyond_those_of_one_gradient(fused: bool) -> None:
    model, x, seed = block(fused)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    explainer = dt.Explainer(model, x, composite="attn-lrp")
    explainer(x, target=seed)
    with LinearOperations() as gradient:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf), leaf, seed)
    with LinearOperations() as ours:
        explainer(x, target=seed)
    assert sum(call.multiplications for call in ours.calls) <= sum(call.multiplications for call in gradient.calls)


def test_relevance_per_patch_adds_up_pixels_and_channels() -> None:
    images = torch.randn(2, 3, 8, 12)
    result = dt.explain(lambda x: x.flatten(1)[:, :5] + x.sum((1, 2, 3))[:, None], images, target=[[0, 1], [2, 3]])
    patches = result.per_patch(4)
    assert patches.shape == (2, 2, 2, 3)
    assert torch.allclose(patches[:, :, 1, 2], result.relevance[..., 4:, 8:].sum((2, 3, 4)), atol=1e-5)
    with pytest.raises(dt.errors.InputError, match="8 x 12"):
        result.per_patch(5)


def test_tangent_is_a_named_rule_for_activations() -> None:
    x = tensor(2.0, -1.0)[None]
    tangent = dt.Composite([(dt.composites.role("activation"), Tangent())])
    found = dt.explain(F.silu, x, target=F.silu(x), composite=tangent, ledger=True)
    assert found.relevance[0].tolist() == pytest.approx([2.1816, -0.0723], abs=1e-4)
    assert dt.explain(F.silu, x, target=F.silu(x), composite="epsilon").relevance[0].tolist() == pytest.approx(
        [1.7616, -0.2689], abs=1e-4
    )


@pytest.mark.parametrize("composite", ["attn-lrp", "cp-lrp", "gradient-times-input"])
@pytest.mark.parametrize("options", ["mask", "bias", "causal", "grouped", "scale"])
def test_fused_attention_with_every_option_is_attention_written_out(options: str, composite: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 4 * 5, generator=generator, dtype=torch.float64)
    heads = 2 if options == "grouped" else 4
    mask = torch.ones(4, 4, dtype=torch.bool).tril(1)
    bias = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    arguments = {
        "mask": {"attn_mask": mask}, "bias": {"attn_mask": bias}, "causal": {"is_causal": True},
        "grouped": {"enable_gqa": True}, "scale": {"scale": 0.3},
    }[options]  # fmt: skip

    def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = x.unflatten(-1, (4, 5)).transpose(1, 2)
        return q * 1.5, q[:, :heads] * 0.7, q[:, :heads].sin()

    def fused(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*parts(x), **arguments).flatten(1)

    def written(x: Tensor) -> Tensor:
        q, k, v = parts(x)
        k, v = (t.repeat_interleave(4 // heads, 1) for t in (k, v))
        scores = q @ k.mT * (0.3 if options == "scale" else 5**-0.5)
        if options in ("mask", "causal"):
            seen = mask if options == "mask" else torch.ones(4, 4, dtype=torch.bool).tril()
            scores = scores.masked_fill(~seen, -math.inf)
        return ((scores + bias if options == "bias" else scores).softmax(-1) @ v).flatten(1)

    whole = dt.explain(fused, x, target=7, composite=composite, ledger=True)
    opened = dt.explain(written, x, target=7, composite=composite, ledger=True)
    assert torch.allclose(whole.output, opened.output, atol=1e-12)
    assert torch.allclose(whole.relevance, opened.relevance, atol=1e-12)
    for result in (whole, opened):
        assert result.ledger.gap.abs().max() < 1e-12
