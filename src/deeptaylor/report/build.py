"""One self-contained HTML page from findings: no request to anywhere, light and dark, readable on a phone."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import torch

from .. import plots
from ..adapters.labels import Labels
from ..errors import MissingExtra
from .caveats import caveat
from .findings import Findings, Map, probabilities, top
from .pictures import heat_png, legend_css, photo_jpeg, where

WORST = 6
"""Operations listed under every balance."""


@dataclass(frozen=True)
class Story:
    """What a page says beside the findings."""

    title: str
    lead: str
    command: str = ""
    """The command that makes this page again."""
    facts: Mapping[str, str] | None = None
    """Lines of the last section: model, preprocessing, …"""
    notes: Sequence[str] = ()
    sections: Sequence[Section] = ()


@dataclass(frozen=True)
class Section:
    """A further part of the page, after the photos."""

    title: str
    lead: str
    html: str
    """Trusted: escaped by whoever made it."""


def check_installed() -> None:
    """Refuse early where the report's packages are missing."""
    try:
        import jinja2  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise MissingExtra("the HTML report needs jinja2 and Pillow", "report") from error


def build_html(findings: Sequence[Findings], plans: Mapping[str, Any], labels: Labels | None, story: Story) -> str:
    """The page as text.

    Args:
        findings: one per photo.
        plans: the `Plan` of every composite by its name, in the order in which the page shows them.
        labels: class names, where there are any.
        story: title and the like.
    """
    check_installed()
    import jinja2

    from .. import __version__

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    files = resources.files("deeptaylor.report")
    text = {name: (files / name).read_text(encoding="utf-8") for name in ("template.html.j2", "style.css", "script.js")}
    own_probabilities = all(probabilities(found.scores)[1] for found in findings)
    return environment.from_string(text["template.html.j2"]).render(
        version=__version__,
        title=story.title,
        lead=story.lead,
        command=story.command,
        notes=list(story.notes),
        # Our own files and figures: escaping would break the style sheet's quotes.
        css=_trusted(text["style.css"]),
        js=_trusted(text["script.js"]),
        legend=_trusted(legend_css()),
        percentile=f"{plots.PERCENTILE:g}",
        score_word="output" if own_probabilities else "logit",
        photos=[_photo(found, list(plans), labels) for found in findings],
        problems=[problem for found in findings for problem in found.problems],
        composites=list(plans),
        sections=[(section.title, section.lead, _trusted(section.html)) for section in story.sections],
        caveats=[_about(name, plans[name]) for name in plans],
        plan=_plan(plans),
        plan_note=_plan_note(plans),
        little=_little(findings),
        facts=[*(story.facts or {}).items(), *_versions(__version__)],
    )


def _trusted(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _photo(found: Findings, composites: Sequence[str], labels: Labels | None) -> dict[str, Any]:
    """One photo for the template."""
    height, width = found.photo.pixels.shape[:2]
    best = top(found.scores, labels)
    return {
        "name": found.photo.name,
        "uri": _trusted(photo_jpeg(found.photo.pixels)),
        "width": width,
        "height": height,
        "original": f"{found.photo.original[0]}×{found.photo.original[1]}",
        "credit": found.photo.credit,
        "top": [
            {"name": name, "percent": _percent(chance), "width": f"{100 * chance:.1f}", "score": f"{score:.2f}"}
            for name, chance, score in best
        ],
        "rows": [_row(found, composite) for composite in composites],
    }


def _row(found: Findings, composite: str) -> dict[str, Any]:
    """One composite's maps of one photo for the template."""
    maps = [found.maps[composite, aim] for aim in found.aims if (composite, aim) in found.maps]
    missing = len(found.aims) - len(maps)
    return {
        "composite": composite,
        "maps": [_map(one) for one in maps],
        "balance": _balance(maps[0]) if maps else None,
        "alike": _alike(maps),
        "problem": f"{missing} of {len(found.aims)} maps are missing: see the top of the page." if missing else "",
        "warnings": list(dict.fromkeys(text for one in maps for text in one.warnings)),
    }


def _alike(maps: Sequence[Map]) -> str:
    """How much the first two classes' maps resemble each other, in words; empty where there are no two classes."""
    classes = [one for one in maps if one.aim.against is None][:2]
    if len(classes) < 2:
        return ""
    one, other = (plots.image(each.relevance).ravel() for each in classes)
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    cosine = float(one @ other) / size if size else 0.0
    said = (
        "the place counts, the class hardly"
        if cosine > 0.95
        else "partly the same evidence"
        if cosine > 0.5
        else "different evidence"
    )
    return f"{classes[0].aim.title} and {classes[1].aim.title}: maps with cosine {cosine:.3f}, {said}.".replace(
        "-", "−"
    )


def _map(one: Map) -> dict[str, Any]:
    limit = plots.robust_limit(plots.image(one.relevance))
    return {
        "title": one.aim.title,
        "uri": _trusted(heat_png(one.relevance, limit)),
        "where": where(one.relevance),
        "limit": _number(limit),
        "sum": _number(float(one.relevance.double().sum())),
        "explained": _number(one.explained),
    }


def _balance(one: Map) -> dict[str, Any]:
    """Where one score went: handed to the photo, and absorbed on the way by cause."""
    ledger = one.attribution.ledger
    rows: Sequence[Any] = [] if ledger is None else ledger.rows
    values = {"photo": float(one.relevance.double().sum())}
    for cause in ("bias", "constant", "stabilizer", "rule"):
        values[{"constant": "constants"}.get(cause, cause)] = sum(float(getattr(row, cause)) for row in rows)
    values = values if ledger is not None else {}
    # One axis for all bars of a table, so that their lengths compare; zero is where the positive ones start.
    low, high = min(0.0, *values.values(), 0.0), max(0.0, *values.values(), 1e-12)
    place = {
        name: (100 * (min(value, 0) - low) / (high - low), 100 * abs(value) / (high - low))
        for name, value in values.items()
    }
    share = {name: value / one.explained if one.explained else np.nan for name, value in values.items()}
    return {
        "title": one.aim.title,
        "explained": _number(one.explained),
        "lines": [
            {
                "name": name,
                "value": _number(value, None if name == "photo" else one.explained),
                "share": _share(share[name]),
                "minus": value < 0,
                "left": f"{place[name][0]:.1f}",
                "width": f"{place[name][1]:.1f}",
            }
            for name, value in values.items()
        ],
        "worst": [_worst(line, one.explained) for line in ([] if ledger is None else ledger.worst(WORST))],
    }


def _worst(line: Any, scale: float) -> dict[str, Any]:
    numbers = [
        _number(float(getattr(line, name)), scale) for name in ("handed", "bias", "constant", "stabilizer", "rule")
    ]
    return {"op": line.op, "module": line.module, "source": short_source(line.source), "numbers": numbers}


def _little(findings: Sequence[Findings]) -> str:
    """The smallest share of a class's score that reached a photo, where that is under a twentieth; else empty."""
    ones = [one for found in findings for one in found.maps.values() if one.aim.against is None and one.explained]
    shares = [abs(float(one.relevance.double().sum()) / one.explained) for one in ones]
    return _share(min(shares)) if shares and min(shares) < 0.05 else ""


def _about(name: str, plan: Any) -> dict[str, str]:
    text = caveat(name)
    if text is None:
        return {
            "composite": name,
            "does": "A composite of your own: the plan below says which rule serves which operation.",
            "beware": "",
        }
    why = getattr(plan.composite, "why", "")
    return {"composite": name, "does": f"{text.does}{f' Here, {why}.' if why else ''}", "beware": text.beware}


def _plan(plans: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line per operation, with the rule of every composite."""
    rules = {name: {row.name: row.rule for row in plan.rows} for name, plan in plans.items()}
    rows = {row.name: row for plan in plans.values() for row in plan.rows}
    return [
        {
            "op": row.op,
            "module": row.module,
            "source": short_source(row.source),
            "file": short_source(row.source).rpartition("/")[2],
            "role": row.role,
            "rules": [_breakable(rules[name].get(row.name, "")) for name in plans],
        }
        for row in rows.values()
    ]


def _breakable(rule: str) -> Any:
    """A rule's text that a narrow column may break where its arguments begin."""
    from markupsafe import escape

    return _trusted("(<wbr>".join(str(escape(part)) for part in rule.split("(")))


def _plan_note(plans: Mapping[str, Any]) -> str:
    """How many operations of which role, in words."""
    rows = next(iter(plans.values())).rows if plans else ()
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.role] = counts.get(row.role, 0) + 1
    roles = ", ".join(f"{count} {role}" for role, count in sorted(counts.items(), key=lambda item: -item[1]))
    return (
        f"The network was traced into {len(rows)} operations that carry relevance: {roles}. A batch norm that could be "
        "folded into its convolution is part of it."
    )


def short_source(source: str) -> str:
    """'…/package/model.py:12' from a full path: a reader knows the file, and nobody learns whose machine it was."""
    path, _, line = source.rpartition(":")
    parts = path.replace("\\", "/").split("/")
    return f"{'/'.join(parts[-2:])}:{line}" if path else source


def _versions(version: str) -> list[tuple[str, str]]:
    return [("deeptaylor", version), ("torch", str(torch.__version__)), ("python", platform.python_version())]


def _percent(chance: float) -> str:
    return f"{100 * chance:.0f} %" if chance >= 0.0995 else f"{100 * chance:.1f} %"


def _share(share: float) -> str:
    """A share of the score in percent, or nothing where the score is zero or the share is negligible."""
    if not np.isfinite(share) or abs(share) < 1e-5:
        return ""
    text = f"{100 * share:.0f} %" if abs(share) >= 0.0995 else f"{100 * share:.2g} %"
    return (text if abs(share) < 100 else f"×{share:,.0f}").replace("-", "−")


def _number(value: float, scale: float | None = None) -> str:
    """Three significant digits; what is nothing beside `scale` is 0."""
    if scale is not None and abs(value) < 5e-4 * max(abs(scale), 1e-30):
        return "0" if value == 0 else "≈ 0"
    text = f"{value:.3g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"
    return text.replace("-", "−")
