"""Who may import whom (imports are read from the source, so conditional and local ones count as well)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "store": ("torch", "torchvision", "imagelmdb.data", "imagelmdb.train"),
    "jpeg": ("torch", "torchvision", "lmdb", "imagelmdb.store", "imagelmdb.data", "imagelmdb.train"),
    "data": ("imagelmdb.train",),
    "train": ("imagelmdb.store", "imagelmdb.data"),
}
TOP_LEVEL = {p.stem for p in ROOT.glob("*.py")} | {"scripts", "benchmarks", "tests"}


def imported_modules(file: Path) -> set[str]:
    package = list(file.relative_to(ROOT).with_suffix("").parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def reaches(module: str, target: str) -> bool:
    return module == target or module.startswith(target + ".")


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_layer_imports_only_what_lies_below_it(layer):
    for file in (ROOT / "imagelmdb" / layer).rglob("*.py"):
        for target in FORBIDDEN[layer]:
            bad = [m for m in imported_modules(file) if reaches(m, target)]
            assert not bad, f"{file.relative_to(ROOT)} imports {bad}"


def test_the_package_imports_no_top_level_file_and_nothing_imports_a_script():
    for file in (ROOT / "imagelmdb").rglob("*.py"):
        bad = [m for m in imported_modules(file) if m.split(".")[0] in TOP_LEVEL]
        assert not bad, f"{file.relative_to(ROOT)} imports {bad}"


def test_only_the_dali_loader_imports_dali():
    for file in ROOT.glob("imagelmdb/**/*.py"):
        if file.name != "dali.py":
            assert not [m for m in imported_modules(file) if reaches(m, "nvidia")], file
