"""Doors for models that were not made in PyTorch; each gives a module that `deeptaylor.explain` takes.

They are called `from_…`, as `torch.from_numpy` is: what comes out is the same network, not a file that was opened.
"""

from .adapters.lrp_toolbox import from_lrp_toolbox as from_lrp_toolbox
from .adapters.onnx_model import from_onnx as from_onnx
from .adapters.sklearn_mlp import from_sklearn as from_sklearn
