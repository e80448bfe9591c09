"""Imports run one way: a file imports only from its own layer or from one before it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "pixelwise"

# Longest prefix wins; everything else directly under the package is layer 5.
LAYERS = {
    "types": 0,
    "spec": 0,
    "errors": 0,
    "settings": 0,
    "ops": 1,
    "losses": 1,
    "nn": 2,
    "systems": 3,
    "convert": 4,
    "data": 4,
    "metrics": 4,
    "progress": 4,
    "cli": 6,
    "__main__": 6,
}
TOP_LEVEL = 5
SILENT_LAYERS = (0, 1, 2, 3)  # they read no files and no environment, and never print
FORBIDDEN_CALLS = {"open", "print", "input"}
FORBIDDEN_MODULES = {"os", "pathlib", "requests", "urllib", "subprocess", "logging"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    parts = module.split(".")
    return LAYERS.get(parts[1], TOP_LEVEL) if len(parts) > 1 else TOP_LEVEL


def imported_modules(tree: ast.AST) -> set[str]:
    """Absolute names of the modules of ours that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {n for n in names if n.split(".")[0] == "pixelwise"}


FILES = sorted(PACKAGE.rglob("*.py"))
CONTENTS = PACKAGE / "__init__.py"  # a table of contents: names modules lazily, imports none


@pytest.mark.parametrize("path", [f for f in FILES if f != CONTENTS], ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    here = module_name(path)
    wrong = [
        name
        for name in imported_modules(ast.parse(path.read_text()))
        if name != "pixelwise.__version__" and layer(name) > layer(here)
    ]
    assert not wrong, f"{here} (layer {layer(here)}) imports from below: {wrong}"


@pytest.mark.parametrize(
    "path", [f for f in FILES if f.parent.name == "systems" and f.name != "__init__.py"], ids=str
)
def test_systems_do_not_import_each_other(path: Path) -> None:
    names = imported_modules(ast.parse(path.read_text()))
    others = {n for n in names if n.startswith("pixelwise.systems")}
    assert not others, f"what systems share belongs in nn: {others}"


@pytest.mark.parametrize(
    "path", [f for f in FILES if layer(module_name(f)) in SILENT_LAYERS], ids=module_name
)
def test_upper_layers_touch_no_outside_world(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    modules = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not calls & FORBIDDEN_CALLS
    assert not {m.split(".")[0] for m in modules} & FORBIDDEN_MODULES


def test_the_walk_would_notice() -> None:
    """The rule has teeth: an upward import is one, and layers are what the design says."""
    bad = ast.parse("from pixelwise.train import train\nimport pixelwise.data.images")
    assert {layer(n) for n in imported_modules(bad)} == {5, 4}
    assert layer("pixelwise.ops.boxes") == 1 < layer("pixelwise.systems.mask_rcnn") == 3
