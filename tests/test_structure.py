"""The house keeps its order: imports point one way, public names are a tested list, declarations are unique."""

import ast
from pathlib import Path

import pytest
import torch

import deeptaylor as dt
from deeptaylor import ops

SOURCE = Path(dt.__file__).parent
# From the ground up; a module may import only what stands before it.
ORDER = [
    "_version", "symbolic", "errors", "graph", "inputs", "unwrap", "tracing_cache", "room", "trace", "record", "local_response", "columns", "affine", "forms", "ops", "canonize",
    "origin", "adjoints", "step", "rules", "composites", "facts", "sources", "fingerprints", "plan", "repeated", "propagate", "rows", "narrow", "one_pass", "checkpointed", "ledger", "targets", "attribution", "rounding", "finite", "batching", "explainer",
    "shipping", "roots", "testing", "extend", "plots", "taylor", "adapters", "importers", "text", "report", "console",
    "demo_sentiment", "demo_texts", "demo_language", "demo_pages", "demo", "audit", "nearest", "taylor_demo", "taylor_cli", "demo_cli", "cli", "__main__",
]  # fmt: skip
# Imported where used, not at import: a rule finds its root points, an attribution draws itself.
LATE = {("rules", "roots"), ("composites", "audit"), ("explainer", "shipping"), ("attribution", "plots")}


def _imports() -> list[tuple[str, str]]:
    pairs = []
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and node.level == len(parts):
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                pairs += [(parts[0], name) for name in names]
    return pairs


def test_every_module_has_its_place_in_the_order():
    assert {pair[0] for pair in _imports()} <= set(ORDER)


def test_imports_point_one_way():
    known = [(a, b) for a, b in _imports() if a != b and b in ORDER]
    wrong = [(a, b) for a, b in known if ORDER.index(b) > ORDER.index(a) and (a, b) not in LATE]
    assert not wrong


def test_public_names_are_these():
    exported = ast.parse((SOURCE / "__init__.py").read_text()).body
    public = sorted(alias.asname for node in exported if isinstance(node, ast.ImportFrom) for alias in node.names)
    assert public == [
        "Attribution", "AuditReport", "Composite", "Explainer", "Ledger", "TextAttribution", "Vocabulary", "__version__", "audit",
        "check_derivatives", "composites", "contrast", "dataset_coefficients", "differences", "errors", "exact_nearest_root", "explain",
        "explain_text", "extend", "fit_minmax", "fit_taylor", "gradient_regression", "gradient_secant", "importers", "integrated_hessians",
        "integrated_terms", "interactions", "interactions_each", "justify", "log_odds", "nearest_root", "recursive_taylor", "rules", "safe_mode",
        "shapley_taylor", "similarity", "smooth_mode", "taylor", "taylor_orders", "taylor_path", "taylor_terms", "testing", "text_interactions",
        "text_similarity", "top", "walk_relevance",
    ]  # fmt: skip


def test_declaring_an_operation_twice_is_refused():
    with pytest.raises(dt.errors.DeepTaylorError, match="already declared"):
        dt.extend.declare("activation", torch.ops.aten.relu.default)


def test_a_tenth_role_is_refused():
    with pytest.raises(dt.errors.DeepTaylorError, match="not a role"):
        dt.extend.declare("magic", torch.ops.aten.lgamma.default)


def test_one_line_makes_a_new_operation_explainable():
    op = torch.ops.aten.special_bessel_j1.default  # j1(0) = 0
    x = torch.rand(2, 3, dtype=torch.float64)
    with pytest.raises(dt.errors.UnsupportedOp):
        dt.explain(lambda v: torch.special.bessel_j1(v) * 2, x)
    try:
        dt.extend.declare("activation", op)
        assert dt.explain(lambda v: torch.special.bessel_j1(v) * 2, x, ledger=True).ledger.gap.abs().max() < 1e-12
    finally:
        ops.OPS.pop(op, None)


def test_a_rule_of_eight_lines_passes_the_shipped_checker():
    from dataclasses import dataclass

    from deeptaylor.extend import AffineRule, Part, maps, redistribute

    @dataclass(frozen=True)
    class OnlyPositiveWeights(AffineRule):
        def __call__(self, step, relevance):
            return redistribute(step, relevance, [Part(maps.IDENTITY, maps.PLUS)])

    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3).double().eval()

    def formula(x, w, b):
        shares = w.clamp(min=0) * x
        return shares / shares.sum(1, keepdim=True)

    dt.testing.check_rule(OnlyPositiveWeights(), layer, torch.rand(2, 4, dtype=torch.float64) + 0.1, formula)
