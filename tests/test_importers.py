"""Networks of scikit-learn and of the LRP Toolbox arrive as they are: same outputs, same layers, or a clear error."""

import pickle
import types

import numpy as np
import pytest
import torch

import deeptaylor as dt
from deeptaylor.errors import InputError, ModelLoadError
from deeptaylor.importers import from_lrp_toolbox, from_sklearn

RANDOM = np.random.default_rng(0)


def text(rows):
    return "\n".join(" ".join(str(word) for word in np.ravel(np.asarray(row, object))) for row in rows) + "\n"


def numbers(*shape):
    return RANDOM.normal(size=shape).round(3)


# A slow replica in numpy, channels last as the toolbox's own arrays are; patches are looped over.


def patches(x, size, stride):
    (h, w), (down, across) = size, stride
    rows = range(0, x.shape[1] - h + 1, down)
    columns = range(0, x.shape[2] - w + 1, across)
    return np.array([[x[:, i : i + h, j : j + w] for j in columns] for i in rows]).transpose(2, 0, 1, 3, 4, 5)


def replica(layers, x):
    for kind, *rest in layers:
        if kind == "Linear":
            x = x @ rest[0] + rest[1]
        elif kind == "Convolution":
            x = np.einsum("nijhwd,hwdf->nijf", patches(x, rest[0].shape[:2], rest[2]), rest[0]) + rest[1]
        elif kind == "SumPool":
            x = patches(x, *rest).sum((3, 4)) / np.sqrt(np.prod(rest[0]))
        elif kind == "MaxPool":
            x = patches(x, *rest).max((3, 4))
        elif kind == "Flatten":
            x = x.reshape(len(x), -1)
        else:
            x = {"Rect": lambda v: np.maximum(v, 0), "Tanh": np.tanh, "SoftMax": softmax}[kind](x)
    return x


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


EVERY_LAYER = [
    ("Convolution", numbers(3, 2, 2, 4), numbers(4), (1, 2)),
    ("Rect",),
    ("SumPool", (2, 1), (1, 1)),
    ("Convolution", numbers(2, 2, 4, 3), numbers(3), (2, 1)),
    ("Tanh",),
    ("MaxPool", (1, 2), (1, 2)),
    ("Flatten",),
    ("Linear", numbers(6, 5), numbers(5)),
    ("SoftMax",),
]


def written(layers):
    rows = []
    for kind, *rest in layers:
        if kind == "Linear":
            rows += [(kind, *rest[0].shape), rest[0], rest[1]]
        elif kind == "Convolution":
            rows += [(kind, *rest[0].shape, *rest[2]), rest[0], rest[1]]
        else:
            rows.append((kind, *(n for pair in rest for n in pair)))
    return text(rows)


def both_inputs():
    x = RANDOM.normal(size=(3, 7, 8, 2))
    return x, torch.from_numpy(x.transpose(0, 3, 1, 2))


def test_every_layer_of_the_toolbox_computes_what_its_definition_says(tmp_path):
    (tmp_path / "net.txt").write_text(written(EVERY_LAYER))
    x, channels_first = both_inputs()
    network = from_lrp_toolbox(tmp_path / "net.txt", keep_ending=True, dtype=torch.float64)
    assert np.allclose(network(channels_first), replica(EVERY_LAYER, x), atol=1e-12)


def test_the_closing_softmax_is_left_off_and_said(tmp_path):
    (tmp_path / "net.txt").write_text(written(EVERY_LAYER))
    x, channels_first = both_inputs()
    network = from_lrp_toolbox(tmp_path / "net.txt", dtype=torch.float64)
    assert np.allclose(network(channels_first), replica(EVERY_LAYER[:-1], x), atol=1e-12)
    assert "softmax is left off" in network.notes[0]
    result = dt.explain(network, channels_first, ledger=True)
    assert result.ledger.gap.abs().max() < 1e-9


def test_the_older_plain_text_with_weights_in_rows_is_read(tmp_path):
    weight, bias = numbers(3, 2), numbers(2)
    (tmp_path / "old.txt").write_text(text([("Linear", 3, 2), *weight, bias, ("Tanh",)]))
    (tmp_path / "new.txt").write_text(text([("Linear", 3, 2), weight, bias, ("Tanh",)]))
    x = torch.randn(4, 3)
    old, new = (from_lrp_toolbox(tmp_path / f"{name}.txt")(x) for name in ("old", "new"))
    assert torch.equal(old, new)
    assert np.allclose(old, np.tanh(x.numpy() @ weight + bias), atol=1e-6)


@pytest.fixture
def toolbox(monkeypatch):
    """Classes that are called as the toolbox's own, so that a pickle of them looks like one of its files."""
    import sys

    package = types.ModuleType("modules")
    for kind in ("Sequential", "Linear", "Convolution", "Rect", "Tanh", "SoftMax", "Flatten", "SumPool", "MaxPool"):
        setattr(package, kind, type(kind, (), {"__module__": "modules"}))
    monkeypatch.setitem(sys.modules, "modules", package)

    def network(layers):
        made = []
        for kind, *rest in layers:
            layer = getattr(package, kind)()
            names = {"Linear": ("W", "B"), "Convolution": ("W", "B", "stride")}.get(kind, ("pool", "stride"))
            vars(layer).update(zip(names, rest, strict=False))
            made.append(layer)
        outer = package.Sequential()
        outer.modules = made
        return outer

    return network


def test_pickled_networks_are_read_without_the_toolbox(tmp_path, toolbox, monkeypatch):
    network = toolbox(EVERY_LAYER)
    with (tmp_path / "net.nn").open("wb") as file:
        pickle.dump(network, file, protocol=2)
    np.save(tmp_path / "net.npy", np.array(network, dtype=object), allow_pickle=True)
    np.save(tmp_path / "layers.npy", np.array(network.modules, dtype=object), allow_pickle=True)
    monkeypatch.delitem(__import__("sys").modules, "modules")
    x, channels_first = both_inputs()
    for name in ("net.nn", "net.npy", "layers.npy"):
        read = from_lrp_toolbox(tmp_path / name, dtype=torch.float64)
        assert np.allclose(read(channels_first), replica(EVERY_LAYER[:-1], x), atol=1e-12), name


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_pickle_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.nn").write_bytes(pickle.dumps(Bomb()))
    np.save("bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    for name in ("bomb.nn", "bomb.npy"):
        with pytest.raises(ModelLoadError, match=r"io\.open, which is no layer.*nothing was run"):
            from_lrp_toolbox(name)
    assert not (tmp_path / "exploded").exists()


BAD_TEXT = {
    "unknown layer": ("Linear 1 1\n1\n0\nSigmoid\n", "line 4: 'Sigmoid' is no layer of the LRP Toolbox; it has Linear"),
    "truncated weights": ("Linear 2 3\n1 2 3 4\n", "line 2: 4 numbers for the 6 weights of Linear of line 1 and the file"),
    "truncated biases": ("Linear 2 2\n1 2 3 4\n", "0 numbers for the 2 biases"),
    "too many": ("Linear 1 1\n1 2\n0\n", "line 2: 2 numbers for the 1 weights"),
    "layer among numbers": ("Linear 1 2\nRect\n", "line 2: weights of Linear of line 1 expected"),
    "sizes": ("Linear two 3\n", "line 1: the sizes of Linear are no whole numbers"),
    "few sizes": ("SumPool 2 2\n", "line 1: SumPool needs 4 positive sizes"),
    "zero": ("MaxPool 2 2 0 1\n", "needs 4 positive sizes"),
    "nan": ("Linear 1 1\nnan\n0\n", "NaN or Inf among the weights"),
    "empty": ("\n", "holds no layers"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TEXT.values(), ids=BAD_TEXT)
def test_bad_text_names_the_line(tmp_path, case):
    (tmp_path / "net.txt").write_text(case[0])
    with pytest.raises(ModelLoadError, match=case[1].replace("(", r"\(")):
        from_lrp_toolbox(tmp_path / "net.txt")


def test_what_is_no_network_is_refused(tmp_path):
    np.save(tmp_path / "data.npy", np.zeros(3))
    (tmp_path / "half.nn").write_bytes(b"\x80\x02(cmod")
    (tmp_path / "photo.txt").write_bytes(bytes(range(256)))
    for name, said in [("data", "data, not a network"), ("half", "or truncated"), ("photo", "read as plain text")]:
        path = next(tmp_path.glob(f"{name}.*"))
        with pytest.raises(ModelLoadError, match=said):
            from_lrp_toolbox(path)
    with pytest.raises(ModelLoadError, match="no network at"):
        from_lrp_toolbox(tmp_path / "nowhere.txt")


# scikit-learn

sklearn = pytest.importorskip("sklearn")


def fitted(estimator, classes=3, n=80):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils._testing import ignore_warnings

    x = RANDOM.normal(size=(n, 4)) * [1, 10, 0.1, 3] + [0, 5, 2, -1]
    score = x[:, 0] + 0.1 * x[:, 1] - 5 * x[:, 2]
    y = np.digitize(score, np.quantile(score, np.arange(1, classes) / classes)) if classes else score
    return ignore_warnings(category=ConvergenceWarning)(estimator.fit)(x, y), x


def mlp(kind="MLPClassifier", **options):
    from sklearn import neural_network

    return getattr(neural_network, kind)(hidden_layer_sizes=(6, 5), max_iter=30, random_state=0, **options)


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_a_classifier_keeps_its_probabilities(activation):
    estimator, x = fitted(mlp(activation=activation))
    model = from_sklearn(estimator, dtype=torch.float64)
    scores = model(torch.from_numpy(x))
    assert np.allclose(scores.softmax(1), estimator.predict_proba(x), atol=1e-12)
    assert model.classes == (0, 1, 2)


def test_two_classes_score_their_log_odds_against_each_other():
    estimator, x = fitted(mlp(), classes=2)
    scores = from_sklearn(estimator, dtype=torch.float64)(torch.from_numpy(x)).numpy()
    p = estimator.predict_proba(x)[:, 1]
    assert np.allclose(scores, np.stack([np.log((1 - p) / p), np.log(p / (1 - p))], 1), atol=1e-8)


def test_a_regressor_gives_its_prediction():
    estimator, x = fitted(mlp("MLPRegressor"), classes=0)
    found = from_sklearn(estimator, dtype=torch.float64)(torch.from_numpy(x))
    assert np.allclose(found[:, 0], estimator.predict(x), atol=1e-10)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_poisson_regressor_gives_the_logarithm_of_its_prediction():
    x = RANDOM.normal(size=(60, 4))
    estimator = mlp("MLPRegressor", loss="poisson", solver="lbfgs").fit(x, RANDOM.poisson(np.exp(x[:, 0])))
    found = from_sklearn(estimator, dtype=torch.float64)(torch.from_numpy(x))
    assert np.allclose(found[:, 0].exp(), estimator.predict(x))


SCALERS = {
    "standard": "StandardScaler()", "mean only": "StandardScaler(with_std=False)",
    "scale only": "StandardScaler(with_mean=False)", "range": "MinMaxScaler()", "largest": "MaxAbsScaler()",
    "none": "'passthrough'", "two": "make_pipeline(MinMaxScaler(), StandardScaler())",
}  # fmt: skip


@pytest.mark.parametrize("scaler", SCALERS.values(), ids=SCALERS)
def test_the_scaler_of_a_pipeline_comes_with_it(scaler):
    from sklearn import pipeline, preprocessing

    step = eval(scaler, vars(preprocessing) | vars(pipeline))
    estimator, x = fitted(pipeline.make_pipeline(step, mlp()))
    model = from_sklearn(estimator, dtype=torch.float64)
    assert np.allclose(model(torch.from_numpy(x)).softmax(1), estimator.predict_proba(x), atol=1e-9)


def test_relevance_of_a_pipeline_is_the_weights_worked_out_by_hand():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    estimator, x = fitted(make_pipeline(StandardScaler(), mlp()))
    model, inputs = from_sklearn(estimator, dtype=torch.float64), torch.from_numpy(x)
    result = dt.explain(model, inputs, composite="epsilon", ledger=True)
    scaler, network = estimator
    # LRP-0 with the bias in the denominator is gradient x input: the product of the active weights, by hand
    z, jacobian = scaler.transform(x), np.repeat(np.diag(1 / scaler.scale_)[None], len(x), 0)
    for i, (weight, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        z = z @ weight + bias
        jacobian = jacobian @ weight
        if i < 2:
            jacobian, z = jacobian * (z > 0)[:, None], np.maximum(z, 0)
    expected = x * np.take_along_axis(jacobian, z.argmax(1)[:, None, None], 2)[..., 0]
    assert np.allclose(result.relevance, expected, rtol=1e-3, atol=1e-4)  # epsilon is 1e-6 beside pre-activations
    assert result.ledger.gap.abs().max() < 1e-9


def test_the_estimator_stays_as_it_was():
    estimator, _ = fitted(mlp())
    before = pickle.dumps(estimator)
    model = from_sklearn(estimator, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.zero_()
    assert pickle.dumps(estimator) == before


def test_what_is_no_fitted_perceptron_is_refused():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    for wrong, said in [
        (mlp(), "is not fitted"),
        (fitted(LogisticRegression())[0], "LogisticRegression is not a multi-layer perceptron"),
        (fitted(make_pipeline(PolynomialFeatures(), mlp()))[0], "'polynomialfeatures' of the pipeline is Poly"),
        ("mlp.joblib", "str is no estimator"),
    ]:
        with pytest.raises(InputError, match=said):
            from_sklearn(wrong)
