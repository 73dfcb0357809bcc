"""Miniatures of the networks people use, under every composite: the ledger closes and gradient × input is autograd's.

Needs torch alone. `make coverage` runs the same claims on whole torchvision and timm models.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeptaylor as dt

COMPOSITES = (
    "auto",
    "deep-taylor",
    "epsilon",
    "epsilon-plus",
    "epsilon-plus-flat",
    "epsilon-alpha2-beta1",
    "epsilon-alpha2-beta1-flat",
    "epsilon-gamma-box",
    "gradient-times-input",
)
BOUNDS = (-3.0, 3.0)
CLOSED = {torch.float32: 1e-4, torch.float64: 1e-9}  # share of max(|f|, Σ|R|/1000)
EQUAL = {torch.float32: 1e-5, torch.float64: 1e-10}  # share of the largest entry
ALONE = {
    torch.float32: 1e-3,
    torch.float64: 1e-8,
}  # torch picks other kernels for other batch sizes; small denominators enlarge that
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
NO_GRADIENT = {"L3 pool"}  # torch's own gradient is NaN where all values of a window are 0
CLASSES = 3
CHANNELS = 6
IMAGE = (3, 12, 12)


class Net(nn.Module):
    """Modules and a function that joins them."""

    def __init__(self, join: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.join = join
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


def conv(before: int = CHANNELS, after: int = CHANNELS, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, **options)


def conv_norm(
    before: int, after: int, kernel: int = 3, act: type[nn.Module] = nn.ReLU, **options: Any
) -> nn.Sequential:
    return nn.Sequential(conv(before, after, kernel, bias=False, **options), nn.BatchNorm2d(after), act())


def head(channels: int = CHANNELS) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def around(op: Callable[[Tensor], Tensor], act: Callable[[Tensor], Tensor] = F.relu) -> Net:
    """An operation on feature maps between a convolution and a classifier that sees every position."""
    features = op(torch.zeros(1, CHANNELS, *IMAGE[1:])).numel()
    modules = {"op": op} if isinstance(op, nn.Module) else {}
    return Net(
        lambda s, x: s.last(op(act(s.stem(x))).flatten(1)), stem=conv(3), last=nn.Linear(features, CLASSES), **modules
    )


def squeeze_excite(channels: int, act: type[nn.Module], gate: type[nn.Module]) -> Net:
    return Net(
        lambda s, x: x * s.gate(s.up(s.act(s.down(x.mean((2, 3), keepdim=True))))),
        down=conv(channels, 4, 1), act=act(), up=conv(4, channels, 1), gate=gate(),
    )  # fmt: skip


def residual() -> Net:
    block = Net(
        lambda s, x: F.relu(s.b(s.a(x)) + x),
        a=conv_norm(CHANNELS, CHANNELS),
        b=conv_norm(CHANNELS, CHANNELS, act=nn.Identity),
    )
    down = Net(
        lambda s, x: F.relu(s.a(x) + s.skip(x)),
        a=conv_norm(CHANNELS, 8, stride=2, act=nn.Identity), skip=conv_norm(CHANNELS, 8, 1, stride=2, act=nn.Identity),
    )  # fmt: skip
    return nn.Sequential(conv_norm(3, CHANNELS), nn.MaxPool2d(2), block, down, head(8))


def pre_activation() -> nn.Module:
    def block() -> Net:
        return Net(
            lambda s, x: x + s.b(F.relu(s.m(s.a(F.relu(s.n(x)))))),
            n=nn.BatchNorm2d(CHANNELS), a=conv(bias=False), m=nn.BatchNorm2d(CHANNELS), b=conv(),
        )  # fmt: skip

    return nn.Sequential(conv(3), block(), block(), nn.BatchNorm2d(CHANNELS), nn.ReLU(), head())


def dense_block() -> nn.Module:
    def layer(channels: int) -> Net:
        return Net(
            lambda s, x: torch.cat([x, s.a(F.relu(s.n(x)))], 1),
            n=nn.BatchNorm2d(channels),
            a=conv(channels, 4, bias=False),
        )

    transition = nn.Sequential(nn.BatchNorm2d(14), nn.ReLU(), conv(14, 7, 1), nn.AvgPool2d(2))
    return nn.Sequential(conv(3), layer(6), layer(10), transition, layer(7), nn.BatchNorm2d(11), nn.ReLU(), head(11))


def inception() -> nn.Module:
    block = Net(
        lambda s, x: torch.cat([s.a(x), s.b(x), s.c(F.avg_pool2d(x, 3, 1, 1, count_include_pad=True)), F.max_pool2d(x, 3, 1, 1)], 1),
        a=conv_norm(CHANNELS, 4, 1), b=nn.Sequential(conv_norm(CHANNELS, 4, 1), conv_norm(4, 4, 5)), c=conv_norm(CHANNELS, 4, 1),
    )  # fmt: skip
    return nn.Sequential(
        conv_norm(3, CHANNELS, stride=2), block, nn.AvgPool2d(3, 2, 1, count_include_pad=False), head(18)
    )


def inverted_residual(act: type[nn.Module], gate: nn.Module) -> nn.Module:
    block = Net(
        lambda s, x: x + s.c(s.gate(s.b(s.a(x)))),
        a=conv_norm(CHANNELS, 12, 1, act), b=conv_norm(12, 12, 3, act, groups=12), gate=gate, c=conv_norm(12, CHANNELS, 1, nn.Identity),
    )  # fmt: skip
    return nn.Sequential(conv_norm(3, CHANNELS, act=act, stride=2), block, head())


def shuffle() -> nn.Module:
    def join(s: Any, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, s.branch(right)], 1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)

    def block() -> Net:
        return Net(
            join,
            branch=nn.Sequential(conv_norm(3, 3, 1), conv_norm(3, 3, 3, nn.Identity, groups=3), conv_norm(3, 3, 1)),
        )

    return nn.Sequential(conv_norm(3, CHANNELS), block(), block(), head())


def fire() -> nn.Module:
    block = Net(
        lambda s, x: torch.cat([F.relu(s.narrow(y := F.relu(s.squeeze(x)))), F.relu(s.wide(y))], 1),
        squeeze=conv(CHANNELS, 4, 1), narrow=conv(4, 5, 1), wide=conv(4, 5, 3),
    )  # fmt: skip
    return nn.Sequential(
        conv(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        block,
        conv(10, CLASSES, 1),
        nn.ReLU(),
        Net(lambda s, x: x.mean((2, 3))),
    )


def convnext() -> nn.Module:
    block = Net(
        lambda s, x: x + s.scale(s.b(F.gelu(s.a(s.norm(s.deep(x).permute(0, 2, 3, 1)))))).permute(0, 3, 1, 2),
        deep=conv(kernel=7, groups=CHANNELS), norm=nn.LayerNorm(CHANNELS), a=nn.Linear(CHANNELS, 12), b=nn.Linear(12, CHANNELS), scale=Scale(),
    )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 2, 2),
        block,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(CHANNELS),
        nn.Linear(CHANNELS, CLASSES),
    )


class Scale(nn.Module):
    """A learnt factor per channel, last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((CHANNELS,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


def u_net() -> nn.Module:
    def join(s: Any, x: Tensor) -> Tensor:
        fine = s.fine(x)
        coarse = s.coarse(F.max_pool2d(fine, 2))
        up = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return s.head(s.mix(torch.cat([fine, up, s.transposed(coarse)], 1)))

    return Net(
        join,
        fine=conv_norm(3, CHANNELS), coarse=conv_norm(CHANNELS, CHANNELS), mix=conv(16), head=head(),
        transposed=nn.ConvTranspose2d(CHANNELS, 4, 3, stride=2, padding=1, output_padding=1),
    )  # fmt: skip


def locally_normalized() -> nn.Module:
    norm = nn.LocalResponseNorm(3, alpha=0.5, beta=0.75, k=2.0)
    return nn.Sequential(conv(3), nn.ReLU(), norm, nn.MaxPool2d(3, 2), conv(groups=2), nn.ReLU(), nn.Dropout(), head())


def group_normalized() -> nn.Module:
    instance = nn.InstanceNorm2d(CHANNELS, affine=True)
    return nn.Sequential(
        conv(3),
        nn.GroupNorm(3, CHANNELS),
        nn.ReLU(),
        conv(),
        instance,
        nn.ReLU(),
        conv(),
        nn.GroupNorm(1, CHANNELS),
        head(),
    )


def one_axis() -> nn.Module:
    layers = [
        nn.Conv1d(2, 6, 5, padding="same"),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 6, 3, dilation=2),
        nn.ReLU(),
    ]
    return nn.Sequential(
        *layers,
        nn.ConvTranspose1d(6, 4, 3),
        nn.AvgPool1d(2),
        nn.Flatten(),
        nn.Linear(20, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, CLASSES),
    )


def three_axes() -> nn.Module:
    layers = [
        nn.Conv3d(2, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 4, 2, groups=2),
        nn.ReLU(),
        nn.AvgPool3d(2),
    ]
    return nn.Sequential(
        *layers, nn.ConvTranspose3d(4, 3, 2), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(24, CLASSES)
    )


def norm_before_padding() -> nn.Module:
    """Batch norm that can't be folded into the padded convolution after it, nor into the shared one before it."""
    return Net(
        lambda s, x: s.head(s.b(s.norm(y := F.relu(s.a(x)))) + y + s.other(s.c(y)) + s.c(y)),
        a=conv(3), norm=nn.BatchNorm2d(CHANNELS), b=conv(), c=conv(), other=nn.BatchNorm2d(CHANNELS), head=head(),
    )  # fmt: skip


def reused() -> nn.Module:
    return Net(lambda s, x: s.head(F.relu(s.a(F.relu(s.a(F.relu(s.stem(x))))))), stem=conv(3), a=conv(), head=head())


GATES = {
    "mobilenet v3": (nn.Hardswish, nn.ReLU, nn.Hardsigmoid),
    "efficientnet": (nn.SiLU, nn.SiLU, nn.Sigmoid),
    "regnet": (nn.ReLU, nn.ReLU, nn.Sigmoid),
}
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (residual, IMAGE),
    "pre-activation": (pre_activation, IMAGE),
    "densenet": (dense_block, IMAGE),
    "inception": (inception, IMAGE),
    "mobilenet v2": (lambda: inverted_residual(nn.ReLU6, nn.Identity()), IMAGE),
    **{
        name: (lambda act=act, inner=inner, gate=gate: inverted_residual(act, squeeze_excite(12, inner, gate)), IMAGE)
        for name, (act, inner, gate) in GATES.items()
    },
    "shufflenet": (shuffle, IMAGE),
    "squeezenet": (fire, IMAGE),
    "convnext": (convnext, IMAGE),
    "u-net": (u_net, IMAGE),
    "alexnet": (locally_normalized, IMAGE),
    "group and instance norm": (group_normalized, IMAGE),
    "one axis": (one_axis, (2, 24)),
    "three axes": (three_axes, (2, 8, 8, 8)),
    "batch norm that stays": (norm_before_padding, IMAGE),
    "reused convolution": (reused, IMAGE),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "pixel shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(torch.cat([x, x[:, :2]], 1), 2), 2),
    "split": lambda x: torch.cat(x.split([1, 2, 3], 1)[::-1], 1),
    "chunk and stack": lambda x: torch.stack(x.chunk(3, 1), 2).sum(2),
    "roll and flip": lambda x: x.roll((1, 2), (2, 3)).flip(3),
    "slice": lambda x: x[:, 1:5:2, ::2, 3:-1],
    "index": lambda x: x[:, [0, 2, 2]],
    "gather": lambda x: x.gather(1, torch.tensor([0, 5, 5, 1]).view(1, 4, 1, 1).expand(x.shape[0], 4, *x.shape[2:])),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 4),
    "repeat": lambda x: x.repeat(1, 2, 1, 1) + x.repeat_interleave(2, 1),
    "unbind and unsqueeze": lambda x: torch.cat([part.unsqueeze(1) for part in x.unbind(1)[1:4]], 1),
    "unflatten": lambda x: x.unflatten(1, (2, 3)).movedim(2, 1).flatten(1, 2),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad with 0.5": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "pad, reflect": lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect"),
    "pad, replicate": lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"),
    "pad, circular": lambda x: F.pad(x, (1, 2, 3, 1), mode="circular"),
    "crop": lambda x: F.pad(x, (-1, -2, -1, 0)),
    "upsample, nearest": lambda x: F.interpolate(x, scale_factor=2),
    "upsample, bicubic": lambda x: F.interpolate(x, size=(17, 15), mode="bicubic", align_corners=True),
    "L2 pool": lambda x: F.lp_pool2d(x, 2, 3, stride=2),
    "L3 pool": lambda x: F.lp_pool2d(x, 3.0, 2),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 3),
    "uneven adaptive mean": lambda x: F.adaptive_avg_pool2d(x, (5, 7)),
    "maximum over space": lambda x: x.amax((2, 3)),
    "sum and difference": lambda x: x.sum(1) - 0.3 * x[:, 0] + x[:, 1] / 2 - 1,
    "product of halves": lambda x: x[:, :3] * x[:, 3:],
    "masked": lambda x: torch.where(x > 0.3, x, torch.zeros_like(x)),
    "masked fill": lambda x: x.masked_fill(x > 1, 0.5),
}
ACTIVATIONS = (
    nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardtanh, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Softshrink,
    nn.Hardshrink, nn.RReLU, nn.LeakyReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish,
)  # fmt: skip
MODULES: dict[str, Callable[[], nn.Module]] = {
    **{activation.__name__: activation for activation in ACTIVATIONS},
    "PReLU": lambda: nn.PReLU(CHANNELS),
    "Threshold": lambda: nn.Threshold(0.1, 0.2),
    "GLU": lambda: nn.GLU(dim=1),
    "tanh-GELU": lambda: nn.GELU(approximate="tanh"),
    "Softmax2d": nn.Softmax2d,
}
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **ARCHITECTURES,
    **{name: (lambda op=op: around(op), IMAGE) for name, op in LAYOUTS.items()},
    **{name: (lambda make=make: around(make(), nn.Identity()), IMAGE) for name, make in MODULES.items()},
}


@functools.cache
def build(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """The miniature with drawn weights, biases and batch-norm statistics, and three inputs inside `BOUNDS`."""
    make, shape = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    model, x = make().eval(), torch.randn(3, *shape, generator=generator).clamp(*BOUNDS)
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif key.endswith(("bias", "running_mean")):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif tensor.ndim > 1:
                tensor.copy_((2 / tensor[0].numel()) ** 0.5 * torch.randn(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and tensor.mean() > 0.9:
                tensor.copy_(0.8 + 0.4 * torch.rand(tensor.shape, generator=generator))
    return model.to(dtype), x.to(dtype)


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_every_composite_accounts_for_all_relevance(name: str, dtype: torch.dtype) -> None:
    model, x = build(name, dtype)
    with torch.no_grad():
        expected = model(x)
    for composite in COMPOSITES[: -1 if name in NO_GRADIENT else None]:
        explainer = dt.Explainer(model, x, composite=composite, bounds=BOUNDS)
        result = explainer(x, ledger=True)
        handed = result.relevance.double().flatten(1)
        missing = (handed.sum(1) + result.ledger.absorbed - result.explained).abs()
        scale = torch.maximum(result.explained.abs().double(), handed.abs().sum(1) / 1000)
        assert (missing <= CLOSED[dtype] * scale).all(), f"{composite}: {missing} of {scale}\n{result.ledger.worst(3)}"
        assert ((handed.sum(1) - result.ledger.inputs).abs() <= CLOSED[dtype] * scale).all()
        torch.testing.assert_close(result.output, expected, rtol=EQUAL[dtype], atol=EQUAL[dtype])
        alone = explainer(x[1:2], target=result.target[1:2]).relevance[0]
        difference = (alone - result.relevance[1]).abs().max() / result.relevance[1].abs().max()
        assert difference <= ALONE[dtype], f"{composite}: alone differs by {difference}"


@DTYPES
@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_GRADIENT])
def test_gradient_times_input_is_autograds(name: str, dtype: torch.dtype) -> None:
    model, x = build(name, dtype)
    ours = dt.explain(model, x, target=[0, 1, 2], composite="gradient-times-input").relevance
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).diagonal().sum(), leaf)
    expected = x * gradient
    assert (ours - expected).abs().max() <= EQUAL[dtype] * expected.abs().max()
