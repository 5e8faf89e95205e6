"""Layers of the package: imports point down only."""

import ast
from pathlib import Path

import pytest

import lcgcn_jax
import lcgcn_jax.configs

ROOT = Path(lcgcn_jax.__file__).parent
# Parts of the package, top layer first. A part may import itself and the layers below.
LAYERS = [
    {"__main__"},
    {"commands", "configs"},
    {"app"},
    {"profiling"},
    {"training"},
    {"evaluation", "visualize"},
    {"interop"},
    {"inference"},
    {"synthetic"},
    {"models", "data"},
    {"losses", "uncertainty", "distributed"},
    {"heatmaps", "image_io", "arguments", "bucket_copy", "cpu_kernels"},
    {
        "geometry",
        "landmarks",
        "cache",
        "tables",
        "compat",
        "compilation",
        "atomic_io",
        "image_arrays",
    },
    {"accelerators", "fields", "exit_codes", "storage"},
    {"folders"},
    {"allocator", "errors", "interrupts", "json_fields", "terminal"},
]
LEVEL = {part: -depth for depth, parts in enumerate(LAYERS) for part in parts}


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
# In an editable install, the configs are not in the folder of the package.
CONFIGS = Path(lcgcn_jax.configs.__file__).parent
FILES |= {f"lcgcn_jax.configs.{path.stem}": path for path in CONFIGS.glob("[!_]*.py")}
FILES |= {"lcgcn_jax.configs": CONFIGS / "__init__.py"}


def imports_of(module):
    """Full names of the modules that a module imports at run time, in all of its code."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    targets = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                targets.add(full if full in FILES else node.module)
    return targets


IMPORTS = {module: imports_of(module) for module in FILES}


def part_of(module):
    return module.split(".")[1] if "." in module else module


def reached_from(module):
    """A module, and all modules of the package that its import loads."""
    seen, todo = set(), [module]
    while todo:
        module = todo.pop()
        if module in FILES and module not in seen:
            seen.add(module)
            todo += [target for target in IMPORTS[module] if target != "lcgcn_jax"]
    return seen


def test_every_part_has_a_layer():
    assert {part_of(module) for module in FILES if module != "lcgcn_jax"} == set(LEVEL)


@pytest.mark.parametrize("module", [module for module in FILES if module != "lcgcn_jax"])
def test_imports_point_down(module):
    part = part_of(module)
    others = {target for target in IMPORTS[module] if target.startswith("lcgcn_jax.")}
    wrong = {t for t in others if part_of(t) != part and LEVEL[part_of(t)] >= LEVEL[part]}
    assert not wrong


def test_no_module_imports_the_package_root():
    """`import lcgcn_jax` in the package would hide dependencies."""
    assert not [module for module, targets in IMPORTS.items() if "lcgcn_jax" in targets]


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("lcgcn_jax.data")])
def test_data_does_not_load_jax(module):
    libraries = {
        target.split(".")[0] for reached in reached_from(module) for target in IMPORTS[reached]
    }
    assert not libraries & {"jax", "flax", "optax", "orbax"}


def test_importing_the_package_loads_no_submodules():
    body = ast.parse(FILES["lcgcn_jax"].read_text(encoding="utf-8")).body
    imports = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports == [
        "import ast", "import importlib", "from pathlib import Path", "from typing import Any",
    ]  # fmt: skip


def test_only_main_imports_commands():
    importers = [
        module
        for module, targets in IMPORTS.items()
        if part_of(module) != "commands"
        and any(target.startswith("lcgcn_jax.commands") for target in targets)
    ]
    assert importers == ["lcgcn_jax.__main__"]


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("lcgcn_jax.commands")])
def test_commands_are_short(module):
    """Commands have flags, a call into the library, and printing."""
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 120


def test_module_names_state_a_topic():
    vague = {"utils", "util", "helpers", "misc", "common"}
    assert not [module for module in FILES if module.split(".")[-1] in vague]
