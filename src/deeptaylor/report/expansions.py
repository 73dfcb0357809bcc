"""Taylor expansions and similarities as HTML: a fragment for other pages, or one self-contained page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingExtra
from ..taylor import Expansion, Similarity
from ..taylor.pictures import between, matrix, network, orders, waterfall
from ..taylor.result import part_of_the_way, percent
from ..text.html import style

TOP = 8
"""Pairs that are listed."""
CSS = """
.dt-figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.dt-figures figure { margin: 0; flex: 1 1 22rem; max-width: min(100%, 36rem); }
.dt-figures figure.dt-wide { flex-basis: 100%; max-width: 100%; }
.dt-figures img { width: 100%; height: auto; background: #fff; border: 1px solid #e3dfd7; border-radius: 8px; }
.dt-figures figcaption { font-size: .84rem; opacity: .8; }
.dt-taylor table { border-collapse: collapse; font-size: .88rem; margin: .5rem 0; }
.dt-taylor th { text-align: left; font-weight: 600; } .dt-taylor th, .dt-taylor td { padding: .15rem 1.2rem .15rem 0; }
.dt-taylor td { font-variant-numeric: tabular-nums; }
.dt-taylor .dt-beware {
  background: #fdf3e3; color: #8a4b00; border-radius: 8px; padding: .5rem .8rem; font-size: .88rem; margin: .3rem 0;
}
"""


@dataclass(frozen=True)
class Shown:
    """One result with its title, and the photo that it is of as the network saw it."""

    title: str
    result: Expansion | Similarity
    photo: Any = None
    lead: str = ""


def fragment(shown: Sequence[Shown]) -> str:
    """The results as HTML without a page around it; nothing in it asks a server for anything."""
    return f"<style>{CSS}</style>" + "\n".join(_one(each) for each in shown)


def page(shown: Sequence[Shown], title: str) -> str:
    """One self-contained page."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style("page.css")}{style()}</style></head>
<body><h1>{escape(title)}</h1>
{fragment(shown)}
</body></html>
"""


def write(out: Path, shown: Sequence[Shown], title: str) -> None:
    """The page as a file, moved into place when it is whole.

    Raises:
        InputError: it can't be written.
    """
    temporary = out.with_name(f".{out.name}.part")
    try:
        temporary.write_text(page(shown, title), encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        raise InputError(f"{out} can't be written: {error}") from error


def _one(shown: Shown) -> str:
    body = _similarity(shown.result) if isinstance(shown.result, Similarity) else _expansion(shown)
    lead = f"<p>{escape(shown.lead)}</p>" if shown.lead else ""
    return f'<section class="dt-text dt-taylor"><h3>{escape(shown.title)}</h3>{lead}{body}</section>'


def _expansion(shown: Shown) -> str:
    result = shown.result
    assert isinstance(result, Expansion)
    said = [
        f"f is {result.target}; f(x) = {result.value:.4g}, f(x₀) = {result.reference_value:.4g}, difference "
        f"{result.total:.4g}. By {result.method}: {result.cost}."
    ]
    said += [f"{text[0].upper()}{text[1:]}." for text in result.notes]
    figures: list[tuple[Any, str]] = []
    if result.maps is not None and result.maps.dim() in (3, 4):
        figures.append(
            (orders(result, photo=shown.photo), "What each order says where, its share and its trust radius.")
        )
    if len(result.coefficients) > 1:
        figures.append(
            (_untitled(network(result, photo=shown.photo)), "The strongest pairs: red do more together, blue less.")
        )
        figures.append((_untitled(matrix(result)), "Terms on the diagonal, half of each pair's share beside it."))
    figures.append((_untitled(waterfall(result)), "From f(x₀) to f(x); what is left unexplained is a bar of its own."))
    return (
        "".join(f'<p class="dt-small">{escape(text)}</p>' for text in said)
        + _beware(result.warnings)
        + _figures(figures)
        + _orders(result)
        + _pairs(result)
    )


def _orders(result: Expansion) -> str:
    """A row per order: share, trust radius, held-out R²."""
    head = ["order", "share of f(x) − f(x₀)", "holds for", "R² on unseen masks"]
    rows = []
    for k, share in enumerate(result.shares.tolist(), 1):
        reach = (
            "" if result.trust_radius is None else part_of_the_way(float(result.trust_radius[k - 1])) + " of the way"
        )
        fit = f"{result.fidelity[k]:.3f}" if k in result.fidelity else ""
        rows.append([str(k), f"{share:.4g}", reach, fit])
    rows.append(["remainder", f"{result.residual:.4g} ({percent(result.relative_residual)})", "", ""])
    kept = [i for i in range(len(head)) if i < 2 or any(row[i] for row in rows)]
    return _table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _pairs(result: Expansion) -> str:
    if len(result.coefficients) < 2:
        return ""
    rows = [[" × ".join(names), f"{value:+.4g}"] for names, value in result.top(TOP)]
    return _table(["strongest pairs", "interaction"], rows)


def _similarity(result: Similarity) -> str:
    said = (
        f"Similarity {result.value:.4g} ({result.method}, norm {result.norm}), of which {result.references_part:.4g} "
        f"lies in the references. The pairs add up to {result.explained:.4g}, residual {result.residual:.2g}. "
        f"Cost: {result.cost}."
    )
    figures = [(_untitled(between(result)), "The strongest pairs as lines between the two; thicker is stronger.")]
    rows = [[f"{a} · {b}", f"{value:+.4g}"] for (a, b), value in result.top(TOP)]
    return f'<p class="dt-small">{escape(said)}</p>{_beware(result.warnings)}{_figures(figures)}' + _table(
        ["strongest pairs", "share"], rows
    )


def _beware(warnings: Sequence[str]) -> str:
    return "".join(f'<p class="dt-beware">{escape(text[0].upper() + text[1:])}.</p>' for text in warnings)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _figures(figures: Sequence[tuple[Any, str]]) -> str:
    parts = [
        f'<figure{_wide(figure)}><img alt="{escape(caption)}" src="{_png(figure)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for figure, caption in figures
    ]
    return f'<div class="dt-figures">{"".join(parts)}</div>'


def _untitled(figure: Any) -> Any:
    """The page says it in text."""
    for axes in figure.axes:
        axes.set_title("")
    return figure


def _wide(figure: Any) -> str:
    width, height = figure.get_size_inches()
    return ' class="dt-wide"' if width > 2 * height else ""


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def check_installed() -> None:
    """Refuses early where matplotlib is missing.

    Raises:
        MissingExtra: the page's figures need it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("plots need matplotlib", "plots") from error
