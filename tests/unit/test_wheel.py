"""What is built of this repository is whole: it works where the repository is not.

`make test-wheel` installs it in an empty environment and runs the commands; here its contents are held against the
repository's.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

import moe
from moe.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
BUILDS_WHEELS = tuple(map(int, setuptools.__version__.split(".")[:2])) >= (70, 1)
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages. An older setuptools builds the package's files alone, without a wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source, built = folder / "source", folder / "built"
    for name in ("moe", "yamls"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    stale = source / "build/lib/moe/yamls/removed.yaml"  # of a build long ago
    stale.parent.mkdir(parents=True)
    stale.touch()
    build = ["-c", BUILD, str(folder)] if BUILDS_WHEELS else ["setup.py", "-q", "build_py", "--build-lib", str(built)]
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run([sys.executable, *build], cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if BUILDS_WHEELS:
        with zipfile.ZipFile(folder / done.stdout.split()[-1]) as wheel:
            wheel.extractall(built)
    return built


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_the_package_holds_every_file_of_the_code_and_the_yamls_and_no_other(installed: Path) -> None:
    yamls = {f"yamls/{name}": text for name, text in files(ROOT / "yamls").items()}
    assert len(yamls) > 6
    assert files(installed / "moe") == files(ROOT / "moe") | yamls


@pytest.mark.skipif(not BUILDS_WHEELS, reason="setuptools 70.1 or newer builds wheels: pip install 'setuptools>=77'")
def test_the_wheel_has_the_version_of_the_code_the_command_and_the_license(installed: Path) -> None:
    (folder,) = installed.glob("*.dist-info")
    assert folder.name == f"moe_trainer-{moe.__version__}.dist-info"
    assert "moe = moe.cli.main:main" in (folder / "entry_points.txt").read_text()
    assert any(path.name == "LICENSE" for path in folder.rglob("*"))
    assert [path.name for path in installed.iterdir() if path != folder] == ["moe"]  # no tests, no benchmarks


def test_it_writes_a_yaml_where_the_repository_is_not(installed: Path, tmp_path: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        command = [sys.executable, "-m", "moe.cli.main", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = call("yaml", "500m")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "500m.yaml").read_bytes() == (ROOT / "yamls/500m.yaml").read_bytes()
    assert call("estimate", "500m.yaml").returncode == 0


def test_the_sources_have_one_version() -> None:
    done = subprocess.run([sys.executable, "setup.py", "-q", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[-1] == moe.__version__


def test_the_scripts_are_commands_too() -> None:
    assert {"train", "convert", "tokenizer", "export", "yaml", "demo"} <= COMMANDS.keys()
