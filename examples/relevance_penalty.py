"""Relevance as a training objective: a classifier that learns to leave a distractor alone.

The label is whether the first half of an input is positive on average. A seventeenth number gives it away while
training and says nothing afterwards. Trained on cross-entropy alone, the network leans on that number; with a penalty
on its relevance, it does not.

    python relevance_penalty.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import deeptaylor as dt


def data(samples: int, leaking: bool) -> tuple[Tensor, Tensor]:
    """Inputs (samples, 17) and labels; the last number follows the label where it leaks."""
    x = torch.randn(samples, 16)
    labels = (x[:, :8].sum(1) > 0).long()
    last = 2.0 * labels - 1 if leaking else torch.randn(samples).sign()
    return torch.cat([x, last[:, None]], 1), labels


def train(penalty: float, rounds: int = 80) -> tuple[float, float]:
    """Accuracy where the distractor says nothing, and the share of |relevance| that it holds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(17, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, labels = data(256, leaking=True)
    explainer = dt.Explainer(model, x, composite="gradient-times-input")
    for _ in range(rounds):
        if penalty:
            result = explainer(x, target=labels, create_graph=True)
            loss = cross_entropy(result.output, labels) + penalty * result.relevance[:, -1].abs().mean()
        else:
            loss = cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, labels = data(512, leaking=False)
    result = explainer(x, target=labels)
    relevance = result.relevance.abs().sum(0)
    accuracy = (result.output.argmax(1) == labels).float().mean()
    return float(accuracy), float(relevance[-1] / relevance.sum())


if __name__ == "__main__":
    for penalty in (0.0, 1.0):
        accuracy, share = train(penalty)
        print(f"penalty {penalty:g}: accuracy {accuracy:.2f}, {share:.0%} of the relevance at the distractor")
