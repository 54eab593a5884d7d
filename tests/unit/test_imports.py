"""Imports run one way: config <- {data, model, optim} <- train <- build <- run <- the scripts."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = {"errors", "s3", "typed_json", "units"}
MAY_IMPORT = {
    "errors": set(),
    "s3": {"errors"},
    "typed_json": set(),
    "units": set(),
    "config": BASE,
    "data": BASE,
    "model": BASE,
    "optim": BASE,
    "estimate": BASE | {"config", "model"},
    "train": BASE | {"config", "data", "model", "optim"},
    "build": BASE | {"config", "data", "model", "optim", "train"},
    "checks": BASE | {"config", "data", "model", "optim", "estimate", "train", "build"},
    "profile": BASE | {"config", "data", "model", "optim", "train", "build"},
    "inference": BASE | {"config", "model", "train"},
    "evaluate": BASE | {"data", "model"},
    "export": BASE | {"data", "model", "train", "inference"},
    "harness": BASE | {"train", "inference", "export"},
    "runs": {"errors", "units", "config"},
    "run": BASE | {"config", "data", "model", "optim", "train", "build", "checks"},
}


def imported(path: Path) -> set[str]:
    """Parts of moe that a file imports, wherever in the file."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "moe" else [f"moe.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("moe.")}
    return parts


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part: str) -> None:
    single = ROOT / "moe" / f"{part}.py"
    files = [single] if single.exists() else sorted((ROOT / "moe" / part).rglob("*.py"))
    assert files
    for path in files:
        extra = imported(path) - MAY_IMPORT[part] - {part}
        assert not extra, f"{path.relative_to(ROOT)} imports {extra}"


def test_no_two_files_of_the_data_part_import_each_other() -> None:
    folder = ROOT / "moe" / "data"
    graph = {}
    for path in folder.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        graph[path.stem] = {str(n.module).split(".")[2] for n in nodes if str(n.module).startswith("moe.data.")}
    assert len(graph) > 20 and any(graph.values())
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_the_configuration_loads_and_a_run_is_estimated_without_anything_heavy() -> None:
    code = (
        "import sys, moe.config, moe.cli.main; moe.config.load_config('yamls/500m.yaml');"
        "moe.cli.main.main(['estimate', 'yamls/500m.yaml']);"
        "print([m for m in ('torch', 'composer', 'streaming', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
