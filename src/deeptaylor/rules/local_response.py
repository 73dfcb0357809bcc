"""The Taylor rule of local response normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import CompositeError
from ..forms import arguments_of
from ..local_response import LOCAL_RESPONSE, neighbours, statistic
from ..ops import Role
from ..step import Step
from .base import Redistribution, Relevance, Rule


@dataclass(frozen=True)
class LocalResponseTaylor(Rule):
    """First order around (0, …, x_k, …, 0), shared in proportion. Binder et al. 2016.

    With y_k = x_k / (b + a Σ x_i²)^c: z_kk = x_k / (b + a x_k²)^c, z_ik = −2ac x_k x_i² / (b + a Σ x²)^(c+1),
    R_i = Σ_k z_ik / Σ_i z_ik · R_k. The presets hold the statistic constant instead, which passes relevance unchanged,
    as the deep Taylor paper does.
    """

    roles: ClassVar[tuple[Role, ...]] = ("normalization",)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        node, x = step.node, step.x
        if node.op is not LOCAL_RESPONSE:
            raise CompositeError(
                f"{node.kind} at {node.file}:{node.line} is no local response normalization; give it StatisticConstant"
            )
        arguments = arguments_of(node.op, node.args, node.kwargs)
        size, alpha, beta, k = (arguments[name] for name in ("size", "alpha", "beta", "k"))
        a = alpha / size
        own = (k + a * x.square()) ** -beta
        other = -2 * a * beta * x * statistic(x, size, alpha, k) ** -(beta + 1)
        z = x * own + other * (neighbours(x.square(), size) - x.square())
        s = relevance.over(z, step.z, 0.0)
        read = neighbours(other * s, size, readers=True) - other * s
        return Redistribution(
            (Relevance(own * s + x * read, product=True),), {"rule": lambda: relevance.total(step.z) - s * z}
        )
