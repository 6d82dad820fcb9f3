"""Who may import whom, and that nothing private of another library is touched.

The source is read, not run: an import inside a function counts like one at the top. Imports for type checkers
alone (under `if TYPE_CHECKING`) must keep to the layers too, but they make no circle.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "imagelmdb").rglob("*.py"))
SHIPPED = [*PACKAGE, *sorted((ROOT / "scripts").glob("*.py")), ROOT / "main.py", ROOT / "folder2lmdb.py"]

# Each module or folder of the package, and which others it may import. The lowest is first.
LAYERS = {
    "errors": "",
    "parallel": "errors",
    "jpeg": "errors",
    "order": "errors",
    "command_line": "errors parallel",
    "config": "errors parallel command_line",
    "store": "errors parallel jpeg order",
    "decode": "errors parallel jpeg order store",
    "data": "errors parallel jpeg order store decode config",
    "train": "errors parallel command_line config",
    "compat": "errors parallel jpeg order store decode data",
    "sample": "errors command_line",
    "bench": "errors parallel store decode data",
    "__init__": "store data",  # the front door
    "__main__": "errors parallel command_line config store data sample bench",
}
# Libraries that only some layers may import.
LIBRARIES = {
    "torch": "decode data train compat bench",
    "torchvision": "decode data train compat bench",
    "timm": "data train",
    "numba": "jpeg decode",
    "llvmlite": "jpeg decode",
    "lmdb": "store",
    "nvidia": "decode",
}
# Where the type of a value says what it is, since it comes from outside: file -> {class: why}.
ALLOWED_ISINSTANCE = {
    "imagelmdb/store/legacy/pickled.py": {"DType": "a pickle may put anything in its place"},
}
# Private names that are allowed to stay: file -> {name: why}.
ALLOWED_PRIVATE = {
    "imagelmdb/store/legacy/pickled.py": {
        "numpy._core.multiarray": "not imported: a text in the pickles of older tools, which we look for",
        "numpy._core.numeric": "the same",
    },
}


def name_module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_module(file): file for file in PACKAGE}


def imports_of(file: Path, *, for_types: bool = True) -> set[str]:
    """The modules that a file imports, its own ones by their full name."""
    tree = ast.parse(file.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if not for_types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
    names = set()
    for node in set(ast.walk(tree)) - skipped:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in whole}
    return names


def layer_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_module_belongs_to_a_layer():
    assert {layer_of(module) for module in MODULES} == LAYERS.keys()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_is_below_it(layer):
    allowed = {layer, *LAYERS[layer].split()}
    for module, file in MODULES.items():
        if layer_of(module) == layer:
            found = {name for name in imports_of(file) if name in MODULES and layer_of(name) not in allowed}
            found -= {"imagelmdb"} if layer == "command_line" else set()  # for the version
            assert not found, f"{module} imports {sorted(found)}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_where_it_is_needed(library):
    for module, file in MODULES.items():
        if library in {name.split(".")[0] for name in imports_of(file)}:
            assert layer_of(module) in LIBRARIES[library].split(), f"{module} imports {library}"


def test_only_one_module_imports_dali():
    found = [file.name for file in PACKAGE if any(name.startswith("nvidia") for name in imports_of(file))]
    assert found == ["dali.py"]


def test_the_package_imports_no_program_and_nothing_imports_a_script():
    programs = {file.stem for file in ROOT.glob("*.py")} | {"scripts", "benchmarks", "tests"}
    for file in PACKAGE:
        bad = [name for name in imports_of(file) if name.split(".")[0] in programs]
        assert not bad, f"{file.relative_to(ROOT)} imports {bad}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imports_of(file, for_types=False) & MODULES.keys() for module, file in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_")


def own_names(tree: ast.Module) -> set[str]:
    """The private names that a file defines itself: functions, classes, variables and attributes."""
    # These are public in spite of their names: the methods of a NamedTuple, and os._exit.
    names = {"_replace", "_asdict", "_fields", "_make", "_exit"}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return names


def private_names(source: str) -> Iterator[str]:
    """What a file touches that is private and not its own: imports, attributes, and names in strings."""
    tree = ast.parse(source)
    own = own_names(tree)
    libraries = "|".join(
        {"torch", "numpy", "lmdb", "numba", "argparse", "msgpack", "PIL", "tqdm", "timm", "torchvision"}
        | {"nvidia", "simplejpeg", "yaml", "filelock", "pyarrow", "multiprocessing", "threading"}
    )
    in_text = re.compile(rf"(?:{libraries})(?:\.\w+)*?\._(?!_)\w+(?:\.\w+)*")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            parts = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            parts = [ast.unparse(node)] if is_private(node.attr) and node.attr not in own else []
            yield from parts
            continue
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from in_text.findall(node.value)
            continue
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            parts = [part.value for part in node.args[1:2] if isinstance(part, ast.Constant)]
            parts = [part for part in parts if part not in own]
        else:
            continue
        yield from (name for name in parts if any(map(is_private, name.split("."))))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_private_of_another_module_or_library_is_touched(file):
    allowed = ALLOWED_PRIVATE.get(str(file.relative_to(ROOT)), {})
    assert set(private_names(file.read_text())) == allowed.keys()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch._C", "torch._C"),
        ("from torch import _dynamo", "torch._dynamo"),
        ("from torch._utils import x", "torch._utils.x"),
        ("import torch\ntorch._C._nn.f()", "torch._C"),
        ("def f(storage): return storage._share()", "storage._share"),
        ("class A(Parser):\n def f(self): return self._actions", "self._actions"),
        ("getattr(storage, '_share')", "_share"),
        ("import_module('torch._C')", "torch._C"),
    ],
)
def test_the_search_for_private_names_finds_each_way_to_touch_one(source, name):
    assert name in set(private_names(source))


def test_the_search_for_private_names_passes_what_is_a_files_own():
    source = "class A:\n def __init__(self): self._x = _y()\ndef _y(): return B()._replace(z=A()._x).__dict__"
    assert not set(private_names(source))


def own_classes() -> set[str]:
    return {
        n.name for f in PACKAGE for n in ast.walk(ast.parse(f.read_text())) if isinstance(n, ast.ClassDef)
    }


@pytest.mark.parametrize("layer", ["store", "decode", "data", "train"])
def test_no_code_asks_for_one_of_our_own_classes(layer):
    """What a caller must know of a thing is on its protocol."""
    classes, found = own_classes(), {}
    for file in (ROOT / "imagelmdb" / layer).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                asked = {ast.unparse(part).split(".")[-1] for part in ast.walk(node.args[1])} & classes
                if asked:
                    found.setdefault(str(file.relative_to(ROOT)), set()).update(asked)
    assert not {
        file: names - ALLOWED_ISINSTANCE.get(file, {}).keys()
        for file, names in found.items()
        if names - ALLOWED_ISINSTANCE.get(file, {}).keys()
    }
