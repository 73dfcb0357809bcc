"""Taylor estimators in a user's hands: what they cost, refuse, say, and leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from counting import forward_work, work
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import deeptaylor as dt
from deeptaylor.cli import app
from deeptaylor.report.expansions import Shown, fragment
from deeptaylor.taylor.problem import pose
from deeptaylor.taylor.segments import each_feature, grid, phrases, slic, words


def mlp(n: int = 6, act: Callable[[], nn.Module] = nn.Tanh, outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n, 12), act(), nn.Linear(12, outputs)).double().eval()


def convolutional(act: Callable[[], nn.Module] = nn.GELU) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), act(), nn.Conv2d(8, 16, 3, 2, 1), act()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval().requires_grad_(False)


def sample(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


X, X0 = sample(6), sample(6, seed=2)
ESTIMATORS = [
    dt.taylor_orders, dt.taylor_terms, dt.integrated_terms, dt.integrated_hessians, dt.differences, dt.shapley_taylor,
    dt.fit_taylor, dt.gradient_secant, dt.gradient_regression, dt.interactions,
]  # fmt: skip
DERIVING = [dt.taylor_orders, dt.taylor_terms, dt.integrated_terms, dt.integrated_hessians, dt.gradient_secant,
            dt.gradient_regression]  # fmt: skip
names = {"ids": lambda e: e.__name__}

# ---------------------------------------------------------------------------------------------------------------------
# Cost, counted


def test_order_maps_take_seven_gradients_and_no_second_derivative() -> None:
    cost = dt.taylor_orders(mlp(), X, X0).cost
    assert (cost.gradients, cost.tangents) == (7, 0)


def test_costs_are_what_the_page_says() -> None:
    s = 6
    assert dt.taylor_terms(mlp(), X, X0, check=False).cost.tangents == s
    assert dt.taylor_terms(mlp(), X, X0, order=3, check=False).cost.tangents == s + s * (s + 1) // 2
    assert dt.integrated_terms(mlp(), X, X0, nodes=3, check=False).cost.tangents == 3 * s
    two = dt.integrated_hessians(mlp(), X, X0, nodes=3, check=False).cost
    assert (two.gradients, two.tangents) == (3, 3 * s)
    assert dt.gradient_secant(mlp(), X, X0, check=False).cost.gradients == s + 1
    score = dt.taylor.Score(mlp(), X)  # x and x₀ are two forwards of each problem
    assert dt.shapley_taylor(score, X, X0, check=False).cost.forwards == 2**s + 1
    assert dt.differences(score, X, X0, at="input", check=False).cost.forwards == s * (s + 1) // 2 + 1
    assert dt.differences(score, X, X0, check=False).cost.forwards == s * (s + 1) + 1
    assert dt.fit_taylor(score, X, X0, masks=100).cost.forwards == 101
    whole = score.cost
    assert whole.forwards == 2 + 65 + 22 + 43 + 101


def test_counted_gradients_are_what_the_model_ran() -> None:
    calls = []
    net = mlp()

    def f(x: Tensor) -> Tensor:
        calls.append(len(x))
        return net(x)[:, 0]

    result = dt.taylor_orders(f, X, X0)
    assert sum(calls) == result.cost.forwards + result.cost.gradients


@pytest.mark.parametrize("kind", ["linear", "convolutional"])
def test_a_hessian_over_49_segments_costs_a_gradient_each(kind: str) -> None:
    """≤ 1.2 g per tangent, in multiplications, batched or not (where torch alone would take 2 g for a convolution)."""
    net, x, groups = mlp(49), sample(49), None
    if kind == "convolutional":
        net, x, groups = convolutional(), sample(3, 56, 56, dtype=torch.float32), (7, 7)
    problem = pose(net, x, "zero", groups)
    gradient = work(lambda: problem.score.gradients(x))
    assert gradient <= 2 * forward_work(net, x)  # no gradient of any weight is computed, frozen or not
    together = work(lambda: dt.taylor.derivatives.segment_hessian(problem.score, x, x, problem.segments, chunk=49))
    assert together / gradient <= 1.2 * 49
    v = problem.segments.directions(x, range(49))
    with dt.safe_mode():
        reverse = work(lambda: dt.taylor.derivatives._reverse_products(problem.score, x, v))
    assert reverse / gradient <= 1.2 * 49


def test_both_ways_to_a_hessian_agree() -> None:
    net, x = convolutional().double(), sample(3, 28, 28)
    problem = pose(net, x, "zero", (4, 4))
    v = problem.segments.directions(x, range(16))
    with dt.safe_mode():
        by_reverse = dt.taylor.derivatives._reverse_products(problem.score, x, v)
    forward = dt.taylor.derivatives.hessian_products(problem.score, x, v)
    assert torch.allclose(forward, by_reverse, atol=1e-12)


def test_where_tangents_cannot_be_batched_reverse_passes_serve() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    plain, saved = (dt.taylor_terms(m, X, X0, order=3, target=0) for m in (mlp(), Checkpointed().eval()))
    for mine, theirs in zip(saved.coefficients, plain.coefficients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing


def chosen(result: dt.taylor.Expansion) -> str:
    return next(note for note in result.notes if note.startswith("chosen: "))


def test_a_smooth_table_gets_path_integrals_and_a_piecewise_linear_one_the_cube() -> None:
    smooth = dt.interactions(mlp(), X, X0)
    assert smooth.method == "integrated_terms"
    assert "smooth" in chosen(smooth)
    kinked = dt.interactions(mlp(act=nn.ReLU), X, X0)
    assert kinked.method == "shapley_taylor"
    assert "piecewise linear" in chosen(kinked)
    assert abs(kinked.residual) < 1e-9
    many = dt.interactions(mlp(20, nn.ReLU), sample(20), sample(20, seed=2))
    assert many.method == "differences"


def test_a_path_integral_that_leaves_too_much_is_replaced_and_that_is_said() -> None:
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 1)).double().eval()
    result = dt.interactions(half, X, X0)
    assert result.method == "shapley_taylor"
    assert "unexplained" in chosen(result)
    assert result.cost.tangents > 0  # what was tried is paid for, and shown


def test_photos_get_a_fit_with_its_fidelity_and_words_the_corners() -> None:
    photo = dt.interactions(convolutional(nn.ReLU), sample(3, 28, 28, dtype=torch.float32), groups=(5, 5))
    assert photo.method == "fit_taylor"
    assert set(photo.fidelity) == {1, 2}
    assert any('"blur"' in note for note in photo.notes)
    torch.manual_seed(0)
    text = nn.Sequential(nn.Embedding(30, 4), nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    ids = torch.tensor([[3, 5, 6, 7, 1, 2]])
    result = dt.interactions(text, ids, 0, words([None, 0, 1, 1, 2, None], ["a", "bc", "d"]))
    assert result.method == "shapley_taylor"
    assert result.names == ("a", "bc", "d")
    kept = torch.tensor([[3, 0, 0, 0, 0, 2]])
    assert result.reference_value == pytest.approx(
        dt.taylor.Score(text, ids, target=int(text(ids).argmax())).values(kept).item()
    )


def test_the_choice_and_its_cost_are_shown_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    dt.interactions(mlp(), X, X0, progress=True)
    shown = capsys.readouterr()
    assert "integrated_terms" in shown.err
    assert "about 24 passes" in shown.err
    assert not shown.out


def test_a_planted_pair_comes_first() -> None:
    found = 0
    for seed in range(20):
        torch.manual_seed(seed)
        x = torch.randn(512, 6)
        y = x[:, 1] * x[:, 4] + 0.5 * x[:, 0] + 0.3 * x[:, 2]
        net = nn.Sequential(nn.Linear(6, 32), nn.ReLU() if seed % 2 else nn.GELU(), nn.Linear(32, 1))
        adam = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(120):
            adam.zero_grad()
            ((net(x)[:, 0] - y) ** 2).mean().backward()
            adam.step()
        point = torch.tensor([[1.0, 1.5, -1.0, 0.5, -1.5, 1.0]])
        best, _ = dt.interactions(net.eval().requires_grad_(False), point, "zero").top(1)[0]
        found += best == ("1", "4")
    assert found >= 19


# ---------------------------------------------------------------------------------------------------------------------
# Segments, hidden units, results


def test_segments_partition_and_add_up() -> None:
    x = sample(3, 14, 10)
    for segments in (grid(x, 7, 5), slic(x, 9), each_feature(x)):
        a = torch.rand(2, len(segments), dtype=torch.float64)
        assert torch.allclose(segments.sum(x).sum(), x.sum())
        directions = segments.directions(x, range(len(segments)))
        assert torch.allclose(directions.sum(0), x)
        assert torch.allclose(segments.at(x, 0 * x, a), torch.einsum("ns,sc...->n...", a, directions), atol=1e-12)
    text = words([None, 0, 1, 1, 2, None], ["not", "bad", "movie"], width=4)
    assert text.labels.shape == (6, 4)
    assert phrases(text, [[0, 1], [2]]).names == ("not bad", "movie")


def test_hidden_units_and_heads_are_segments_too() -> None:
    net = mlp(act=nn.GELU)
    hooks = len(net[1]._forward_hooks)
    gated = dt.taylor.Hidden(net, "1", X, target=0)
    assert len(net[1]._forward_hooks) == hooks
    result = dt.taylor_terms(gated, gated.open, "zero")
    by_hand = net[2].weight[0].detach() * net[1](net[0](X))[0].detach()
    assert torch.allclose(result.terms, by_hand)  # the last layer is linear in its units
    assert abs(result.residual) < 1e-12
    heads = dt.shapley_taylor(gated, gated.open, "zero", groups=gated.heads(4))
    assert torch.allclose(heads.terms, by_hand.view(4, 3).sum(1))
    with pytest.raises(dt.errors.InputError, match="no module"):
        dt.taylor.Hidden(net, "9", X)


def test_results_are_drawn() -> None:
    x = sample(3, 28, 28, dtype=torch.float32)
    maps = dt.taylor_orders(convolutional(), x, "blur")
    pairs = dt.interactions(convolutional(), x, groups=(4, 4))
    assert len(maps.plot().axes) >= 4
    for draw in (dt.taylor.pictures.matrix, dt.taylor.pictures.waterfall, dt.taylor.pictures.network,
                 dt.taylor.pictures.panels):  # fmt: skip
        draw(pairs).canvas.draw()
    assert "remainder" in [t.get_text() for t in dt.taylor.pictures.waterfall(pairs).axes[0].get_yticklabels()]


def test_a_result_says_what_it_misses() -> None:
    text = str(dt.taylor_terms(lambda z: torch.exp(3 * z[:, 0]) * z[:, 1], torch.tensor([[1.0, 1.0]]), "zero"))
    assert "warning: the residual is" in text
    assert "valid for" in text
    assert "trust radius" in text


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_tables_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path
    monkeypatch.chdir(folder)
    (folder / "taylornets.py").write_text(
        "import torch\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Softplus(), torch.nn.Linear(8, 1)).eval()\n"
    )
    (folder / "t.csv").write_text("slag,age,water\n1,2,3\n0.5,-1,2\n")
    monkeypatch.syspath_prepend(str(folder))
    out = folder / "pairs.png"
    run = CliRunner().invoke(app, ["interactions", "--table", str(folder / "t.csv"), "--row", "1", "-m",
                                   "taylornets:build", "-o", str(out)])  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "slag × age" in run.output
    assert out.stat().st_size > 10_000
    run = CliRunner().invoke(app, ["taylor", "--table", str(folder / "t.csv"), "-m", "taylornets:build", "-r", "zero"])
    assert run.exit_code == 0, run.output
    assert "order 4" in run.output
    assert "water" in run.output
    assert "holds for" in (folder / "orders.html").read_text(encoding="utf-8")
    run = CliRunner().invoke(app, ["taylor", "-m", "taylornets:build"])
    assert run.exit_code == 2
    assert "give one photo" in run.output


def test_pages_hold_network_matrix_account_and_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pagenets.py").write_text(
        "def reader():\n    import deeptaylor as dt\n    from test_taylor_use import Negating\n"
        "    return Negating().eval(), dt.Vocabulary(Negating.words, pad='<pad>')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "words.html"

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["interactions", *words, "-o", str(out)])

    done = run("--text", "it is not bad", "-m", "pagenets:reader", "-t", "1")
    assert done.exit_code == 0, done.output
    page = out.read_text(encoding="utf-8")
    assert "not × bad" in page
    assert page.count("<img") == 3  # network, matrix, account
    assert "remainder" in page
    assert "http" not in page
    assert run("--text", "a", "--text", "b", "--text", "c", "-m", "pagenets:reader").exit_code == 2
    assert "class index" in run("--text", "not bad", "-m", "pagenets:reader", "-t", "positive").output
    assert ".html" in CliRunner().invoke(app, ["taylor", "-m", "pagenets:reader", "-o", "x.svg"]).output
    expansion = dt.interactions(convolutional(), sample(3, 28, 28, dtype=torch.float32), "zero", (3, 3))
    maps = dt.taylor_orders(convolutional(), sample(3, 28, 28, dtype=torch.float32), "zero")
    both = fragment([Shown("pairs", expansion), Shown("orders <of>", maps)])
    assert both.count("<img") == 5
    assert "orders &lt;of&gt;" in both
    assert "of the way" in both


# ---------------------------------------------------------------------------------------------------------------------
# Many samples, two inputs, texts


def test_every_sample_of_a_batch_has_its_own_expansion() -> None:
    x = torch.cat([sample(6, seed=seed) for seed in (3, 4, 5)])
    with pytest.raises(dt.errors.InputError, match="interactions_each"):
        dt.interactions(mlp(), x, "zero")
    found = dt.interactions_each(mlp(), x, "zero", target=[0, 1, 2])
    for n, one in enumerate(found):
        alone = dt.interactions(mlp(), x[n : n + 1], "zero", target=n)
        assert torch.equal(one.interactions, alone.interactions)
        assert one.target == f"class {n}"
    with pytest.raises(dt.errors.InputError, match="2 targets for 3 samples"):
        dt.interactions_each(mlp(), x, "zero", target=[0, 1])
    with pytest.raises(dt.errors.InputError, match="take fewer samples"):
        dt.interactions_each(mlp(act=nn.ReLU), x, "zero", budget=300)


def test_two_inputs_of_an_encoder_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, x, y = mlp(outputs=5), sample(6, seed=3), sample(6, seed=4)
    told: list[str] = []
    monkeypatch.setattr(dt.taylor.interactions.__globals__["LOG"], "info", lambda text, *a: told.append(text % a))
    found = dt.interactions(encoder, (x, y))
    assert isinstance(found, dt.taylor.Similarity)
    assert "two inputs" in told[0]
    assert "about 48 passes" in found.notes[0]
    assert torch.equal(found.matrix(), dt.similarity(encoder, x, y).matrix())
    assert found.relative_residual < 0.01
    patches = dt.interactions(convolutional().double(), (sample(3, 28, 28), sample(3, 28, 28, seed=2)), "zero", (2, 2))
    assert patches.matrix().shape == (4, 4)
    for inputs, options, says in [
        ((x, y), {"target": 0}, "no target"),
        ((x, y, x), {}, "tuple of two samples"),
        ((x, y), {"method": "differences"}, "those for two inputs"),
        ((x.long(), y.long()), {}, "text_similarity"),
        ((x, y), {"budget": 10}, "the budget is 10"),
    ]:
        with pytest.raises(dt.errors.InputError, match=says):
            dt.interactions(encoder, inputs, **options)


class Negating(nn.Module):
    """Σ of the words' worths, that of a word after "not" turned round."""

    words = ("<pad>", "it", "is", "not", "a", "bad", "good", "movie", "very")

    def __init__(self) -> None:
        super().__init__()
        self.worth = nn.Parameter(torch.tensor([0.0, 0.1, 0, 0, 0, -3, 2, 0.2, 0.5], dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        negated = nn.functional.pad(ids[:, :-1] == 3, (1, 0))
        score = (self.worth[ids] * torch.where(negated, -1.0, 1.0)).sum(1)
        return torch.stack([-score, score], 1)


def test_words_that_act_together_are_named() -> None:
    vocabulary = dt.Vocabulary(Negating.words, pad="<pad>")
    found = dt.text_interactions(
        Negating().eval(), vocabulary, "It is not bad, a very very good movie".replace(",", "")
    )
    ((pair, value),) = found.top(1)
    assert pair == ("not", "bad")
    assert value == pytest.approx(6)
    assert {"very (1)", "very (2)"} <= set(found.names)
    assert found.target == "class 1"
    assert any("padding" in note for note in found.notes)
    rest = found.interactions.clone()
    rest[2, 3] = rest[3, 2] = 0
    assert float(rest.abs().max()) < 1e-12
    with pytest.raises(dt.errors.InputError, match="absent=id"):
        dt.text_interactions(Negating().eval(), dt.Vocabulary(Negating.words), "not bad")
    with pytest.raises(dt.errors.InputError, match="one text"):
        dt.text_interactions(Negating().eval(), vocabulary, ["not bad"])
