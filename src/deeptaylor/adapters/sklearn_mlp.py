"""scikit-learn's multi-layer perceptrons as PyTorch modules, with the scaler of their pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError, MissingExtra

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid, "identity": nn.Identity}


class SklearnMLP(nn.Sequential):
    """A perceptron of scikit-learn: (N, features) to (N, classes) scores, or (N, outputs) of a regressor."""

    classes: tuple[Any, ...] = ()
    """What the outputs stand for, in their order; empty for regressors."""
    features: tuple[str, ...] = ()
    """Names of the columns it was fitted on, where it knows them."""
    notes: tuple[str, ...] = ()


def from_sklearn(estimator: Any, *, dtype: torch.dtype = torch.float32) -> SklearnMLP:
    """A fitted `MLPClassifier` or `MLPRegressor`, alone or at the end of a `Pipeline`, as a PyTorch module.

    A classifier's scores are explained, not its probabilities. With more than two classes these are what enters the
    softmax. With two, they are the log-odds −z and z of the classes against each other, where scikit-learn has one
    output z; for several labels at once, the log-odds of each.

    A scaler becomes part of the first layer, so that relevance is of the features as they are measured. For
    relevance of their deviations from the mean import the last step alone, and explain what the scaler gives.

    Args:
        estimator: fitted; before it a pipeline may hold `StandardScaler`, `MinMaxScaler`, `MaxAbsScaler` or
            'passthrough'.
        dtype: of the module's parameters; its inputs must have it too.

    Raises:
        InputError: not fitted, another estimator, or a step that is not one of these.
    """
    try:
        from sklearn.base import BaseEstimator
        from sklearn.exceptions import NotFittedError
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.pipeline import Pipeline
        from sklearn.utils.validation import check_is_fitted
    except ImportError as error:
        raise MissingExtra("importing from scikit-learn needs it", "sklearn") from error
    if not isinstance(estimator, BaseEstimator):
        raise InputError(
            f"{_name(estimator)} is no estimator of scikit-learn: pass a fitted MLPClassifier or MLPRegressor"
        )
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise InputError(f"this {_name(estimator)} is not fitted: call .fit(X, y) first") from error
    steps = [("the estimator", estimator)]
    while any(isinstance(step, Pipeline) for _, step in steps):
        steps = [
            inner for name, step in steps for inner in (step.steps if isinstance(step, Pipeline) else [(name, step)])
        ]
    *before, (_, network) = [(name, step) for name, step in steps if step is not None and step != "passthrough"]
    if not isinstance(network, MLPClassifier | MLPRegressor):
        raise InputError(
            f"{_name(network)} is not a multi-layer perceptron: MLPClassifier and MLPRegressor can be imported, alone "
            "or as the last step of a Pipeline"
        )
    weights, biases = [w.astype(float) for w in network.coefs_], [b.astype(float) for b in network.intercepts_]
    for name, step in reversed(before):
        factor, shift = _scaling(name, step)
        biases[0] = biases[0] + shift @ weights[0]
        weights[0] = factor[:, None] * weights[0]
    layers: list[nn.Module] = []
    last = len(weights) - 1
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        linear = nn.Linear(*weight.shape)
        linear.weight = nn.Parameter(torch.tensor(weight.T))
        linear.bias = nn.Parameter(torch.tensor(bias))
        layers.append(linear)
        if i < last and network.activation != "identity":
            layers.append(_ACTIVATIONS[network.activation]())
    notes: tuple[str, ...] = ()
    ending = network.out_activation_
    if isinstance(network, MLPClassifier) and ending == "logistic" and len(network.classes_) == 2:
        layers[-1] = _two_classes(layers[-1])
        notes = ("two classes: the scores are the log-odds of each against the other",)
    elif ending not in ("identity", "softmax", "logistic", "exp"):
        raise InputError(f"the output activation {ending!r} is not known: identity, softmax, logistic and exp are")
    elif ending != "identity":
        notes = (f"the closing {ending} is left off: what is explained are the scores that enter it",)
    model = SklearnMLP(*layers).to(dtype).eval().requires_grad_(False)
    model.classes = tuple(np.asarray(getattr(network, "classes_", ())).tolist())
    model.features = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
    model.notes = notes
    return model


def _scaling(name: str, step: Any) -> tuple[Any, Any]:
    """Factor and shift per feature of a scaler: x becomes factor · x + shift."""
    from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

    n = step.n_features_in_ if hasattr(step, "n_features_in_") else 0
    if isinstance(step, StandardScaler):
        factor = 1 / step.scale_ if step.with_std else np.ones(n)
        return factor, -step.mean_ * factor if step.with_mean else np.zeros(n)
    if isinstance(step, MinMaxScaler) and not step.clip:
        return step.scale_, step.min_
    if isinstance(step, MaxAbsScaler):
        return 1 / step.scale_, np.zeros(n)
    raise InputError(
        f"step {name!r} of the pipeline is {_name(step)}: StandardScaler, MinMaxScaler (without clip), MaxAbsScaler "
        "and 'passthrough' can be imported. Import what stands behind it, from_sklearn(pipeline[-1]), and explain "
        "pipeline[:-1].transform(X)"
    )


def _two_classes(linear: nn.Module) -> nn.Linear:
    """z as the pair (−z, z)."""
    assert isinstance(linear, nn.Linear)
    pair = nn.Linear(linear.in_features, 2)
    pair.weight = nn.Parameter(torch.cat([-linear.weight, linear.weight]).detach())
    pair.bias = nn.Parameter(torch.cat([-linear.bias, linear.bias]).detach())
    return pair


def _name(thing: Any) -> str:
    return type(thing).__name__
