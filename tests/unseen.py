"""Twelve models that stand in no list, written the way people write their own: plain tensors, functions and loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RelativeAttention(nn.Module):
    """Several heads by einsum, a learned bias per distance, layer norm by hand, a residual."""

    def __init__(self, width: int = 8, heads: int = 2, length: int = 6) -> None:
        super().__init__()
        self.heads, self.length = heads, length
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(heads, 2 * length - 1))
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(width, 4)

    def norm(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * self.gain + self.shift

    def forward(self, tokens: Tensor) -> Tensor:
        b, n, _ = tokens.shape
        q, k, v = self.qkv(self.norm(tokens)).reshape(b, n, 3, self.heads, -1).unbind(2)
        place = torch.arange(n)
        distance = self.bias[:, place[:, None] - place[None, :] + self.length - 1]
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1]) + distance
        mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(b, n, -1)
        return self.head((tokens + self.out(mixed)).mean(1))


class RootMeanSquare(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class GroupedQueries(nn.Module):
    """A decoder block: 4 query heads share 2 key heads, rotary positions, causal mask of −inf, SwiGLU."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.before, self.between = RootMeanSquare(width), RootMeanSquare(width)
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.o, self.head = nn.Linear(width, width, bias=False), nn.Linear(width, 5, bias=False)
        self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((16, 24), (16, 24), (24, 16)))

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2])[:, None] / 10 ** torch.linspace(0, 1, x.shape[-1] // 2)[None, :]
        cos, sin = (torch.cat([part, part], -1).to(x) for part in (angle.cos(), angle.sin()))
        one, other = x.chunk(2, -1)
        return x * cos + torch.cat([-other, one], -1) * sin

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        x, n = inputs_embeds, inputs_embeds.shape[1]
        h = self.before(x)
        q = self.rotate(self.q(h).unflatten(-1, (4, 4)).transpose(1, 2))
        k, v = self.kv(h).unflatten(-1, (2, 2, 4)).permute(2, 0, 3, 1, 4)
        k, v = self.rotate(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        weights = (q @ k.transpose(-1, -2) / 2.0).masked_fill(future, float("-inf")).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).flatten(2))
        h = self.between(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(x[:, -1])


class TiedEmbedding(nn.Module):
    """One table embeds and un-embeds; called with the embeddings, it gives the logits of the next token."""

    def __init__(self, words: int = 9, width: int = 6) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(words, width), nn.Embedding(7, width)
        self.block = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        h = inputs_embeds * inputs_embeds.shape[-1] ** 0.5 + self.places(torch.arange(inputs_embeds.shape[1]))
        h = h + self.block(h)
        past = h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[:, None]
        return (h + past)[:, -1] @ self.table.weight.T


class SharedLayers(nn.Module):
    """One layer used three times and once more transposed; one norm before each; residuals as functions."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.layer, self.norm, self.act = nn.Linear(width, width), nn.LayerNorm(width), nn.Tanh()
        self.scale = nn.Parameter(torch.tensor([0.5, -0.3, 0.8]))
        self.again = self.layer
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scale:
            x = torch.add(x, scale * self.act(self.layer(self.norm(x))))
        x = x - F.linear(F.leaky_relu(x, 0.2), self.again.weight.t(), None)
        return self.head(self.act(x) + x)


class BranchOnData(nn.Module):
    """Takes another path where the mean of the batch is negative: one graph can't stand for both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bright, self.dark, self.head = (nn.Linear(a, b) for a, b in ((5, 6), (6, 6), (6, 6), (6, 3)))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        if x.mean() > 0:
            h = h + F.gelu(self.bright(h))
        else:
            h = torch.tanh(self.dark(h)) * h
        return self.head(h)


class GatedTable(nn.Module):
    """Numbers and categories of a table: attentive masks by GLU, unit length by F.normalize, batch norm of the input."""

    def __init__(self, numbers: int = 5, width: int = 8) -> None:
        super().__init__()
        self.norm, self.embed = nn.BatchNorm1d(numbers), nn.Embedding(4, 3)
        self.mask = nn.ModuleList(nn.Linear(numbers + 3, numbers + 3) for _ in range(2))
        self.step = nn.ModuleList(nn.Linear(numbers + 3, 2 * width) for _ in range(2))
        self.head = nn.Linear(width, 3)

    def forward(self, numbers: Tensor, category: Tensor) -> Tensor:
        features = torch.cat([self.norm(numbers), self.embed(category)], dim=1)
        total, prior = 0.0, torch.ones_like(features)
        for mask, step in zip(self.mask, self.step, strict=True):
            attention = torch.softmax(mask(features) * prior, dim=1)
            prior = prior * (1.3 - attention)
            total = total + F.glu(step(attention * features), dim=-1)
        return self.head(F.normalize(total, dim=-1) * 3)


class Recurrent(nn.Module):
    """A long short-term memory written as a loop, then the gated recurrent unit of torch."""

    def __init__(self, inputs: int = 4, width: int = 5) -> None:
        super().__init__()
        self.width = width
        self.of_input, self.of_state = nn.Linear(inputs, 4 * width), nn.Linear(width, 4 * width, bias=False)
        self.gru, self.head = nn.GRU(width, width, batch_first=True), nn.Linear(width, 3)

    def forward(self, sequence: Tensor) -> Tensor:
        h = c = sequence.new_zeros(sequence.shape[0], self.width)
        states = []
        for t in range(sequence.shape[1]):
            i, f, g, o = (self.of_input(sequence[:, t]) + self.of_state(h)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        outputs, last = self.gru(torch.stack(states, 1))
        return self.head(outputs.mean(1) + last[0])


class UNet(nn.Module):
    """Two levels down and up again: strided and pooled, interpolated and transposed, skips by cat and by sum; odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.bottom, self.up = nn.Conv2d(6, 6, 3, padding="same"), nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.join, self.norm = nn.Conv2d(8, 4, 1), nn.GroupNorm(2, 4)
        self.leave = nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, image: Tensor) -> Tensor:
        top = F.relu(self.enter(image))
        middle = F.relu(self.down(top))
        low = self.bottom(F.max_pool2d(middle, 2, ceil_mode=True))
        middle = middle + F.interpolate(low, size=middle.shape[-2:], mode="bilinear", align_corners=False)
        high = self.up(middle)[..., : top.shape[-2], : top.shape[-1]]
        joined = F.silu(self.norm(self.join(torch.cat([top, high], 1))))
        return self.leave(torch.cat([joined, image], 1)).mean((-2, -1))


class Experts(nn.Module):
    """Soft routing over the two best of four experts, written densely: all run, their weights are scattered."""

    def __init__(self, width: int = 6, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.first = nn.Parameter(torch.zeros(experts, width, 8))
        self.second = nn.Parameter(torch.zeros(experts, 8, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        best, which = self.router(x).softmax(-1).topk(2, dim=-1)
        weights = torch.zeros(x.shape[0], 4, dtype=x.dtype).scatter(1, which, best / best.sum(-1, keepdim=True))
        hidden = F.relu(torch.einsum("nw,ewh->neh", x, self.first))
        said = torch.einsum("neh,ehw->new", hidden, self.second)
        return self.head(x + (weights[..., None] * said).sum(1))


class StateSpace(nn.Module):
    """A selective scan (the step size depends on the data), then linear attention by running sums."""

    def __init__(self, width: int = 4, states: int = 3) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.zeros(width, states))
        self.step, self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, states), nn.Linear(width, states)
        self.skip, self.q, self.k = nn.Parameter(torch.ones(width)), nn.Linear(width, 3), nn.Linear(width, 3)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        delta = F.softplus(self.step(x))
        keep = torch.exp(-delta.unsqueeze(-1) * torch.exp(self.decay))
        feed = (delta * x).unsqueeze(-1) * self.enter(x).unsqueeze(2)
        state, outputs = torch.zeros_like(feed[:, 0]), []
        for t in range(x.shape[1]):
            state = keep[:, t] * state + feed[:, t]
            outputs.append((state * self.leave(x)[:, t, None]).sum(-1))
        y = torch.stack(outputs, dim=1) + self.skip * x
        q, k = F.elu(self.q(y)) + 1, F.elu(self.k(y)) + 1
        memory = (k.unsqueeze(-1) * y.unsqueeze(-2)).cumsum(1)
        mixed = torch.einsum("nlk,nlkd->nld", q, memory) / (q * k.cumsum(1)).sum(-1, keepdim=True)
        return self.head(mixed[:, -1])


class WritesInPlace(nn.Module):
    """Writes into views, slices and masks of its own tensors, and fills a buffer step by step."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y[:, 1:] += 0.5 * y[:, :-1]
        y[..., 0] = x[..., 1].tanh()
        left = y.narrow(-1, 0, 3)
        left.mul_(2.0).add_(0.1)
        y.transpose(1, 2)[:, -1].sub_(0.3)
        y[y > 1.5] = 1.5
        filled = torch.zeros_like(y)
        for t in range(y.shape[1]):
            filled[:, t] = y[:, : t + 1].sum(1) / (t + 1)
        filled[:, -1].fill_(0.25)
        return self.head(filled.add_(x).relu_().mean(1))


class Latents(nn.Module):
    """Learned queries read a padded set through torch's attention; a vector weighs the latents; two inputs and a mask."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.latents, self.pool = nn.Parameter(torch.zeros(1, 3, width)), nn.Parameter(torch.zeros(width))
        self.kv, self.context, self.head = nn.Linear(4, 2 * width), nn.Linear(2, width), nn.Linear(width, 3)

    def forward(self, members: Tensor, context: Tensor, *, absent: Tensor) -> Tensor:
        k, v = self.kv(members).unflatten(-1, (2, -1)).unbind(2)
        q = self.latents + self.context(context)[:, None]
        split = [part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (q, k, v)]
        read = F.scaled_dot_product_attention(*split, attn_mask=~absent[:, None, None, :])
        read = read.transpose(1, 2).flatten(2)
        weights = torch.softmax(read @ self.pool, dim=1)
        return self.head((weights.unsqueeze(-1) * read).sum(1))


Rand = Callable[..., Tensor]


def _padding(n: int) -> Tensor:
    return torch.arange(5)[None] >= 5 - torch.arange(n)[:, None] % 3


UNSEEN: dict[str, tuple[type[nn.Module], Callable[[Rand, int], tuple[Tensor, ...]], dict[str, Callable[[int], Tensor]]]]
UNSEEN = {
    "relative attention": (RelativeAttention, lambda rand, n: (rand(n, 6, 8),), {}),
    "grouped queries": (GroupedQueries, lambda rand, n: (rand(n, 5, 16),), {}),
    "tied embedding": (TiedEmbedding, lambda rand, n: (rand(n, 7, 6),), {}),
    "shared layers": (SharedLayers, lambda rand, n: (rand(n, 7),), {}),
    "gated table": (GatedTable, lambda rand, n: (rand(n, 5), torch.arange(n) % 4), {}),
    "recurrent": (Recurrent, lambda rand, n: (rand(n, 4, 4),), {}),
    "u-net": (UNet, lambda rand, n: (rand(n, 2, 7, 9),), {}),
    "experts": (Experts, lambda rand, n: (rand(n, 6),), {}),
    "state space": (StateSpace, lambda rand, n: (rand(n, 4, 4),), {}),
    "writes in place": (WritesInPlace, lambda rand, n: (rand(n, 4, 6),), {}),
    "latents": (Latents, lambda rand, n: (rand(n, 5, 4), rand(n, 2)), {"absent": _padding}),
}
"""Name -> model, its inputs and its keyword arguments for a batch of n; without the one that branches on data."""


def model_of(name: str) -> nn.Module:
    """A model in float64 and eval mode, with random weights, biases and statistics."""
    return randomized(UNSEEN[name][0]())


def inputs_of(name: str, batch: int, seed: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """A random batch for a model: (inputs, keyword arguments)."""
    _, inputs, keywords = UNSEEN[name]
    generator = torch.Generator().manual_seed(seed)
    made = inputs(lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64), batch)
    return made, {key: keyword(batch) for key, keyword in keywords.items()}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and eval mode; every parameter and statistic is random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan = parameter.shape[-1] if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan**0.5 + (parameter == 1)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            noise = torch.randn(buffer.shape, generator=generator)
            buffer.copy_(0.3 * noise if name.endswith("mean") else 0.5 + noise.abs())
    return model.double().eval()
