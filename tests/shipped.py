"""Small models for exported and compiled explanations, and a process that has never heard of deeptaylor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import deeptaylor as dt

# what every script begins with: no deeptaylor here
ABSENT = """
import importlib.util, sys
assert importlib.util.find_spec("deeptaylor") is None, "deeptaylor can be imported"
"""


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(tokens)[:, 0])


def lenet() -> tuple[nn.Module, Tensor]:
    """Pooling of both kinds, a folded batch norm, strides, both ways to pad, groups; inputs within (-4, 4)."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.ZeroPad2d(1),
        nn.Conv2d(6, 6, 3, stride=2, groups=3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    ]  # fmt: skip
    model = nn.Sequential(*layers)
    with torch.no_grad():
        model[1].running_mean.normal_()
    return model.eval(), torch.randn(3, 1, 16, 16).clamp(-4, 4)


def encoder() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Encoder().eval(), torch.randn(3, 7, 16)


CASES = [(lenet, "epsilon-gamma-box"), (lenet, "epsilon-plus-flat"), (encoder, "attn-lrp")]
MORE = [(lenet, "epsilon"), (lenet, "deep-taylor"), (lenet, "gradient-times-input"), (encoder, "gradient-times-input")]


def explainer_of(make, composite: str) -> dt.Explainer:
    model, x = make()
    bounds = (-4.0, 4.0) if composite in ("deep-taylor", "epsilon-gamma-box") else None
    return dt.Explainer(model, x, composite=composite, bounds=bounds)


def elsewhere(script: str, *arguments: str, cwd: Path) -> str:
    """Runs a script in a process of its own: isolated, in another folder, without this package's path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    hide = "import os, sys; sys.path = [p for p in sys.path if not os.path.isdir(os.path.join(p, 'deeptaylor'))]\n"
    # an editable install is a finder of its own
    hide += "sys.meta_path = [f for f in sys.meta_path if 'editable' not in type(f).__module__ + repr(f)]\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", hide + ABSENT + script, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def off(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())
