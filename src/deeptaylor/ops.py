"""What each ATen operation is: one `declare` line per operation, by role.

An operation that carries relevance and stands in no line here is refused before any number is computed.
Arguments that carry relevance are found in the graph; a line says only what the operation does with them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .errors import DeepTaylorError
from .forms import FORMS, LINEARIZED, Arguments, Form, arguments_of
from .graph import Node

aten = torch.ops.aten

Role = Literal[
    "constant", "rearrange", "sum", "affine", "activation", "product", "normalization", "softmax", "recurrence"
]
Coefficients = Literal["positive", "single", "mixed"]
Sign = bool | Literal["keep"] | Callable[[Arguments], bool | Literal["keep"]]


@dataclass(frozen=True)
class Op:
    """What an operation is."""

    role: Role
    single: Op | Mapping[int, Op] | None = None
    """What it is where only one argument carries relevance, if that differs; by the argument's position."""
    coefficients: Coefficients = "mixed"
    """sum: all coefficients ≥ 0 ("positive"), or each output made of one input ("single"), or anything."""
    offset: bool = False
    """sum, rearrange, product: constants may be added, whose share is absorbed."""
    at_zero: bool = False
    """activation: phi(0) may differ from 0."""
    nonnegative: Sign = False
    """Whether the output is ≥ 0: always, where every input is ("keep"), or as a function of the arguments."""
    rectifies: bool = False
    """activation: 0 wherever its input is ≤ 0."""
    gate: bool | Callable[[Arguments], bool] = False
    """A bounded factor, such as a sigmoid: in a product with a signal, the signal takes all relevance."""
    statistic: bool = False
    """A gate that only scales, such as 1/sqrt: held constant by every rule for products."""
    form: Form | None = None
    """affine: how to read the operation's arguments as an `Affine`."""
    linearized: Callable[..., Any] | None = None
    """normalization: the same function with its statistics held constant."""
    gates: tuple[int, ...] = ()
    """product: positions of arguments that are gates wherever they come from."""
    added: tuple[int, ...] = ()
    """product: positions of arguments that are added to it, as a bias is."""
    divides: bool = False
    """product: the gates are divisors, so statistics."""
    attends: bool = False
    """product: fused attention; a softmax lies between query and key, and the output."""
    degree: int = 1
    """product: the degree of its one argument (2 for a variance)."""
    ignores: tuple[int, ...] = ()
    """Positions of arguments of which only the shape or the type is read."""
    instead: Callable[[Arguments], Op | None] | None = None
    """What it is for some arguments, or None."""
    kept: bool = False
    """sum, rearrange: its output is kept for the way back, because it takes long to make again."""
    first: bool = False
    """Of several outputs only the first carries relevance."""
    refuse: Callable[[Arguments], str] | None = None
    """Why this very call can't be explained, or an empty string."""
    written: Callable[[Arguments], Tensor] | None = None
    """How often a call writes each place: where it is more than once, torch leaves open which value stays."""


OPS: dict[Any, Op] = {}
OPENED = (
    aten.var_mean.correction, aten.var_mean.dim, aten.std_mean.correction, aten.std_mean.dim,
    aten.copy.default, aten.fill.Tensor,
)  # fmt: skip
"""Operations that `canonize` takes apart."""


def declare(role: Role, *ops: Any, **properties: Any) -> None:
    """Says what operations are; declaring one twice is refused.

    Args:
        role: one of the nine roles.
        ops: operations such as `torch.ops.aten.relu.default`.
        properties: fields of `Op`.
    """
    if role not in get_args(Role):
        raise DeepTaylorError(f"{role!r} is not a role; the roles are {', '.join(get_args(Role))}")
    for op in ops:
        if op in OPS:
            raise DeepTaylorError(f"{op} is already declared as {OPS[op].role!r}")
        OPS[op] = Op(role, **properties)


def known(op: Any) -> bool:
    """Whether an operation has a role."""
    return op in OPS or op in OPENED or not isinstance(op, torch._ops.OpOverload)


def role_of(node: Node, carrying: tuple[int, ...]) -> Op | None:
    """What a node is, given the positions of the arguments that carry relevance."""
    op = OPS.get(node.op)
    if op is not None and op.instead is not None:
        op = op.instead(arguments_of(node.op, node.args, node.kwargs)) or op
    if op is None or len(carrying) != 1 or op.single is None:
        return op
    return op.single if isinstance(op.single, Op) else op.single.get(carrying[0], op)


def _at_least_zero(name: str) -> Callable[[Arguments], bool]:
    return lambda arguments: (
        arguments.get(name) is not None and not isinstance(arguments[name], str) and arguments[name] >= 0
    )


def _padded(arguments: Arguments) -> bool | Literal["keep"]:
    return "keep" if (arguments.get("value") or 0) >= 0 else False


def _active_dropout(arguments: Arguments) -> str:
    on = arguments.get("train", arguments.get("training"))
    return "dropout is active: its training argument is True; pass self.training" if on else ""


def _active_attention_dropout(arguments: Arguments) -> str:
    return "dropout is active: pass dropout_p=self.p if self.training else 0.0" if arguments["dropout_p"] > 0 else ""


def _training_norm(arguments: Arguments) -> str:
    return "batch statistics mix the samples of a batch; call model.eval()" if arguments.get("training") else ""


def _scattered(arguments: Arguments) -> Tensor:
    index = arguments["index"]
    return torch.zeros_like(arguments["self"]).scatter_add(
        arguments["dim"], index, torch.ones_like(index, dtype=arguments["self"].dtype)
    )


def _put(arguments: Arguments) -> Tensor:
    zeros = torch.zeros_like(arguments["self"])
    return aten.index_put.default(zeros, arguments["indices"], zeros.new_ones(()), True)  # its method takes no None


def _unpooled(arguments: Arguments) -> Tensor:
    index = arguments["indices"].flatten(-len(arguments["output_size"]))
    places = index.new_zeros((*index.shape[:-1], prod(arguments["output_size"])))
    return places.scatter_add(-1, index, torch.ones_like(index))


SCALE = Op("sum", coefficients="single")
SHIFT = Op("sum", coefficients="single", offset=True)
HINGE = Op("activation", at_zero=True)
GATHERED = Op("sum", coefficients="positive", offset=True)

# --- constant: no relevance flows ------------------------------------------
declare(
    "constant",
    aten.sign.default, aten.sgn.default, aten.floor.default, aten.ceil.default, aten.round.default, aten.trunc.default,
    aten.heaviside.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    aten.empty_like.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
    aten.new_empty.default, aten.zeros.default, aten.ones.default, aten.full.default, aten.arange.default,
    aten.arange.start, aten.arange.start_step, aten.linspace.default, aten.eye.default, aten.scalar_tensor.default,
    aten.lift_fresh_copy.default, aten.tensor.default, aten.fill.Scalar,
)  # fmt: skip

# --- rearrange: moves with the values --------------------------------------
declare("rearrange", operator.getitem, nonnegative="keep")
declare("rearrange", aten.view_as_real.default, aten.view_as_complex.default, aten.real.default, aten.imag.default)
declare(
    "rearrange",
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.permute.default, aten.transpose.int, aten.t.default, aten.movedim.int,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.expand.default,
    aten.repeat.default, aten.repeat_interleave.self_int, aten.tile.default,
    aten.embedding.default,
    aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.index.Tensor, aten.index_select.default,
    aten.gather.default, aten.roll.default, aten.flip.default, aten.rot90.default, aten.split.Tensor,
    aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, aten.clone.default, aten.alias.default,
    aten.detach.default, aten.contiguous.default, aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout,
    aten.to.device, aten.lift_fresh.default, aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default, aten.channel_shuffle.default, aten.native_channel_shuffle.default,
    aten.diagonal.default, aten.unfold.default, aten.im2col.default,
    aten.as_strided.default, aten.reflection_pad1d.default, aten.reflection_pad2d.default,
    aten.reflection_pad3d.default, aten.replication_pad1d.default, aten.replication_pad2d.default,
    aten.replication_pad3d.default, aten.upsample_nearest1d.default, aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.default,
    aten.upsample_nearest3d.vec, aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec,
    nonnegative="keep",
)  # fmt: skip
declare(
    "rearrange",
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    nonnegative="keep", refuse=_active_dropout,
)  # fmt: skip
declare(
    "rearrange",
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.max.default, aten.amax.default,
    aten.min.default, aten.amin.default, aten.median.default,
    nonnegative="keep", kept=True,
)  # fmt: skip
declare(
    "rearrange",
    aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default, aten.max_pool1d_with_indices.default,
    aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default,
    aten.max.dim, aten.min.dim, aten.topk.default, aten.sort.default, aten.sort.stable, aten.median.dim,
    aten.nanmedian.dim, aten.kthvalue.default, aten.mode.default, aten.cummax.default, aten.cummin.default,
    nonnegative="keep", kept=True, first=True,
)  # fmt: skip
declare("rearrange", aten.expand_as.default, aten.type_as.default, nonnegative="keep", ignores=(1,))
declare(
    "rearrange",
    aten.index_put.default,
    offset=True, written=_put, instead=lambda arguments: GATHERED if arguments["accumulate"] else None,
)  # fmt: skip
declare(
    "rearrange",
    aten.cat.default, aten.stack.default, aten.tril.default, aten.triu.default,
    offset=True, nonnegative="keep",
)  # fmt: skip
declare("rearrange", aten.pad.default, aten.constant_pad_nd.default, offset=True, nonnegative=_padded)
declare(
    "rearrange",
    aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.masked_fill.Scalar,
    aten.masked_fill.Tensor, aten.select_scatter.default, aten.slice_scatter.default, aten.scatter.value,
    aten.diagonal_scatter.default,
    offset=True,
)  # fmt: skip
declare("rearrange", aten.scatter.src, offset=True, written=_scattered)
declare(
    "rearrange",
    aten.max_unpool2d.default,
    aten.max_unpool3d.default,
    offset=True,
    nonnegative="keep",
    written=_unpooled,
)
declare(
    "rearrange",
    aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other, aten.fmax.default, aten.fmin.default,
    single=HINGE, kept=True,
)  # fmt: skip

# --- sum: shared in proportion ---------------------------------------------
declare("sum", aten.add.Tensor, coefficients="positive", nonnegative="keep", single=SHIFT)
declare("sum", aten.sub.Tensor, single=SHIFT)
declare("sum", aten.scatter_add.default, aten.index_add.default, coefficients="positive", offset=True)
declare("sum", aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar, coefficients="single", offset=True)
declare("sum", aten.rsub.Tensor, single=SHIFT)
declare("sum", aten.neg.default, aten.mul.Scalar, aten.div.Scalar, coefficients="single")
declare(
    "sum",
    aten.mean.default, aten.mean.dim, aten.sum.default, aten.sum.dim_IntList, aten.avg_pool1d.default,
    aten.avg_pool2d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
    aten._adaptive_avg_pool3d.default, aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec,
    aten.upsample_bilinear2d.default, aten.upsample_trilinear3d.vec, aten.upsample_linear1d.default,
    aten.upsample_trilinear3d.default, aten._upsample_bilinear2d_aa.vec, aten.cumsum.default, aten.col2im.default,
    coefficients="positive", nonnegative="keep",
)  # fmt: skip
declare(
    "sum",
    aten.upsample_bicubic2d.vec, aten.upsample_bicubic2d.default, aten._upsample_bicubic2d_aa.vec,
)  # fmt: skip
declare(
    "sum",
    aten.fft_fft.default, aten.fft_ifft.default, aten.fft_fft2.default, aten.fft_ifft2.default, aten.fft_fftn.default,
    aten.fft_ifftn.default, aten.fft_rfft.default, aten.fft_irfft.default, aten.fft_rfft2.default,
    aten.fft_irfft2.default, aten.fft_rfftn.default, aten.fft_irfftn.default, aten.fft_hfft.default,
    aten.fft_ihfft.default, aten.fft_fftshift.default, aten.fft_ifftshift.default, aten._fft_r2c.default,
    aten._fft_c2r.default, aten._fft_c2c.default, aten._conj.default, aten.conj_physical.default,
    aten._conj_physical.default, aten.resolve_conj.default,
    kept=True,
)  # fmt: skip
declare("sum", aten._native_batch_norm_legit_no_training.default, coefficients="single", offset=True, first=True)
declare("sum", aten.batch_norm.default, coefficients="single", offset=True, refuse=_training_norm)

# --- affine: the search-direction rules ------------------------------------
for _form in FORMS.values():
    declare("affine", *_form.ops, form=_form)

# --- activation: phi(x) ----------------------------------------------------
declare("activation", aten.relu.default, aten.relu6.default, nonnegative=True, rectifies=True)
declare(
    "activation",
    aten.leaky_relu.default, aten.elu.default, aten.selu.default, aten.celu.default, aten.gelu.default,
    aten.silu.default, aten.mish.default, aten.hardswish.default, aten.prelu.default, aten._prelu_kernel.default,
    aten.softshrink.default, aten.hardshrink.default, aten.sin.default, aten.sinh.default, aten.asinh.default,
    aten.atan.default, aten.erf.default, aten.tanh.default, aten.expm1.default, aten.log1p.default,
    aten.tan.default, aten.frac.default, aten.asin.default, aten.atanh.default,
)  # fmt: skip
declare(
    "activation", aten.rrelu.default, refuse=lambda arguments: _active_dropout(arguments).replace("dropout", "rrelu")
)
declare("activation", aten.abs.default, aten.square.default, nonnegative=True)
declare("activation", aten.sqrt.default, nonnegative=True)
declare("activation", aten.sigmoid.default, aten.hardsigmoid.default, at_zero=True, nonnegative=True, gate=True)
declare("activation", aten.exp.default, aten.softplus.default, at_zero=True, nonnegative=True, gate=True)
declare("activation", aten.rsqrt.default, aten.reciprocal.default, at_zero=True, gate=True, statistic=True)
declare("activation", aten.exp2.default, aten.pow.Scalar, at_zero=True, nonnegative=True, gate=True)
declare(
    "activation",
    aten.log.default, aten.log2.default, aten.log10.default, aten.log_sigmoid.default, aten.cos.default,
    aten.cosh.default, aten.acos.default, aten.acosh.default, aten.erfc.default, aten.sinc.default,
    at_zero=True,
)  # fmt: skip
declare("activation", aten.hardtanh.default, at_zero=True, nonnegative=_at_least_zero("min_val"))
declare("activation", aten.clamp.default, aten.clamp_min.default, at_zero=True, nonnegative=_at_least_zero("min"))
declare("activation", aten.clamp_max.default, aten.threshold.default, at_zero=True)
declare(
    "activation", aten.pow.Tensor_Scalar,
    at_zero=True, gate=lambda arguments: arguments["exponent"] < 0, statistic=True,
)  # fmt: skip

# --- product: two data tensors ---------------------------------------------
declare("product", aten.mul.Tensor, nonnegative="keep", single=SCALE)
declare(
    "product",
    aten.pow.Tensor_Tensor,
    single=HINGE, refuse=lambda arguments: "base and exponent both depend on the inputs",
)  # fmt: skip
declare("product", aten.div.Tensor, single={0: SCALE, 1: HINGE}, gates=(1,), divides=True)
declare(
    "product",
    aten.scaled_dot_product_attention.default,
    gates=(0, 1, 3),
    attends=True,
    refuse=_active_attention_dropout,
)

declare("product", aten.bilinear.default, offset=True, single=Op("sum", offset=True))
declare("product", aten.var.correction, aten.var.dim, aten.var.default, degree=2, nonnegative=True)
declare("product", aten.std.correction, aten.std.dim, aten.std.default, nonnegative=True)
declare("product", aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.norm.Scalar, nonnegative=True)

# --- normalization ---------------------------------------------------------
for _op, _linearized in LINEARIZED.items():
    declare("normalization", _op, linearized=_linearized)

# --- softmax ---------------------------------------------------------------
declare("softmax", aten.softmax.int, aten._softmax.default, aten._safe_softmax.default, nonnegative=True, gate=True)
declare("softmax", aten.log_softmax.int, aten._log_softmax.default, aten.logsumexp.default)
