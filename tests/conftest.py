"""What every test may count on: one thread (two on a busy machine are slower than one), no network, no display."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "agg"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
