"""The recipes: Slurm's script against stubs of srun and scontrol, the loop of the docs, the other files' shape."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "recipes/slurm.sbatch"

SRUN = r"""#!/bin/bash
# two nodes; answers with the highest code, as the real one does, which passes TERM on
while [[ $1 == --* ]]; do echo "srun $1" >> "$LOG"; shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}"' TERM
worst=0
for pid in "${pids[@]}"; do
    wait "$pid"; code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
    [ "$code" -gt "$worst" ] && worst=$code
done
exit "$worst"
"""
SCONTROL = """#!/bin/bash
if [ "$2" = job ]; then echo "JobId=$3 JobState=${STATE:-RUNNING} Reason=None"
elif [ "$1" = show ]; then printf 'node0\\nnode1\\n'; else echo "scontrol $*" >> "$LOG"; fi
"""
MOE = r"""#!/bin/bash
echo "moe $*" >> "$LOG"
codes=($CODES)
trap 'sleep 0.3; echo "saved $SLURM_NODEID" >> "$LOG"; exit "${codes[$SLURM_NODEID]}"' TERM
[ -n "$WAITS" ] && { touch "$LOG.$SLURM_NODEID"; while :; do sleep 0.05; done; }
exit "${codes[$SLURM_NODEID]}"
"""
PYTHON = """#!/bin/bash
echo "python $*" >> "$LOG"
exit "${CODES%% *}"
"""


@pytest.fixture
def stubs(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two nodes."""
    for name, text in {
        "srun": SRUN,
        "scontrol": SCONTROL,
        "moe": MOE,
        "python": PYTHON,
        "sleep": '#!/bin/bash\n[ "$1" = 60 ] || exec /bin/sleep "$1"\n',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "42", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_GPUS_ON_NODE": "4"}
    return {**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}


def submit(stubs: dict[str, str], codes: str, *words: str, **env: str) -> tuple[int, str]:
    """The script's code, and what the stubs were called with."""
    Path(stubs["LOG"]).write_text("")
    command = ["bash", str(SBATCH), *(words or ("yamls/500m.yaml", "seed=3"))]
    done = subprocess.run(command, env={**stubs, "CODES": codes, **env}, capture_output=True, text=True, timeout=60)
    return done.returncode, Path(stubs["LOG"]).read_text()


def test_slurm_starts_one_launcher_a_node_with_what_they_meet_by(stubs) -> None:
    code, called = submit(stubs, "0 0")
    assert code == 0 and "requeue" not in called
    for node in range(2):
        where = f"moe launch -n 4 --nodes 2 --node-rank {node} --master-addr node0 --master-port 10042"
        assert f"{where} yamls/500m.yaml seed=3 stop_grace=100s\n" in called
    assert "srun --kill-on-bad-exit=0\n" in called and "srun --wait=0\n" in called
    ports = [
        re.search(r"--master-port (\d+)", submit(stubs, "0 0", SLURM_JOB_ID=job, SLURM_RESTART_COUNT=restarts)[1])[1]
        for job, restarts in (("42", "0"), ("42", "1"), ("42", "2"), ("43", "0"))
    ]
    assert ports[0] == "10042" and len({*ports}) == 4, "a port that was taken is not asked for again"


@pytest.mark.parametrize("codes", ["75 75", "247 75", "75 143", "0 75"])
def test_slurm_requeues_what_was_stopped_or_lost(stubs, codes: str) -> None:
    code, called = submit(stubs, codes)
    assert "scontrol requeue 42\n" in called and code == 0
    code, called = submit(stubs, codes, SLURM_RESTART_COUNT="100")
    assert "requeue" not in called and code != 0, "MAX_RESTARTS"


def test_slurm_does_not_requeue_a_job_that_was_cancelled(stubs) -> None:
    """scancel sends TERM too: the job saved and came back."""
    for state in ("CANCELLED", "COMPLETING"):
        code, called = submit(stubs, "75 75", STATE=state)
        assert "requeue" not in called and code == 75


@pytest.mark.parametrize(("codes", "code"), [("1 75", 1), ("75 1", 1), ("2 2", 2), ("1 247", 1)])
def test_slurm_does_not_requeue_what_failed_on_one_node(stubs, codes: str, code: int) -> None:
    """srun answers with the highest code: 75 of the node that lost its peer hid the 1 of the one that failed."""
    assert submit(stubs, codes)[0] == code
    assert "requeue" not in Path(stubs["LOG"]).read_text()


@pytest.mark.parametrize("codes", ["75 75", "1 75"], ids=["saved", "a peer's end was met first"])
def test_slurms_term_is_passed_on_and_the_script_waits_for_the_save(stubs, codes: str) -> None:
    log = Path(stubs["LOG"])
    log.write_text("")
    command = ["bash", str(SBATCH), "yamls/500m.yaml"]
    process = subprocess.Popen(command, env={**stubs, "CODES": codes, "WAITS": "1"}, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not all(log.with_name(f"log.{node}").exists() for node in range(2)):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    called = log.read_text()
    assert "saved 0" in called and "saved 1" in called and called.endswith("scontrol requeue 42\n")


def test_slurm_converts_and_requeues_a_conversion_that_was_stopped(stubs) -> None:
    code, called = submit(stubs, "75 75", "convert", "--out", "data/x")
    assert "python convert/fineweb_to_mds.py --out data/x\n" in called and "scontrol requeue 42" in called and code == 0
    code, called = submit(stubs, "2 2", "convert", "--out", "data/x")
    assert "requeue" not in called and code == 2


def docs_loop() -> str:
    """The restart loop as docs/resume.md shows it."""
    page = (ROOT / "docs/resume.md").read_text()
    (loop,) = re.findall(r"^    run=.*?^    done$", page, re.MULTILINE | re.DOTALL)
    return re.sub("^    ", "", loop, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("code", "state", "starts"),
    [
        (75, None, 2),
        (247, "running", 2),
        (1, "stopped", 2),  # torchrun: 1, whatever its ranks answered
        (1, "failed", 1),
        (1, None, 1),  # refused by a launcher that answers 1: run.json is that of an earlier start
        (2, None, 1),
        (130, "stopped", 1),
    ],
)
def test_the_loop_of_the_docs_looks_at_run_json_where_the_launchers_code_tells_nothing(
    tmp_path: Path, code: int, state: str | None, starts: int
) -> None:
    folder = tmp_path / "checkpoints/moe-500m-10b"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"state": "stopped"}, indent=1))
    os.utime(folder / "run.json", (1, 1))
    writes = f"printf '%s' '{json.dumps({'state': state}, indent=1)}' > {folder}/run.json" if state else ":"
    stub = f"#!/bin/bash\necho x >> starts\n[ $(wc -l < starts) = 2 ] && exit 0\n{writes}\nexit {code}\n"
    (tmp_path / "composer").write_text(stub)
    (tmp_path / "composer").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", docs_loop()], cwd=tmp_path, env=env, timeout=30)
    assert len((tmp_path / "starts").read_text().splitlines()) == starts
    assert (done.returncode == 0) == (starts == 2)


def test_recipes_that_were_never_run_say_so_in_their_first_line() -> None:
    for file in [*sorted((ROOT / "recipes/kubernetes").glob("*.yaml")), *sorted((ROOT / "recipes").glob("*.yaml"))]:
        assert "not run" in file.read_text().splitlines()[0], file
    assert "not run on a GPU" in (ROOT / "recipes/Dockerfile").read_text().splitlines()[0]


def test_the_image_takes_the_code_and_nothing_that_git_ignores() -> None:
    """`COPY . .` took .venv, data and checkpoints into the image."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    forms = [re.escape(line).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*") + "(/.*)?" for line in patterns]

    def left_out(path: str) -> bool:
        return any(re.fullmatch(form, path) for form in forms)

    for line in (ROOT / ".gitignore").read_text().splitlines():
        name = line.strip("/").replace("*", "x")
        places = [name] if line.rstrip("/").count("/") else [name, f"deep/inside/{name}"]
        assert all(left_out(place) for place in [*places, f"{name}/step-00000001/state.pt"]), line
    assert left_out(".git/config") and not left_out("moe/data/meta.py")
    needed = [
        path for part in ("moe", "convert", "yamls", "requirements") for path in (ROOT / part).rglob("*.[pysct]*")
    ]
    needed = [str(path.relative_to(ROOT)) for path in needed if "__pycache__" not in path.parts]
    assert len(needed) > 300 and not [path for path in needed if left_out(path)]


def test_what_the_image_is_made_of_is_there() -> None:
    text = (ROOT / "recipes/Dockerfile").read_text()
    assert (ROOT / re.search(r"--constraints (\S+)", text)[1]).is_file()  # type: ignore[index]
    extras = re.search(r"-e '\.\[(.+?)\]'", text)[1].split(",")  # type: ignore[index]
    assert all(re.search(rf'^        "{extra}": \[', (ROOT / "setup.py").read_text(), re.M) for extra in extras)
    assert re.search(r"^USER [1-9]", text, re.M), "not root"
    for config in re.findall(r"yamls/\S+\.yaml", text):
        assert (ROOT / config).is_file()


def test_the_kubernetes_recipe_is_valid_by_the_apis_schemas() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    parts = [
        part
        for file in sorted((ROOT / "recipes/kubernetes").glob("*.yaml"))
        for part in yaml.safe_load_all(file.read_text())
    ]
    assert [part["kind"] for part in parts] == ["Service", "Job"]
    for part in parts:
        kubernetes_validate.validate(part, kubernetes_validate.latest_version(), strict=True)
    parts[1]["spec"]["podFailurePolicy"]["rules"][0]["acton"] = "Ignore"
    with pytest.raises(kubernetes_validate.ValidationError, match="'acton' was unexpected"):
        kubernetes_validate.validate(parts[1], kubernetes_validate.latest_version(), strict=True)


def test_the_skypilot_recipe_is_valid_by_its_schema() -> None:
    schemas = pytest.importorskip("sky.utils.schemas")
    import jsonschema

    task = yaml.safe_load((ROOT / "recipes/skypilot.yaml").read_text())
    jsonschema.validate(task, schemas.get_task_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**task, "resorces": {}}, schemas.get_task_schema())


def test_the_kubernetes_job_resumes_on_75_and_grants_what_a_save_takes() -> None:
    (job,) = [
        part
        for file in (ROOT / "recipes/kubernetes").glob("*.yaml")
        for part in yaml.safe_load_all(file.read_text())
        if part["kind"] == "Job"
    ]
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    rules = spec["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    failing = next(rule["onExitCodes"]["values"] for rule in rules if rule["action"] == "FailJob")
    assert failing == [1, 2]
    assert any(rule["action"] == "Ignore" and 75 in rule["onExitCodes"]["values"] for rule in rules[1:])
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "what podFailurePolicy asks for"
    words = " ".join(pod["containers"][0]["command"] + pod["containers"][0].get("args", []))
    grace = int(re.search(r"stop_grace=(\d+)s", words)[1])  # type: ignore[index]
    assert pod["terminationGracePeriodSeconds"] > grace + 5
    shared = next(volume for volume in pod["volumes"] if volume.get("emptyDir", {}).get("medium") == "Memory")
    assert {"name": shared["name"], "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
