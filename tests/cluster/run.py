"""`make cluster`: two machines in namespaces of this host, with a real Slurm, hurt in each way of docs/cluster.md.

    python -m tests.cluster.run --folder /tmp/moe-cluster [--only NAME ...] [--write]

Each scenario prints what was done and what came of it; --write puts the output into docs/cluster.md. Root is needed,
and for Slurm Debian's packages; without them a sentence says so, and the code is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster import machines as rig
from tests.cluster import slurm as slurm_rig
from tests.cluster.machines import Machines
from tests.cluster.pair import ROOT, Cluster, Pair, each_step_once, until
from tests.cluster.slurm import Slurm
from tests.tiny import tiny_config, write_config, write_text, write_tokenizer

LONG = {
    "max_duration": "100000ba",
    "scheduler": {"t_warmup": "1ba", "name": "constant_with_warmup"},
    "save_interval": "20ba",
    "eval_data": None,
    "num_workers": 0,
}
LINES: list[str] = []


def tell(line: str) -> None:
    LINES.append(line)
    print(line, flush=True)


def state(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["state"])


def term(cluster: Cluster) -> None:
    """SIGTERM for one launcher; then both machines resume."""
    run = cluster.folder / "runs/term"
    pair = Pair(cluster, "term", f"save_folder={run}")
    pair.until("step 30/")
    Machines.term(pair.processes[1])
    codes, seconds = pair.end()
    assert codes == [75, 75] and state(run) == "stopped", pair.said()
    tell(f"term: SIGTERM to machine 1's launcher: both end after {seconds:.1f} s, codes {codes}")
    tell(f"      {pair.line('stopped by')}")
    pair = Pair(cluster, "term-again", f"save_folder={run}", "max_duration=120ba")
    codes, _ = pair.end()
    assert codes == [0, 0], pair.said()[-2000:]
    tell(f"      the same command: {pair.line('resumed from')}; {codes}, {each_step_once(run)} steps")


def kill(cluster: Cluster) -> None:
    """kill -9 of all that runs on machine 1."""
    run = cluster.folder / "runs/kill"
    pair = Pair(cluster, "kill", f"save_folder={run}")
    pair.until("step 30/")
    Machines.kill(pair.processes[1])
    codes, seconds = pair.end()
    assert codes[0] == 75, pair.said()[-3000:]
    tell(f"kill: all processes of machine 1 killed: machine 0 ends after {seconds:.1f} s with {codes[0]}")
    tell(f"      {pair.line('stopped by')}")


def cut(cluster: Cluster) -> None:
    """The cable of machine 1 is pulled: neither side hears anything more."""
    run = cluster.folder / "runs/cut"
    pair = Pair(cluster, "cut", f"save_folder={run}", "stall_timeout=20s")
    pair.until("step 30/")
    cluster.two.cut(1)
    codes, seconds = pair.end()
    cluster.two.cut(1, cut=False)
    assert codes == [75, 75], pair.said()[-3000:]
    tell(f"cut: the network of machine 1 cut, stall_timeout=20s: both end after {seconds:.1f} s, codes {codes}")
    tell(f"      {pair.line('no progress for')[:110]}")


def lonely(cluster: Cluster) -> None:
    """One machine alone: it says who is missing, and ends at SIGTERM."""
    pair = Pair(cluster, "lonely", f"save_folder={cluster.folder}/runs/lonely")
    Machines.kill(pair.processes[1])
    pair.until("missing: node 1")
    Machines.term(pair.processes[0])
    codes, seconds = pair.end()
    assert codes[0] == 75, pair.said()
    tell(f"lonely: {pair.line('missing: node 1')}")
    tell(f"      SIGTERM: ends after {seconds:.1f} s with {codes[0]}")


def local(cluster: Cluster) -> None:
    """save_folder=./ck is another folder on each machine."""
    cwds = [cluster.two.folder / name for name in cluster.two.names]
    pair = Pair(cluster, "local", "save_folder=./ck", cwds=cwds)
    codes, _ = pair.end()
    assert codes == [2, 2] and not any((cwd / "ck").exists() for cwd in cwds), pair.said()
    tell(f"local: save_folder=./ck, a folder of each machine's own: codes {codes}, nothing written")
    tell(f"      {pair.line('error: save_folder')}")


def s3(cluster: Cluster) -> None:
    """No shared files: the run on s3; machine 1 dies and comes back with an empty disk."""
    address = cluster.two.host
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", address, "-p", "5566"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    env = {**keys, "S3_ENDPOINT_URL": f"http://{address}:5566"}
    try:
        make = "import boto3,sys; boto3.client('s3', endpoint_url=sys.argv[1]).create_bucket(Bucket='moe')"

        def made() -> bool:
            command = [sys.executable, "-c", make, env["S3_ENDPOINT_URL"]]
            return subprocess.run(command, env={**os.environ, **env}, capture_output=True).returncode == 0

        until(made, "moto")
        cwds = [cluster.two.folder / name for name in cluster.two.names]
        settings = ["save_folder=s3://moe/runs/s3run", "run_name=s3run"]
        pair = Pair(cluster, "s3", *settings, cwds=cwds, **env)
        pair.until("step 50/")
        Machines.kill(pair.processes[1])
        codes, seconds = pair.end()
        assert codes[0] == 75, pair.said()[-3000:]
        tell(f"s3: no shared files; machine 1 killed: machine 0 ends after {seconds:.1f} s with {codes[0]}")
        for cwd in cwds:
            shutil.rmtree(cwd / "runs", ignore_errors=True)
        pair = Pair(cluster, "s3-again", *settings, "max_duration=160ba", cwds=cwds, **env)
        codes, _ = pair.end()
        assert codes == [0, 0], pair.said()[-3000:]
        tell(f"      both disks emptied, the same command: {pair.line('resumed from')}; {codes}")
        tell(f"      {each_step_once(cwds[0] / 'runs/s3run')} steps, each once")
    finally:
        server.terminate()
        server.wait()


def save(cluster: Cluster) -> None:
    """A save that takes 45 s after SIGTERM, which Composer's launcher kills after 30 s."""
    run, now = cluster.folder / "runs/save", cluster.folder / "slow-now"
    callback = "callbacks=[{class: tests.cluster.slow.Slow}]"
    env = {"SLOW_SAVE": "45", "SLOW_FILE": str(now)}
    pair = Pair(cluster, "save", f"save_folder={run}", callback, "stop_grace=90s", "save_interval=100000ba", **env)
    pair.until("step 30/")
    now.touch()
    Machines.term(pair.processes[0])
    codes, seconds = pair.end()
    now.unlink()
    assert codes == [75, 75] and seconds > 45 and list(run.glob("step-*")), pair.said()[-3000:]
    tell(f"save: a save of 45 s after SIGTERM, stop_grace=90s: complete, both end after {seconds:.1f} s, codes {codes}")
    tell(f"      {pair.line('stopped by')}")


def slurm(cluster: Cluster) -> None:
    """recipes/slurm.sbatch: time limit, preemption, loss of a node, the end."""
    if why := slurm_rig.missing():
        return tell(f"slurm: skipped: {why}")
    rig_folder = cluster.folder / "slurm"
    it = Slurm(rig_folder, cluster.two)
    run, log = cluster.folder / "runs/slurm", cluster.folder / "slurm.log"
    try:
        it.up()
        env = {"PYTHONPATH": str(ROOT), "RANKS": cluster.ranks, "OMP_NUM_THREADS": "1", "GRACE": "30s"}
        env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        submit = [
            "sbatch",
            "--parsable",
            "--gpus-per-node=0",
            "--cpus-per-task=2",
            f"--output={log}",
            "--chdir=" + str(ROOT),
        ]
        submit += ["--time=3", "--signal=TERM@60", "recipes/slurm.sbatch", str(cluster.config), f"save_folder={run}"]
        job = it(*submit, "stall_timeout=60s", **env)
        assert job.isdigit(), job

        def said() -> str:
            return log.read_text(errors="replace") if log.exists() else ""

        def starts() -> int:
            return said().count("  start ")

        def trains(number: int) -> None:
            """Start `number` has come to a step."""

            def does() -> bool:
                assert it.state(job) not in ("FAILED", "COMPLETED"), said()[-4000:]
                return starts() >= number and "\nstep " in said().rpartition("  start ")[2]

            until(does, f"start {number} of job {job}, which is {it.state(job)}; {said()[-500:]}")

        def resumed(what: str, number: int) -> None:
            until(lambda: said().count("slurm.sbatch: requeued") + starts() > 0, what)
            trains(number)
            lines = [line for line in said().splitlines() if "stopped by" in line or "resumed from" in line]
            lines = [line.replace(str(cluster.folder), "...").strip()[:150] for line in lines]
            tell(f"slurm: {what}: start {number} trains; restarts {restarts()}; {' | '.join(lines[-2:])}")

        def restarts() -> str:
            found = it("scontrol", "show", "job", job)
            return found.partition("Restarts=")[2].split()[0]

        trains(1)
        tell(f"slurm: {it('sbatch', '--version')}, two nodes; job {job} trains")
        resumed("time limit of 3 min, TERM 60 s before", 2)
        wanted = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", f"--output={cluster.folder}/high.log"]
        high = it(
            "sbatch", "--parsable", "-p", "high", *wanted, "--chdir=/tmp", "--wrap", "srun hostname; sleep 5", **env
        )
        until(lambda: it.state(high) == "COMPLETED", f"the job of the partition high ({it.state(high)})")
        resumed("preempted by a job of a higher partition", 3)
        time.sleep(3)
        it.node_lost(1)
        until(lambda: it.state(job) in ("PENDING", "COMPLETING", ""), f"the loss of node1: {it.state(job)}")
        it.node_up(1)
        resumed("node1 lost (kill -9 of all on it), and back", 4)
        it("scancel", "--signal=TERM", job)
        resumed("scancel --signal=TERM", 5)
        it("scancel", job)
        until(lambda: it.state(job) == "CANCELLED", "scancel")
        tell(f"      cancelled; {each_step_once(run)} steps in metrics.jsonl, each once")
    finally:
        it.down()


SCENARIOS = {each.__name__: each for each in (lonely, local, term, kill, cut, s3, save, slurm)}


def make_data(folder: Path) -> Path:
    text = write_text(folder / "text.jsonl")
    write_tokenizer(folder / "tokenizer", text)
    command = [sys.executable, str(ROOT / "convert/fineweb_to_mds.py"), "--dataset", str(text), "--seq-len", "32"]
    command += ["--tokenizer", str(folder / "tokenizer"), "--val-fraction", "0.05", "--out", str(folder / "data")]
    subprocess.run([*command, "--workers", "1"], check=True, capture_output=True)
    return write_config(folder / "c.yaml", tiny_config(folder, **LONG, loggers={"tensorboard": None}))


def write_page(lines: list[str]) -> None:
    page = ROOT / "docs/cluster.md"
    before, _, rest = page.read_text().partition("<!-- cluster -->")
    after = rest.partition("<!-- /cluster -->")[2]
    listed = "\n".join(f"    {line}" for line in lines)
    page.write_text(f"{before}<!-- cluster -->\n\n{listed}\n\n<!-- /cluster -->{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="made for this; it must not be there yet")
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--write", action="store_true", help="put the output into docs/cluster.md")
    args = parser.parse_args()
    if why := rig.missing():
        print(f"make cluster: skipped: {why}")
        return 0
    args.folder.mkdir(parents=True)
    args.folder.chmod(0o755)
    make_data(args.folder)
    failed = []
    with rig.machines(args.folder / "machines", 2) as two:
        cluster = Cluster(args.folder, two)
        for name in args.only:
            begun = time.monotonic()
            try:
                SCENARIOS[name](cluster)
            except AssertionError as error:
                failed.append(name)
                tell(f"{name}: FAILED: {error}")
            print(f"({name}: {time.monotonic() - begun:.0f} s)", flush=True)
    verdict = f"{len(args.only) - len(failed)} of {len(args.only)} scenarios as they should be"
    tell(verdict + (f"; failed: {', '.join(failed)}" if failed else ""))
    if args.write:
        write_page(LINES)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
