"""Draws docs/images/photos.png, the picture in the README: python examples/readme_picture.py (needs the demo extra)."""

from pathlib import Path

import torch
from PIL import Image

import deeptaylor as dt
from deeptaylor.adapters.labels import imagenet_labels, name_of
from deeptaylor.demo import PREPROCESSING, load_demo_model, load_demo_photos
from deeptaylor.plots import grid
from deeptaylor.report.findings import prepare

torch.set_num_threads(1)
model, labels = load_demo_model().model, imagenet_labels()
photos = [prepare(image, photo.name, PREPROCESSING) for photo, image in load_demo_photos()][:3]
batch = torch.cat([photo.inputs for photo in photos])
columns = ("epsilon-gamma-box", "deep-taylor", "epsilon-plus", "gradient-times-input")
maps, rows = [], []
for name in columns:
    result = dt.explain(model, batch, composite=name, bounds=(-127 / 128, 1.0))
    maps.append(result.relevance)
for index in result.target.tolist():
    rows.append(name_of(index, labels))
figure = grid(
    [[maps[c][r] for c in range(len(columns))] for r in range(len(photos))],
    photos=[photo.pixels for photo in photos],
    rows=rows,
    columns=columns,
)
out = Path(__file__).parent.parent / "docs" / "images" / "photos.png"
out.parent.mkdir(exist_ok=True)
figure.savefig(out, dpi=80)
Image.open(out).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)
print(out.name)
