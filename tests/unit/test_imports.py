"""Imports run one way: config <- {data, model, optim} <- train <- build <- fit <- run <- the scripts.

Inside data: the files beside the folders <- text <- {write, read}.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = {"environment", "errors", "locks", "outside", "ownership", "paths", "s3", "typed_json", "units"}
MAY_IMPORT = {
    "errors": set(),
    "locks": set(),
    "outside": {"errors"},
    "ownership": {"errors"},
    "paths": {"errors"},
    "s3": {"errors"},
    "typed_json": set(),
    "environment": {"errors"},
    "units": {"environment"},
    "config": BASE,
    "data": BASE,
    "model": BASE,
    "optim": BASE,
    "estimate": BASE | {"config", "model"},
    "train": BASE | {"config", "data", "model", "optim"},
    "build": BASE | {"config", "data", "model", "optim", "train"},
    "checks": BASE | {"config", "data", "model", "optim", "estimate", "train", "build"},
    "profile_parts": BASE | {"config", "data", "model", "optim", "train", "build"},
    "profile": BASE | {"config", "data", "model", "optim", "train", "build", "profile_parts"},
    "inference": BASE | {"config", "model", "train"},
    "evaluate": BASE | {"data", "model"},
    "export": BASE | {"data", "model", "train", "inference"},
    "harness": BASE,
    "runs": {"environment", "errors", "locks", "paths", "units", "config"},
    "callbacks": BASE | {"config", "data", "model", "optim", "train", "build"},
    "fit": BASE | {"config", "data", "model", "optim", "train", "build", "callbacks"},
    "run": BASE | {"config", "data", "model", "optim", "train", "build", "fit", "cli"},
}
# the folders in moe/data; "" are the files beside them
DATA_MAY_IMPORT: dict[str, set[str]] = {"": set(), "text": {""}, "write": {"", "text"}, "read": {"", "text"}}
DATA_PACKAGES = {f"moe.data.{folder}".rstrip(".") for folder in DATA_MAY_IMPORT}


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def imported(path: Path) -> set[str]:
    """Modules of moe that a file imports, wherever in the file; a package where it takes a name from its __init__."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, which is not followed here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("moe."):
                modules.add(name if is_module(name) else name.rpartition(".")[0])
    return modules - {"moe"}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part: str) -> None:
    single = ROOT / "moe" / f"{part}.py"
    files = [single] if single.exists() else sorted((ROOT / "moe" / part).rglob("*.py"))
    assert files
    for path in files:
        extra = {name.split(".")[1] for name in imported(path)} - MAY_IMPORT[part] - {part}
        assert not extra, f"{path.relative_to(ROOT)} imports {extra}"


@pytest.mark.parametrize("part", DATA_MAY_IMPORT)
def test_imports_run_one_way_inside_the_data_part(part: str) -> None:
    files = sorted((ROOT / "moe/data" / part).glob("*.py"))
    assert len(files) > 3
    for path in files:
        inside = {name for name in imported(path) if f"{name}.".startswith("moe.data.")}
        # a name from the package itself might be anybody's: its file has to be told
        folders = {name.split(".")[2] if name.count(".") > 2 else "" for name in inside - DATA_PACKAGES}
        extra = (inside & DATA_PACKAGES) | (folders - DATA_MAY_IMPORT[part] - {part})
        assert not extra, f"{path.relative_to(ROOT)} imports {extra}"


def test_every_folder_of_the_data_part_has_its_place_in_that_order() -> None:
    assert {path.parent.name for path in (ROOT / "moe/data").glob("*/*.py")} | {""} == DATA_MAY_IMPORT.keys()


def test_no_two_files_of_the_data_part_import_each_other() -> None:
    files = [path for path in (ROOT / "moe/data").rglob("*.py") if path.name != "__init__.py"]
    graph = {".".join(path.relative_to(ROOT).with_suffix("").parts): imported(path) for path in files}
    assert len(graph) > 20 and sum(len(modules & graph.keys()) for modules in graph.values()) > 50
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_the_configuration_loads_and_a_run_is_estimated_without_anything_heavy() -> None:
    code = (
        "import sys, moe.config, moe.cli.main; moe.config.load_config('yamls/500m.yaml');"
        "moe.cli.main.main(['estimate', 'yamls/500m.yaml']);"
        "print([m for m in ('torch', 'composer', 'streaming', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
