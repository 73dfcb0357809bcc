"""What every test may count on: one thread (two on a busy machine are slower than one), no network, no display.

Numbers drawn without a generator are the same in every run, in whatever order the tests run.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "agg"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
