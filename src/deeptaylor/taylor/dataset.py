"""Taylor coefficients over a data set: what a network looks at on average, feature by feature and pair by pair.

At every row x of a table the derivatives of f at x give t_i = ∂_i f, t_ij = ∂_i ∂_j f, t_ii = ½ ∂_i² f (and t_ijk,
with 1/κ! for repeated indices); the table's mean of |t| ranks features and pairs (Wunsch, Friese, Wolf, Quast 2018).
Features in different units become comparable by standardisation: t_i σ_i, t_ij σ_i σ_j.

One tangent per feature serves the whole table, since rows do not mix: ∂_i of the summed gradient is every row's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations_with_replacement
from math import factorial, prod
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, TargetError
from ..inputs import Model
from ..origin import plain_torch
from ..targets import contrast, log_odds
from .pure import Function, check_batch, pure
from .ranking import DatasetCoefficients, Reduced, reduced, reducers
from .result import Cost
from .safe import safe_mode

BUDGET = 5_000
"""Batched gradients above which the work is refused, unless `budget` says otherwise."""
MEMORY = 8_000_000
"""Numbers held at once in the coefficients of a chunk of tangents."""
Indices = tuple[int, ...]


def dataset_coefficients(
    f: Model,
    data: Any,
    *,
    order: int = 2,
    target: Any = None,
    scale: str | None = "std",
    reduce: Sequence[str] = ("mean", "mean_abs", "q90"),
    indices: Iterable[Indices] | None = None,
    names: Sequence[str] | None = None,
    by: Any = None,
    confidence: float = 0.95,
    head: Callable[[Any], Tensor] | None = None,
    batch: int = 4096,
    budget: int = BUDGET,
) -> DatasetCoefficients:
    """Coefficients of every feature, pair (and triple), reduced over the rows, with confidence intervals.

    Args:
        f: the model, in evaluation mode: (N, features) to (N, classes), (N, 1) or (N,). Log-odds or logits rather than
            probabilities, which flatten where the network is sure.
        data: a pandas DataFrame, an array or tensor (rows, features), or an iterable of batches (the first of a tuple).
        order: 1, 2 or 3.
        target: None (each row's predicted class; where f has one output, that), a class index, `contrast(a, b)`,
            `log_odds(c)`, or a function of the output (N, …) to (N,).
        scale: "std": times the standard deviations of the features; None: in the data's units.
        reduce: of "mean", "mean_abs", "std", and quantiles of |t| such as "q90".
        indices: the coefficients wanted, for example [(0,), (0, 1)]; by default all up to `order`.
        names: of the features; a DataFrame has its own.
        by: one label per row: a table for each label too.
        confidence: of the intervals: normal for means, by order statistics for quantiles (distribution-free).
        head: picks (N, classes) from the model's output.
        batch: rows at once.
        budget: batched gradients at most.

    Returns:
        `DatasetCoefficients`: `.top()`, `.to_frame()`, `.to_dict()`, `.plot_ranking()`.

    Raises:
        InputError: what is no finite table, unknown names, an index out of range, a cost above the budget.
    """
    run = pure(f, head=head)
    table, columns = _table(data, f)
    count = table.shape[1]
    if names is not None:
        columns = tuple(str(name) for name in names)
    if len(columns) != count:
        raise InputError(f"{len(columns)} names for {count} features")
    _afford(0 if indices is not None else 1 + (order > 1) * count + (order > 2) * 3 * count * (count + 1) // 2, budget)
    wanted = _wanted(indices, order, count)
    if scale not in ("std", None):
        raise InputError(f"scale {scale!r} is not known: pass 'std' or None")
    sigma = table.double().std(0, unbiased=False).cpu() if scale == "std" else torch.ones(count, dtype=torch.float64)
    groups = _groups(by, len(table))
    how = reducers(reduce, confidence)
    stems = sorted({index[:-1] for index in wanted}, key=lambda stem: (len(stem), stem))
    cost = _passes(stems)
    _afford(cost, budget)
    ends: dict[Indices, list[int]] = {stem: [] for stem in stems}
    for index in wanted:
        ends[index[:-1]].append(index[-1])
    rows: dict[Indices, dict[str, Reduced]] = {}
    with plain_torch(), torch.random.fork_rng(devices=[]), safe_mode():
        score, label = _score(run, table, target)
        for chunk in _chunks(stems, max(1, MEMORY // table.numel())):
            parts = [_derivatives(score, part, start, chunk) for start, part in _parts(table, batch)]
            values = torch.cat(parts, 1).double().cpu()
            for stem, own in zip(chunk, values, strict=True):
                factors = torch.tensor([_factor((*stem, end), sigma) for end in ends[stem]], dtype=torch.float64)
                coefficients = own[:, ends[stem]] * factors
                found = {name: reduced(coefficients[mask], how) for name, mask in groups.items()}
                for place, end in enumerate(ends[stem]):
                    rows[(*stem, end)] = {
                        name: {kind: triple[place] for kind, triple in kinds.items()} for name, kinds in found.items()
                    }
    warnings = _warnings(rows, sigma, columns)
    ordered = {index: rows[index] for index in wanted}
    return DatasetCoefficients(
        columns, ordered, len(table), {name: int(mask.sum()) for name, mask in groups.items()}, confidence,
        scale, label, Cost(gradients=sum(not stem for stem in stems), tangents=cost - sum(not stem for stem in stems)),
        warnings,
    )  # fmt: skip


def _derivatives(score: Callable[[Tensor, int], Tensor], part: Tensor, start: int, stems: list[Indices]) -> Tensor:
    """Gradients of ∂_stem f, for stems of one length: (stems, rows, features)."""

    def gradient(rows: Tensor) -> Tensor:
        return torch.func.grad(lambda r: score(r, start).sum())(rows)

    if not stems[0]:
        found = gradient(part)[None]
    else:
        units = torch.eye(part.shape[1], dtype=part.dtype, device=part.device)

        def along(*directions: Tensor) -> Tensor:
            derivative: Function = gradient
            for direction in directions:
                derivative = _pushed(derivative, direction.expand_as(part))
            return derivative(part)

        chosen = [units[[stem[k] for stem in stems]] for k in range(len(stems[0]))]
        found = torch.vmap(along)(*chosen)
    if not bool(torch.isfinite(found).all()):
        row = int(torch.nonzero(~torch.isfinite(found))[0][1]) + start
        raise InputError(f"a derivative of order {len(stems[0]) + 1} is NaN or Inf at row {row}")
    return found.detach()


def _pushed(function: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: torch.func.jvp(function, (rows,), (direction,))[1]


def _factor(index: Indices, sigma: Tensor) -> float:
    """∏σ / κ!."""
    return float(sigma[list(index)].prod()) / prod(factorial(n) for n in Counter(index).values())


def _passes(stems: list[Indices]) -> int:
    """Batched gradients: one for order 1, one per tangent of order 2, three per pair of directions of order 3."""
    return sum({0: 1, 1: 1, 2: 3}[len(stem)] for stem in stems)


def _afford(passes: int, budget: int) -> None:
    if passes > budget:
        raise InputError(
            f"these coefficients take {passes:,} batched gradients, the budget is {budget:,}; lower the order, choose "
            f"some with indices=[...], or raise it: budget={passes}"
        )


def _chunks(stems: list[Indices], size: int) -> Iterable[list[Indices]]:
    for length in sorted({len(stem) for stem in stems}):
        own = [stem for stem in stems if len(stem) == length]
        for start in range(0, len(own), size):
            yield own[start : start + size]


def _parts(table: Tensor, batch: int) -> Iterable[tuple[int, Tensor]]:
    for start in range(0, len(table), batch):
        yield start, table[start : start + batch]


def _wanted(indices: Iterable[Indices] | None, order: int, count: int) -> list[Indices]:
    if indices is None:
        if order not in (1, 2, 3):
            raise InputError(f"order {order!r}: coefficients of orders 1, 2 and 3 are offered")
        return [index for k in range(1, order + 1) for index in combinations_with_replacement(range(count), k)]
    wanted = [tuple(index) for index in indices]
    for index in wanted:
        if not 1 <= len(index) <= 3 or not all(isinstance(i, int) and 0 <= i < count for i in index):
            raise InputError(f"index {index!r}: pass tuples of one to three numbers from 0 to {count - 1}")
    if not wanted:
        raise InputError("indices is empty: pass for example [(0,), (0, 1)]")
    return list(dict.fromkeys(wanted))


def _table(data: Any, f: Model) -> tuple[Tensor, tuple[str, ...]]:
    """(rows, features) in the model's dtype and on its device, and the features' names."""
    columns: tuple[str, ...] | None = None
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        columns = tuple(str(name) for name in data.columns)
        wrong = [str(name) for name, kind in data.dtypes.items() if getattr(kind, "kind", "O") not in "fiub"]
        if wrong:
            raise InputError(f"columns {', '.join(wrong)} hold no numbers: encode or drop them")
        data = data.to_numpy(dtype="float64", copy=True)
    elif not isinstance(data, Tensor) and not hasattr(data, "__array__"):
        data = torch.cat([torch.as_tensor(part[0] if isinstance(part, tuple | list) else part) for part in data])
    table = torch.as_tensor(data)
    own = next((p for p in f.parameters() if p.is_floating_point()), None) if isinstance(f, torch.nn.Module) else None
    if own is not None:
        table = table.to(own)
    elif not table.is_floating_point():
        table = table.double()
    if table.dim() != 2:
        raise InputError(f"the data has shape {tuple(table.shape)}; a table is (rows, features)")
    if len(table) < 2:
        raise InputError("a table needs two rows at least")
    return check_batch(table, "the data"), columns or tuple(str(i) for i in range(table.shape[1]))


def _groups(by: Any, rows: int) -> dict[str, Tensor]:
    groups = {"all": torch.ones(rows, dtype=torch.bool)}
    if by is not None:
        labels = [str(label) for label in (by.tolist() if hasattr(by, "tolist") else by)]
        if len(labels) != rows:
            raise InputError(f"{len(labels)} labels for {rows} rows")
        for name in sorted(set(labels)):
            groups[name] = torch.tensor([label == name for label in labels])
    return groups


def _score(run: Function, table: Tensor, target: Any) -> tuple[Callable[[Tensor, int], Tensor], str]:
    """The number per row that is differentiated, given where in the table the rows stand; and its name."""
    if callable(target) and not isinstance(target, type | contrast | log_odds):
        return (lambda rows, start: target(run(rows))), getattr(target, "__name__", "a function of the output")
    with torch.no_grad():
        output = torch.cat([run(part) for _, part in _parts(table, 4096)])
    if output.dim() == 1 or (output.dim() == 2 and output.shape[1] == 1):
        if target not in (None, 0):
            raise TargetError("f has one output per row, so target must be left out")
        return (lambda rows, start: run(rows).reshape(len(rows))), "the output"
    if output.dim() != 2:
        raise InputError(f"f gives shape {tuple(output.shape)}, not (rows, classes); choose a part with head=")
    classes = output.shape[1]

    def index(c: Any) -> int:
        if isinstance(c, bool) or not isinstance(c, int) or not -classes <= c < classes:
            raise TargetError(f"target {c!r} is no class: the output has {classes}, 0 to {classes - 1}")
        return c % classes

    if isinstance(target, contrast):
        a, b = index(target.positive), index(target.negative)
        return (lambda rows, start: run(rows) @ _unit(output, a) - run(rows) @ _unit(output, b)), f"{a} against {b}"
    fixed = target.index if isinstance(target, log_odds) else target
    own = output.argmax(1) if fixed is None else torch.full((len(output),), index(fixed), device=output.device)
    hot = torch.nn.functional.one_hot(own, classes).to(output.dtype)

    def score(rows: Tensor, start: int) -> Tensor:
        mine, out = hot[start : start + len(rows)], run(rows)
        chosen = (out * mine).sum(1)
        if not isinstance(target, log_odds):
            return chosen
        return chosen - out.masked_fill(mine.bool(), float("-inf")).logsumexp(1)

    what = "the predicted class" if fixed is None else f"class {index(fixed)}"
    return score, f"log-odds of {what}" if isinstance(target, log_odds) else what


def _unit(output: Tensor, c: int) -> Tensor:
    unit = torch.zeros_like(output[0])
    unit[c] = 1
    return unit


def _warnings(rows: dict[Indices, Any], sigma: Tensor, columns: Sequence[str]) -> tuple[str, ...]:
    found = []
    still = [columns[i] for i in (sigma == 0).nonzero().flatten().tolist()]
    if still:
        found.append(f"constant columns, whose scaled coefficients are 0: {', '.join(still)}")
    higher = [row for index, row in rows.items() if len(index) > 1]
    if higher and all(value == 0 for row in higher for value, *_ in row["all"].values()):
        found.append(
            "every coefficient of order 2 or more is 0: the network is piecewise linear, and its curvature sits on its "
            "kinks; wrap the call in smooth_mode(beta), or use differences"
        )
    return tuple(found)
