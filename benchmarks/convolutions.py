"""Time of a convolution's transpose as a matrix product (`deeptaylor.columns`) beside torch's own backward.

Layers of ResNet-50, VGG-16, EfficientNet-B0, ConvNeXt and ViT-B/16, one thread, in one process, interleaved; prints
milliseconds of the fastest runs and their ratio. Only where it says "used" is the matrix product taken.
"""

from __future__ import annotations

import torch
from bench_protocol import rounds_of

from deeptaylor import columns

LAYERS = {  # inputs, outputs, pixels, kernel, stride, padding
    "ResNet-50, first layer": (3, 64, 224, 7, 2, 3),
    "VGG-16, first layer": (3, 64, 224, 3, 1, 1),
    "EfficientNet-B0, first layer": (3, 32, 224, 3, 2, 1),
    "ConvNeXt, first layer": (3, 96, 224, 4, 4, 0),
    "ViT-B/16, first layer": (3, 768, 224, 16, 16, 0),
    "ConvNeXt, between stages": (96, 192, 56, 2, 2, 0),
    "ResNet-50, 56 pixels, 64 to 256": (64, 256, 56, 1, 1, 0),
    "ResNet-50, 56 pixels, 256 to 64": (256, 64, 56, 1, 1, 0),
    "ResNet-50, 14 pixels, 1024 to 256": (1024, 256, 14, 1, 1, 0),
    "ResNet-50, 7 pixels, 2048 to 512": (2048, 512, 7, 1, 1, 0),
    "ResNet-50, 56 to 28 pixels": (256, 512, 56, 1, 2, 0),
    "ResNet-50, 28 to 14 pixels": (512, 1024, 28, 1, 2, 0),
    "ResNet-50, 14 to 7 pixels": (1024, 2048, 14, 1, 2, 0),
    "VGG-16, second layer": (64, 64, 224, 3, 1, 1),
    "ResNet-50, 3 x 3 with a stride": (128, 128, 56, 3, 2, 1),
}


def measure(batch: int) -> None:
    for name, (inputs, outputs, pixels, kernel, stride, padding) in LAYERS.items():
        x, weight = torch.rand(batch, inputs, pixels, pixels), torch.randn(outputs, inputs, kernel, kernel)
        settings = (stride,) * 2, (padding,) * 2, (1, 1)
        z = torch.ops.aten.convolution.default(x, weight, None, *settings, False, [0, 0], 1)
        s = torch.randn_like(z)
        found = rounds_of(
            {
                "own": lambda x=x, s=s, w=weight, settings=settings: torch.ops.aten.convolution_backward.default(
                    s, x, w, None, *settings, False, [0, 0], 1, [True, False, False]
                ),
                "matrix": lambda s=s, w=weight, size=(pixels, pixels), settings=settings: columns.transpose(
                    s, w, size, *settings
                ),
            },
            12,
        )
        own, matrix = (1e3 * min(taken) for taken in found.values())
        used = "used" if columns.pays(s, weight, (stride,) * 2, (padding,) * 2, 1) else ""
        print(f"batch {batch}  {name:36} own {own:7.2f} ms  matrix {matrix:7.2f} ms  {matrix / own:.2f}  {used}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        for batch in (1, 8):
            measure(batch)
