"""Findings as files: .html, .png, .npz, .safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import plots
from ..adapters.labels import Labels
from ..errors import InputError, MissingExtra
from .build import Story, build_html, check_installed
from .findings import Findings, stack

SUFFIXES = (".html", ".png", ".npz", ".safetensors")


def check_out(out: Path) -> None:
    """Refuse a file that could not be written in the end: its suffix, its folder, or packages that it needs."""
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {out}: the suffix says what to write, one of {', '.join(SUFFIXES)}")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: name a file in it")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.absolute().parent}; make it first")
    if not os.access(out.absolute().parent, os.W_OK) or (out.exists() and not os.access(out, os.W_OK)):
        raise InputError(f"--out {out} can't be written: no permission; choose another folder")
    if out.suffix.lower() == ".html":
        check_installed()
    if out.suffix.lower() == ".png":
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise MissingExtra("plots need matplotlib", "plots") from error


def write(
    out: Path, findings: Sequence[Findings], plans: Mapping[str, Any], labels: Labels | None, story: Story
) -> list[Path]:
    """Writes what the suffix of `out` says; gives the files that were written.

    One .safetensors file holds one `Attribution`, which `deeptaylor.Attribution.load` reads: where there are several
    maps, photo, composite and target are put before the suffix.
    """
    suffix = out.suffix.lower()
    if suffix == ".safetensors":
        return _attributions(out, findings)
    temporary = out.with_name(f".{out.name}.part")
    # A page half written would replace the last whole one: write beside it, then move.
    if suffix == ".html":
        temporary.write_text(build_html(findings, plans, labels, story), encoding="utf-8")
    elif suffix == ".png":
        _picture(findings, list(plans)).savefig(temporary, format="png")
    else:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **stack(findings, list(plans)))
    temporary.replace(out)
    return [out]


def _attributions(out: Path, findings: Sequence[Findings]) -> list[Path]:
    found = [(photo.photo.name, one) for photo in findings for one in photo.maps.values()]
    written: list[Path] = []
    for name, one in found:
        parts = [name, one.composite, one.aim.title] if len(found) > 1 else []
        path = out.with_name(".".join([out.stem, *(_slug(part) for part in parts)]) + out.suffix)
        if path in written:
            path = path.with_name(f"{path.stem}.{len(written)}{out.suffix}")
        one.attribution.save(path)
        written.append(path)
    return written


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def _picture(findings: Sequence[Findings], composites: Sequence[str]) -> Any:
    """Rows of photos (and composites, where there are several targets), columns of targets or composites."""
    if len(findings) == 1 and len(composites) == 1 and len(findings[0].aims) == 1:
        (one,) = findings[0].maps.values()
        return plots.heatmap(one.relevance, photo=findings[0].photo.pixels, title=f"{one.aim.title} · {one.composite}")
    single = all(len(found.aims) == 1 for found in findings)
    rows: list[list[Any]] = []
    photos, names, titles = [], [], []
    for found in findings:
        pairs = [[(composite, aim) for aim in found.aims] for composite in composites]
        for line in [[pair for (pair,) in pairs]] if single else pairs:
            rows.append([found.maps[key].relevance if key in found.maps else _nothing(found) for key in line])
            photos.append(found.photo.pixels)
            names.append(
                f"{found.photo.name}: {found.aims[0].title}" if single else f"{found.photo.name}\n{line[0][0]}"
            )
            titles.append([composite if single else aim.title for composite, aim in line])
    width = max(map(len, rows))
    rows = [row + [_nothing(findings[0])] * (width - len(row)) for row in rows]
    return plots.grid(rows, photos=photos, rows=names, titles=titles)


def _nothing(found: Findings) -> Any:
    return np.zeros(found.photo.pixels.shape[:2])
