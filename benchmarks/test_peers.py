"""deeptaylor against zennit, captum and autolrp (`make peers`; needs the peers' environment).

Every pair of rules is compared where both mean the same; and every case in which a peer fails is run on both.
"""

import functools
from typing import Any

import failures_captum  # noqa: F401  registers its cases
import failures_zennit  # noqa: F401
import pytest
import torch
from agree import (
    AUTOLRP,
    CAPTUM,
    HIGH,
    LAYERS,
    LOW,
    NETWORKS,
    PRESETS,
    RULES,
    autolrp_rule,
    captum_lrp,
    difference,
    ours,
    sample,
    seed_at,
    small_net,
    zennit,
    zennit_preset,
    zennit_rule,
)
from failures import FAILURES, Failure

from deeptaylor.rules import AlphaBeta

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own

torch.set_num_threads(1)
SIGNS = pytest.mark.parametrize("positive", [True, False], ids=["non-negative", "signed"])
BIASES = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
DRAWS = 3


@functools.cache
def layer_of(name: str, bias: bool, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return LAYERS[name].make(bias).eval().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@SIGNS
@BIASES
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", RULES)
def test_rule_agrees_with_zennit(rule: str, layer: str, bias: bool, positive: bool, dtype: torch.dtype) -> None:
    pair, model = RULES[rule], layer_of(layer, bias, dtype)
    # alpha-beta subtracts two shares, which costs float32 a digit
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5 if isinstance(pair.ours, AlphaBeta) else 2e-6
    torch.manual_seed(1)
    for _ in range(DRAWS):
        x = sample(LAYERS[layer].shape, positive=positive, dtype=dtype)
        seed = torch.randn_like(model(x))
        assert (
            difference(ours(model, x, seed, pair.ours), zennit(model, x, seed, zennit_rule(pair.zennit()))) < tolerance
        )


@SIGNS
@BIASES
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "z^B"])
def test_rule_agrees_with_zennit_through_a_network(rule: str, bias: bool, positive: bool) -> None:
    model, x, seed = network(bias, positive)
    assert (
        difference(ours(model, x, seed, RULES[rule].ours), zennit(model, x, seed, zennit_rule(RULES[rule].zennit())))
        < 1e-10
    )


@SIGNS
@pytest.mark.parametrize("rule", AUTOLRP)
def test_rule_agrees_with_autolrp_without_biases(rule: str, positive: bool) -> None:
    model, x, seed = network(False, positive)
    mine, theirs, epsilon = AUTOLRP[rule]
    assert difference(ours(model, x, seed, mine), autolrp_rule(model, x, theirs, epsilon)) < 1e-10


@SIGNS
@BIASES
def test_epsilon_agrees_with_captum(bias: bool, positive: bool) -> None:
    model, x, seed = network(bias, positive)
    mine, theirs = CAPTUM["epsilon"]
    assert difference(ours(model, x, seed, mine), captum_lrp(model, x, theirs)) < 1e-6


@BIASES
@pytest.mark.parametrize("rule", ["z+", "gamma"])
def test_rule_agrees_with_captum_on_non_negative_input(rule: str, bias: bool) -> None:
    """Captum's z⁺ and gamma mean something else on signed input, and keep a signed bias unless told to drop it."""
    model, x, seed = network(bias, True)
    mine, theirs = CAPTUM[rule]
    assert difference(ours(model, x, seed, mine), captum_lrp(model, x, theirs)) < 1e-6


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_preset_agrees_with_zennits(name: str, preset: str) -> None:
    options: dict[str, Any] = {"bounds": (LOW, HIGH)} if "box" in preset else {}
    make_ours, make_theirs = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make_ours(), sample((3, 16, 16), positive=False, dtype=torch.float64)
    seed = seed_at(model, x)
    theirs = zennit(make_theirs(), x, seed, zennit_preset(PRESETS[preset]))
    assert difference(ours(model, x, seed, preset, **options), theirs) < 1e-8


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: f"{failure.library}: {failure.case}")
def test_what_a_peer_gets_wrong_comes_out_right(failure: Failure) -> None:
    found = failure.observe()
    assert found.right, f"here: {found.here} (there: {found.there})"
    assert found.wrong, f"docs/peers.md says that {failure.library} fails here, but it gave: {found.there}"


@functools.cache
def net(bias: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    return small_net(bias)


def network(bias: bool, positive: bool) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = sample((3, 8, 8), positive=positive, dtype=torch.float64)
    return net(bias), x, seed_at(net(bias), x)
