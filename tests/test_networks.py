"""Networks on which other libraries fail, as they are written in practice, and the ways to call.

The failures were observed with zennit 1.0.0 and captum 0.9.0: relevance multiplied at every functional residual,
functional activations skipped, reused layers mixed up, pre-activation networks broken by folding, all in silence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.rules import Epsilon, Gamma, LRPZero, WSquare, ZBox, ZPlus


def seeded(model: nn.Module, scale: float = 1.0, seed: int = 0) -> nn.Module:
    """float64, eval mode, random parameters (biases too) and random batch-norm statistics."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 10
        parameter.data = scale * torch.randn(parameter.shape, generator=generator) / fan**0.5
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator)
            module.running_mean = 0.3 * torch.randn(module.running_mean.shape, generator=generator)
            module.running_var = 0.5 + torch.rand(module.running_var.shape, generator=generator)
    return model.double().eval()


def rand(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """Modules by name, and a function that says how they are joined."""

    def __init__(self, join: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.join = join
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Tensor) -> Tensor:
        return self.join(self, *args)


def conv(n_in: int, n_out: int, bias: bool = True, **options: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias, **options)


def closes(result: dt.Attribution, tolerance: float = 1e-9) -> bool:
    total = result.relevance.flatten(1).sum(1) + result.ledger.absorbed
    scale = max(1.0, float(result.relevance.abs().sum()) / 1e3)
    return torch.allclose(total, result.explained, rtol=tolerance, atol=tolerance * scale)


# Residuals, functional activations, reuse -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("convolutional", [False, True], ids=["dense", "convolutional"])
def test_functional_residuals_conserve_at_any_depth(n: int, convolutional: bool) -> None:
    def join(net: Net, x: Tensor) -> Tensor:
        for block in net.blocks:
            x = x + 0.5 * F.relu(block(x))
        return net.head(x.mean((2, 3)) if convolutional else x)

    blocks = [conv(4, 4, bias=False) if convolutional else nn.Linear(4, 4, bias=False) for _ in range(n)]
    model = seeded(Net(join, blocks=nn.ModuleList(blocks), head=nn.Linear(4, 3, bias=False)))
    x = rand(2, 4, 5, 5).abs() if convolutional else rand(2, 4).abs()
    result = dt.explain(model, x, composite="epsilon-plus", ledger=True)
    ratio = result.relevance.flatten(1).sum(1) / result.explained
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-4)  # epsilon 1e-6 at every layer
    assert closes(result)


@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "relu", "leaky_relu", "hardswish", "mish", "elu"])
def test_a_functional_activation_is_the_module(name: str) -> None:
    kinds = {"gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}
    kinds |= {"hardswish": nn.Hardswish, "mish": nn.Mish, "elu": nn.ELU}
    first, last = nn.Linear(5, 6, bias=False), nn.Linear(6, 3, bias=False)
    functional = getattr(torch, name) if name == "tanh" else getattr(F, name)
    written = seeded(Net(lambda net, x: net.last(functional(net.first(x))), first=first, last=last))
    modular = nn.Sequential(first, kinds[name](), last).eval()
    x = rand(3, 5)
    one, other = (dt.explain(model, x, composite="epsilon") for model in (written, modular))
    assert torch.equal(one.relevance, other.relevance)
    assert torch.allclose(one.relevance.sum(1), one.explained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [Epsilon(), ZPlus(), Gamma(0.25), WSquare()], ids=str)
def test_a_layer_used_twice_is_explained_like_its_unrolled_copy(rule: object) -> None:
    shared, head = nn.Linear(5, 5), nn.Linear(5, 3)
    used_twice = seeded(Net(lambda n, x: n.head(F.relu(n.a(F.relu(n.a(x))))), a=shared, head=head))
    unrolled = Net(
        lambda n, x: n.head(F.relu(n.b(F.relu(n.a(x))))), a=copy.deepcopy(shared), b=copy.deepcopy(shared), head=head
    ).eval()
    x = rand(4, 5)
    one, other = (dt.explain(model, x, target=1, composite=rule).relevance for model in (used_twice, unrolled))
    assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_in_place_operations_are_explained_like_those_that_copy() -> None:
    def in_place(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        y.relu_()
        z = net.act(net.b(y))
        z += y
        z *= 2.0
        return net.head(z)

    parts = {"a": nn.Linear(5, 5), "b": nn.Linear(5, 5), "act": nn.ReLU(inplace=True), "head": nn.Linear(5, 3)}
    written = seeded(Net(in_place, **parts))
    plain = Net(lambda n, x: n.head(2.0 * (F.relu(n.b(F.relu(n.a(x)))) + F.relu(n.a(x)))), **parts).eval()
    x = rand(3, 5)
    for composite in ("epsilon", "deep-taylor"):
        one, other = (dt.explain(model, x, target=0, composite=composite).relevance for model in (written, plain))
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)  # stabilizers: the plain one runs its first layer twice


# Batch norm -----------------------------------------------------------------------------------------------------------


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution that does both, by hand."""
    both = conv(convolution.in_channels, convolution.out_channels).double()
    factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    both.weight.data = convolution.weight.data * factor.reshape(-1, 1, 1, 1)
    offset = convolution.bias.data if convolution.bias is not None else 0.0
    both.bias.data = (offset - norm.running_mean) * factor + norm.bias.data
    return both


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "rule", [LRPZero(), Epsilon(), ZPlus(convention="zennit"), ZPlus(), Gamma(), WSquare()], ids=str
)
def test_a_batch_norm_after_a_convolution_is_explained_as_one_convolution(rule: object, bias: bool) -> None:
    body = seeded(nn.Sequential(conv(2, 4, bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)))
    alone = nn.Sequential(folded(body[0], body[1]), nn.ReLU(), nn.Flatten(), body[4]).eval()
    x = rand(2, 2, 4, 4)
    assert torch.allclose(body(x), alone(x), rtol=1e-12)
    one, other = (dt.explain(model, x, target=2, composite=rule, ledger=True) for model in (body, alone))
    assert torch.allclose(one.relevance, other.relevance, rtol=1e-9, atol=1e-12)
    assert torch.allclose(one.ledger.absorbed, other.ledger.absorbed, rtol=1e-9, atol=1e-12)
    assert torch.allclose(one.output, body(x).detach(), rtol=1e-12)


def pre_activation_resnet() -> nn.Module:
    def join(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x + net.conv1(F.relu(net.norm1(x)))
        x = x + net.conv2(F.relu(net.norm2(x)))
        return net.head(F.relu(x).mean((2, 3)))

    return seeded(
        Net(
            join, stem=conv(3, 4), norm1=nn.BatchNorm2d(4), conv1=conv(4, 4), norm2=nn.BatchNorm2d(4),
            conv2=conv(4, 4), head=nn.Linear(4, 4),
        )
    )  # fmt: skip


def densenet() -> nn.Module:
    def join(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        for norm, layer in ((net.norm1, net.conv1), (net.norm2, net.conv2)):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return net.head(F.adaptive_avg_pool2d(F.relu(net.norm3(x)), 1).flatten(1))

    return seeded(
        Net(
            join, stem=conv(3, 4), norm1=nn.BatchNorm2d(4), conv1=conv(4, 3), norm2=nn.BatchNorm2d(7),
            conv2=conv(7, 2), norm3=nn.BatchNorm2d(9), head=nn.Linear(9, 4),
        )
    )  # fmt: skip


def squeeze_and_excite() -> nn.Module:
    def join(net: Net, x: Tensor) -> Tensor:
        x = F.silu(net.stem(x))
        gate = torch.sigmoid(net.up(F.silu(net.down(x.mean((2, 3), keepdim=True)))))
        return net.head((x * gate).mean((2, 3)))

    return seeded(Net(join, stem=conv(3, 4), down=nn.Conv2d(4, 2, 1), up=nn.Conv2d(2, 4, 1), head=nn.Linear(4, 4)))


ARCHITECTURES = {builder.__name__: builder for builder in (pre_activation_resnet, densenet, squeeze_and_excite)}


@pytest.mark.filterwarnings("ignore::deeptaylor.errors.RelevanceWarning")
@pytest.mark.parametrize("composite", ["deep-taylor", "epsilon-plus", "epsilon-gamma-box", "gradient-times-input"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_that_folding_breaks_keep_their_output_and_their_relevance(name: str, composite: str) -> None:
    model, x = ARCHITECTURES[name](), rand(2, 3, 6, 6)
    result = dt.explain(model, x, composite=composite, ledger=True)
    output = model(x).detach()
    assert torch.allclose(result.output, output, rtol=1e-9)
    assert torch.equal(result.target, output.argmax(1))
    assert torch.allclose(result.explained, output.amax(1), rtol=1e-9)
    assert closes(result)
    if composite == "gradient-times-input":
        x.requires_grad_()
        expected = x * torch.autograd.grad(model(x).amax(1).sum(), x)[0]
        assert torch.allclose(result.relevance, expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::deeptaylor.errors.RelevanceWarning")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_is_explained_like_its_samples_one_by_one_and_may_have_any_size(name: str) -> None:
    model, x = ARCHITECTURES[name](), rand(5, 3, 6, 6)
    explainer = dt.Explainer(model, x[:2], composite="epsilon-gamma-box")
    together = explainer(x, target=[0, 1, 2, 3, 0])
    for k in range(5):
        alone = explainer(x[k : k + 1], target=[0, 1, 2, 3, 0][k])
        scale = float(alone.relevance.abs().max())
        assert torch.allclose(together.relevance[k], alone.relevance[0], rtol=1e-9, atol=1e-9 * scale)


# Targets --------------------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4)))


def test_several_targets_are_explained_like_each_alone() -> None:
    model, x, targets = mlp(), rand(3, 5), torch.tensor([[0, 1], [2, 3], [1, 1]])
    explainer = dt.Explainer(model, x, composite="deep-taylor")
    together = explainer(x, target=targets, ledger=True)
    assert together.relevance.shape == (3, 2, 5)
    assert together.explained.shape == (3, 2)
    for k in range(2):
        alone = explainer(x, target=targets[:, k], ledger=True)
        assert torch.allclose(together.relevance[:, k], alone.relevance, rtol=1e-12)
        assert torch.allclose(together.explained[:, k], alone.explained)
        assert torch.allclose(together.ledger.absorbed[:, k], alone.ledger.absorbed, rtol=1e-9, atol=1e-12)


def test_the_predicted_class_is_the_default_and_the_top_classes_come_best_first() -> None:
    model, x = mlp(), rand(3, 5)
    order = model(x).argsort(1, descending=True)
    assert torch.equal(dt.explain(model, x).target, order[:, 0])
    best = dt.explain(model, x, target=dt.top(3))
    assert torch.equal(best.target, order[:, :3])
    assert torch.equal(best.relevance[:, 0], dt.explain(model, x).relevance)


@pytest.mark.parametrize("rule", [LRPZero(), ZPlus(), Gamma(0.25), WSquare()], ids=str)
def test_a_contrast_is_the_difference_of_two_explanations(rule: object) -> None:
    model, x = mlp(), rand(3, 5)
    explainer = dt.Explainer(model, x, composite=rule)
    one, other, contrast = (explainer(x, target=target) for target in (2, 0, dt.contrast(2, 0)))
    assert torch.allclose(contrast.explained, one.explained - other.explained)
    assert torch.allclose(contrast.relevance, one.relevance - other.relevance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("composite", ["epsilon", "deep-taylor"])
def test_log_odds_are_explained_and_accounted_for(composite: str) -> None:
    model, x = mlp(), rand(3, 5)
    result = dt.explain(model, x, target=dt.log_odds(1), composite=composite, ledger=True)
    p = model(x).softmax(1)[:, 1].detach()
    assert torch.allclose(result.explained, torch.log(p / (1 - p)), rtol=1e-9)
    assert closes(result)


def test_log_odds_put_relevance_on_the_differences_of_logits() -> None:
    model, x = mlp(), rand(3, 5)
    logits = model(x).detach()
    others = [c for c in range(4) if c != 1]
    z = logits[:, [1]] - logits[:, others]  # z_cc' of Montavon 2019, with the weights of its soft minimum
    weights = torch.exp(-z) / torch.exp(-z).sum(1, keepdim=True)
    contrasts = [dt.explain(model, x, target=dt.contrast(1, c), composite=LRPZero()).relevance for c in others]
    expected = sum(weights[:, [k]] * contrast for k, contrast in enumerate(contrasts))
    found = dt.explain(model, x, target=dt.log_odds(1), composite=LRPZero()).relevance
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_seed_and_an_inner_node_continue_each_other() -> None:
    model, x = mlp(), rand(3, 5)
    result = dt.explain(model, x, target=1, composite="deep-taylor", inner=("0",), ledger=True)
    assert result.inner["0"].shape == (3, 7)
    continued = dt.explain(model[0], x, target=result.inner["0"], composite=WSquare()).relevance
    assert torch.allclose(continued, result.relevance, rtol=1e-9, atol=1e-12)


def test_a_head_chooses_what_is_explained() -> None:
    first, rest = nn.Linear(5, 7), nn.Linear(7, 4)
    model = seeded(Net(lambda n, x: {"aux": x, "logits": n.rest(F.relu(n.first(x)))}, first=first, rest=rest))
    x = rand(3, 5)
    result = dt.explain(model, x, target=2, head=lambda out: out["logits"], composite="epsilon")
    plain = nn.Sequential(first, nn.ReLU(), rest).eval()
    assert torch.equal(result.relevance, dt.explain(plain, x, target=2, composite="epsilon").relevance)


# Inputs ---------------------------------------------------------------------------------------------------------------


class ManyInputs(nn.Module):
    """Two signals, a mask and an id, by position and by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 3)
        self.table = nn.Embedding(5, 6)

    def forward(
        self, left: Tensor, ids: Tensor, *, right: Tensor, mask: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        h = F.relu(self.left(left) + scale * self.right(right) + self.table(ids))
        h = h if mask is None else h * mask
        return self.head(h)


def many_inputs() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object]]:
    mask = torch.tensor([[1, 1, 0, 1, 0, 1], [1, 0, 1, 1, 1, 1]], dtype=torch.float64)
    kwargs = {"right": rand(2, 3, seed=4), "mask": mask, "scale": 0.5}
    return seeded(ManyInputs()), (rand(2, 4), torch.tensor([3, 1])), kwargs


def test_several_inputs_share_the_relevance_and_ids_and_masks_take_none() -> None:
    model, inputs, kwargs = many_inputs()
    result = dt.explain(
        model, inputs, kwargs=kwargs, explain=("left", "right"), target=1, composite="gradient-times-input"
    )
    assert set(result.relevance) == {"left", "right"}
    leaves = {"left": inputs[0].clone().requires_grad_(), "right": kwargs["right"].clone().requires_grad_()}
    f = model(leaves["left"], inputs[1], **{**kwargs, "right": leaves["right"]})[:, 1].sum()
    for (name, leaf), gradient in zip(leaves.items(), torch.autograd.grad(f, list(leaves.values())), strict=True):
        assert torch.allclose(result.relevance[name], (leaf * gradient).detach(), rtol=1e-9, atol=1e-12)


def test_every_floating_input_is_explained_by_default() -> None:
    model, inputs, kwargs = many_inputs()
    result = dt.explain(model, inputs, kwargs=kwargs, target=1, composite="epsilon", ledger=True)
    assert set(result.relevance) == {"left", "right", "mask"}
    shared = sum(relevance.flatten(1).sum(1) for relevance in result.relevance.values())
    assert torch.allclose(shared + result.ledger.absorbed, result.explained, rtol=1e-9)


def test_one_of_several_inputs_comes_back_as_a_tensor_and_the_rest_is_booked() -> None:
    model, inputs, kwargs = many_inputs()
    result = dt.explain(model, inputs, kwargs=kwargs, explain="left", target=1, composite="epsilon", ledger=True)
    assert result.relevance.shape == (2, 4)
    assert closes(result)


def test_a_plain_function_is_explained_like_a_module() -> None:
    model, x = mlp(), rand(3, 5)
    found = dt.explain(lambda image: model(image), x, target=0, composite="epsilon").relevance
    assert torch.equal(found, dt.explain(model, x, target=0, composite="epsilon").relevance)


def test_recording_gives_what_exporting_gives() -> None:
    model, x = squeeze_and_excite(), rand(2, 3, 6, 6)
    for composite in ("epsilon-plus", "gradient-times-input"):
        found = dt.explain(model, x, composite=composite, record=True).relevance
        assert torch.allclose(found, dt.explain(model, x, composite=composite).relevance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("example", [1, 4])
def test_an_explainer_does_not_care_how_the_batch_lies_in_memory(example: int) -> None:
    body = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    model, x = seeded(body), rand(4, 3, 6, 6)
    explainer = dt.Explainer(model, x[:example], composite="epsilon-plus")
    expected = explainer(x).relevance
    flipped = x.flip(3).flip(3).transpose(2, 3).contiguous().transpose(2, 3)
    for other in (x.to(memory_format=torch.channels_last), flipped):
        assert torch.allclose(explainer(other).relevance, expected, rtol=1e-9, atol=1e-12)


def test_boxes_may_be_given_per_channel() -> None:
    model, x = pre_activation_resnet(), rand(2, 3, 6, 6)
    low, high = x.amin((0, 2, 3)).reshape(3, 1, 1).clamp(max=0) - 0.1, x.amax((0, 2, 3)).reshape(3, 1, 1) + 0.1
    one = dt.explain(model, x, composite="deep-taylor", bounds=(low, high)).relevance
    other = dt.explain(model, x, composite=dt.composites.deep_taylor(low=low, high=high)).relevance
    assert torch.equal(one, other)
    assert not torch.equal(one, dt.explain(model, x, composite="deep-taylor").relevance)


def test_rules_can_be_chosen_by_layer() -> None:
    c, model, x = dt.composites, densenet(), rand(2, 3, 6, 6)
    lines = [(c.index(0), ZBox(-9.0, 9.0)), (c.module("conv1"), Gamma(0.5)), (c.op("linear"), Epsilon(1e-3))]
    explainer = dt.Explainer(
        model, x, composite=dt.Composite([*lines, (lambda place: place.role == "affine", ZPlus())])
    )
    plan = str(explainer.plan)
    for rule in ("ZBox", "Gamma", "Epsilon", "ZPlus"):
        assert rule in plan
    assert explainer(x).relevance.isfinite().all()


def test_save_and_load_return_the_same_attribution(tmp_path: Path) -> None:
    model, x = densenet(), rand(2, 3, 6, 6)
    result = dt.explain(model, x, target=torch.tensor([[0, 1], [2, 3]]), composite="epsilon-plus", ledger=True)
    result.save(tmp_path / "a.safetensors")
    loaded = dt.Attribution.load(tmp_path / "a.safetensors")
    for name in ("relevance", "output", "target", "explained"):
        assert torch.equal(getattr(loaded, name), getattr(result, name)), name
    assert torch.equal(loaded.ledger.absorbed, result.ledger.absorbed)
    assert len(loaded.ledger.rows) == len(result.ledger.rows)
    assert str(loaded.plan) == str(result.plan)
