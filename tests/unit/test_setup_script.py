"""requirements/setup.sh: which Python it takes, and what it says where none can be had. All it calls is played."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLD = '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.18" && exit\nexit 1\n'
REFUSING = "#!/bin/sh\necho error: the index cannot be reached >&2\nexit 1\n"
# says what the real one says
UV = r"""#!/bin/sh
echo "uv $*" >> "$CALLS"
case "$1" in
venv)
  mkdir -p .venv/bin
  cp "$PLAYED/python" .venv/bin/python
  ;;
pip) echo 'Resolved 2 packages in 1ms
Downloading torch (507.3MiB)
Downloading numpy (15.9MiB)
Downloading tiny (12.0KiB)
 Downloaded torch
Prepared 2 packages in 1ms
Installed 2 packages in 1ms
 + numpy==2.1.3
 + torch==2.11.0' >&2 ;;
esac
"""
# a Python that fits; its venv and pip modules
FITTING = """#!/bin/sh
[ "$1" = --version ] && echo "Python 3.11.7" && exit
[ "$1" = -c ] && echo 3.11 && exit
echo "python $*" >> "$CALLS"
case "$2" in
venv)
  mkdir -p .venv/bin
  cp "$PLAYED/python" .venv/bin/python
  ;;
pip) cp "$PLAYED/uv" .venv/bin/uv ;;
esac
"""


@pytest.fixture
def setup(tmp_path: Path):
    """Runs the script in a folder of its own, with the given programs and the system's tools alone on the PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in ("bash", "sh", "dirname", "tail", "tee", "sed", "rm", "mkdir", "cp", "chmod", "cat"):
        (programs / tool).symlink_to(shutil.which(tool))
    (tmp_path / "clone/requirements").mkdir(parents=True)
    shutil.copy(ROOT / "requirements/setup.sh", tmp_path / "clone/requirements")
    (tmp_path / "played").mkdir()

    def run(python: str = "", **played: str) -> subprocess.CompletedProcess:
        for name, text in {"uv": played.get("uv", UV), "python": FITTING}.items():
            (tmp_path / "played" / name).write_text(text)
            (tmp_path / "played" / name).chmod(0o755)
        for name, text in played.items():
            (programs / name.replace("_", ".")).write_text(text)
            (programs / name.replace("_", ".")).chmod(0o755)
        places = {"PATH": str(programs), "HOME": str(tmp_path), "CALLS": str(tmp_path / "calls")}
        environment = places | {"PYTHON": python, "PLAYED": str(tmp_path / "played")}
        command = [str(programs / "bash"), "requirements/setup.sh"]
        return subprocess.run(command, cwd=tmp_path / "clone", env=environment, capture_output=True, text=True)

    return run


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_a_python_that_fits_is_taken_and_few_lines_are_said(setup, tmp_path: Path) -> None:
    done = setup(python3=OLD, python3_12=FITTING, uv=UV)
    assert done.returncode == 0, done.stderr
    assert calls(tmp_path)[:2] == ["python -m venv .venv", "python -m pip install --quiet uv"]
    install = calls(tmp_path)[2]
    assert install.startswith("uv pip install") and "--constraints requirements/constraints.txt" in install
    said = done.stdout.splitlines()
    assert said[2:-1] == [
        "Resolved 2 packages in 1ms",
        "Downloading torch (507.3MiB)",
        "Prepared 2 packages in 1ms",
        "Installed 2 packages in 1ms",
    ]
    assert "6 GB" in said[1] and re.fullmatch(r"setup: ready in \d+ s; .*source .venv/bin/activate", said[-1])


def test_where_none_fits_uv_brings_one(setup, tmp_path: Path) -> None:
    done = setup(python3=OLD, uv=UV)
    assert done.returncode == 0, done.stderr
    assert calls(tmp_path)[0] == "uv venv --seed --python 3.12 .venv"
    assert "this machine has none from 3.10 to 3.13" in done.stdout


@pytest.mark.parametrize(
    ("python", "programs", "told"),
    [
        ("", {"python3": OLD, "uv": REFUSING}, "uv can bring no Python 3.12 (error: the index cannot be reached)"),
        ("", {"python3": REFUSING}, "neither that nor uv, which would bring it, can be had"),
        ("", {}, "neither that nor uv, which would bring it, can be had"),
        ("python3.8", {"python3_8": OLD, "python3": FITTING, "uv": UV}, "PYTHON=python3.8 (Python 3.8.18) is not"),
    ],
)
def test_what_cannot_be_had_is_told_and_how_to_go_on(setup, python: str, programs: dict, told: str) -> None:
    done = setup(python, **programs)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and told in done.stderr and len(done.stderr.splitlines()) <= 2


def test_an_environment_that_is_there_is_kept(setup, tmp_path: Path) -> None:
    assert setup(python3=FITTING).returncode == 0
    mine = tmp_path / "clone/.venv/mine"
    mine.touch()
    done = setup(python3=FITTING)
    assert done.returncode == 0 and ".venv is there, with Python 3.11.7" in done.stdout and mine.exists()
    assert [call.split(" --")[0] for call in calls(tmp_path)].count("python -m venv .venv") == 1
    other = setup("python3.12", python3_12=FITTING.replace("echo 3.11", "echo 3.12"))
    assert other.returncode == 2 and "with Python 3.11, and PYTHON=python3.12 is another" in other.stderr
    (tmp_path / "clone/.venv/bin/python").write_text(OLD)
    broken = setup(python3=FITTING)
    assert broken.returncode == 2 and "remove it, then run: make setup" in broken.stderr and mine.exists()


def test_packages_that_cannot_be_installed_fail_and_the_reason_stays(setup) -> None:
    refusal = "case \"$*\" in *--constraints*) echo 'error: No solution found' >&2; exit 1 ;; esac; echo"
    failing = UV.replace("pip) echo", f"pip) {refusal}")
    done = setup(python3=OLD, uv=failing)
    assert done.returncode == 2
    assert "No solution found" in done.stdout and "the packages cannot be installed" in done.stderr


def test_the_constraints_are_names_and_versions_that_hold_what_is_asked_for() -> None:
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements/constraints.txt").read_text().splitlines()
    held = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len(held) > 200 and "://" not in "".join(lines)
    assert all([part.operator for part in one.specifier] == ["=="] for one in held)
    asked = re.findall(r'^ +"([\w.-]+)(?:\[\w+\])?([<>=][^"]*)?",$', (ROOT / "setup.py").read_text(), re.M)
    assert len(asked) > 20
    for name, specifier in asked:
        found = [one for one in held if one.name.lower().replace("_", "-") == name.lower()]
        assert found, f"{name} is not in constraints.txt: make constraints"
        for one in found:
            assert Requirement(name + specifier).specifier.contains(next(iter(one.specifier)).version)


@pytest.mark.parametrize(("python", "gone"), [("python3.12", False), ("", True), ("", False)])
def test_make_setup_looks_at_a_python_that_is_named_or_gone(tmp_path: Path, python: str, gone: bool) -> None:
    """A .venv that was ready was all that counted: `make setup PYTHON=...` did nothing, with 0."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.py", "pyproject.toml", "requirements/constraints.txt", "requirements/setup.sh", ".venv/ready"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if not gone:
        (tmp_path / ".venv/bin").mkdir()
        (tmp_path / ".venv/bin/python").touch()
    (tmp_path / ".venv/ready").touch()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON" and "MAKE" not in name}
    command = ["make", "-n", "setup", *[f"PYTHON={python}"] * bool(python)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and ("requirements/setup.sh" in done.stdout) == bool(python or gone), done.stdout
