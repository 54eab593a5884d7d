"""What runs on GitHub calls the same make targets as a person does, on every Python that the package names."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
SETUP = (ROOT / "requirements/setup.sh").read_text()
JOBS = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
RUNS = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]


def test_each_step_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"check", "test", "docs", "test-wheel"} <= targets
    for run in RUNS:
        command, target, *arguments = re.sub(r"\$\{\{.*?\}\}", "", run).split()
        assert command == "make" and target in targets, run
        assert all(argument.startswith("PYTHON=") for argument in arguments), run
    hook = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"][0]
    assert hook["entry"] == "make check"


def test_the_tests_run_on_every_python_of_the_package() -> None:
    first, last = re.findall(r"3\.(\d+)", re.search(r'^NEEDED="(.*)"', SETUP, re.M)[1])  # type: ignore[index]
    matrix = JOBS["tests"]["strategy"]["matrix"]["python"]
    assert matrix == [f"3.{minor}" for minor in range(int(first), int(last) + 1)] and len(matrix) == 4


def test_the_forms_ask_for_what_is_redacted() -> None:
    forms = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")]
    fields = [field["attributes"]["label"] for form in forms for field in form.get("body", [])]
    assert any("moe check" in label and "--json" in label for label in fields)
