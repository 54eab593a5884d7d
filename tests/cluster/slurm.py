"""A Slurm of two nodes on one host: the real slurmctld, slurmd and munged, the nodes in namespaces (machines.py).

Wants Debian's packages: apt-get install slurm-wlm munge.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.cluster.machines import Machines

CONF = """
ClusterName=moe
SlurmctldHost={hostname}({host})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
TaskProlog={folder}/prolog
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=30
MinJobAge=3000
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=low Nodes=node[0-1] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=node[0-1] Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
# each node has its own temporary folder, as on machines of one's own
PROLOG = '#!/bin/bash\necho "export TMPDIR={machines}/$(hostname)/tmp"\n'


def missing() -> str | None:
    if lacking := [tool for tool in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(tool) is None]:
        return f"Slurm is not installed ({', '.join(lacking)}): apt-get install slurm-wlm munge"
    return None


class Slurm:
    def __init__(self, folder: Path, machines: Machines) -> None:
        self.folder, self.machines = folder, machines
        self.daemons: dict[str, subprocess.Popen] = {}
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def up(self) -> None:
        self.folder.mkdir(mode=0o755)
        (self.folder / "state").mkdir()
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={self.machines.address(index)} CPUs=2 RealMemory=4000 State=UNKNOWN"
            for index, name in enumerate(self.machines.names)
        )
        (self.folder / "slurm.conf").write_text(
            CONF.format(folder=self.folder, hostname=os.uname().nodename, host=self.machines.host, nodes=nodes)
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        (self.folder / "prolog").write_text(PROLOG.format(machines=self.machines.folder))
        (self.folder / "prolog").chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._daemon(
            "munged",
            [
                *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket"),
                *(f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log"),
                *(f"--seed-file={self.folder}/munge.seed", "--num-threads=2"),
            ],
        )
        time.sleep(2)
        self._daemon("slurmctld", ["slurmctld", "-D", "-f", str(self.folder / "slurm.conf")])
        for index in range(self.machines.count):
            self.node_up(index)
        end = time.monotonic() + 60
        while self("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D") != str(self.machines.count):
            assert time.monotonic() < end, f"no idle nodes: {self('sinfo', '-N')}; see {self.folder}"
            time.sleep(1)

    def _daemon(self, name: str, command: list[str]) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self.env)

    def node_up(self, index: int) -> None:
        name = self.machines.names[index]
        (self.folder / f"spool.{name}").mkdir(exist_ok=True)
        command = ["slurmd", "-D", "-N", name, "-f", str(self.folder / "slurm.conf")]
        env = {"SLURM_CONF": self.env["SLURM_CONF"]}
        self.daemons[name] = self.machines.start(index, command, self.folder / f"{name}.out", **env)

    def node_lost(self, index: int) -> None:
        Machines.kill(self.daemons.pop(self.machines.names[index]))

    def __call__(self, *command: str, **env: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env={**self.env, **env}, timeout=60)
        return (done.stdout + done.stderr).strip()

    def state(self, job: str) -> str:
        return self("squeue", "-h", "-j", job, "-t", "all", "-o", "%T")

    def down(self) -> None:
        for name, daemon in list(self.daemons.items()):
            if name.startswith("node"):
                Machines.kill(daemon)
        for name in ("slurmctld", "munged"):
            if name in self.daemons:
                self.daemons[name].terminate()
                self.daemons[name].wait(30)
