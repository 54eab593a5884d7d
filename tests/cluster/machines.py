"""Several "machines" on one Linux host: each has network, hostname, processes, shared memory and temporary folder of
its own, by namespaces. Files are shared. Wants root and `ip`, `nsenter` and `unshare` (Debian: iproute2, util-linux).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

TOOLS = ("ip", "nsenter", "unshare", "mount")

# $1: a folder of the machine's own, $2: its name; then the command. TERM for this shell goes on to the command.
BOOT = r"""
folder=$1 name=$2; shift 2
hostname "$name"; mount -t tmpfs tmpfs /dev/shm
mount --bind "$folder/hosts" /etc/hosts; mount --bind "$folder/resolv.conf" /etc/resolv.conf
export TMPDIR=$folder/tmp
"$@" & child=$!
trap 'kill -TERM $child' TERM; trap 'kill -INT $child' INT
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
"""


def missing() -> str | None:
    """Why there can be no machines here; None where there can."""
    if os.getuid() != 0:
        return "machines in namespaces want root"
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"machines in namespaces want {', '.join(lacking)}"
    if subprocess.run(["unshare", "-n", "-m", "-p", "--fork", "true"], capture_output=True).returncode:
        return "this kernel or container allows no new namespaces"
    return None


class Machines:
    """Args:
    folder: of its own; what the machines keep lies there.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.key = os.getpid() % 100_000
        self.net = f"10.77.{self.key % 250}"
        self.names = [f"node{index}" for index in range(count)]

    def address(self, index: int) -> str:
        return f"{self.net}.{10 + index}"

    @property
    def host(self) -> str:
        """The address of this host, as the machines see it."""
        return f"{self.net}.1"

    def _space(self, index: int) -> str:
        return f"moe{self.key}-{index}"

    def up(self) -> None:
        bridge = f"mb{self.key}"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self.host}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        hosts = "127.0.0.1 localhost\n" + "".join(
            f"{self.address(index)} {name}\n" for index, name in enumerate(self.names)
        )
        for index in range(self.count):
            space, cable = self._space(index), f"mv{self.key}-{index}"
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", bridge)
            _ip("link", "set", cable, "up")
            _ip("-n", space, "addr", "add", f"{self.address(index)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")
            own = self.folder / self.names[index]
            (own / "tmp").mkdir(parents=True)
            (own / "hosts").write_text(f"{hosts}{self.host} {os.uname().nodename}\n")
            (own / "resolv.conf").write_text("options timeout:1 attempts:1\n")  # or a look-up waits for a name server

    def down(self) -> None:
        for index in range(self.count):
            _ip("netns", "del", self._space(index), check=False)
        _ip("link", "del", f"mb{self.key}", check=False)

    def cut(self, index: int, *, cut: bool = True) -> None:
        """The machine's cable."""
        _ip("link", "set", f"mv{self.key}-{index}", "down" if cut else "up")

    def start(
        self, index: int, command: Sequence[str], log: Path, *, cwd: Path | None = None, **env: str
    ) -> subprocess.Popen:
        """Kill -9 of it ends all that runs on the machine; TERM goes to the command."""
        line = ["nsenter", f"--net=/run/netns/{self._space(index)}", "unshare", "-u", "-i", "-m", "-p", "--fork"]
        line += ["--mount-proc", "--kill-child", "bash", "-c", BOOT, "machine"]
        line += [str(self.folder / self.names[index]), self.names[index], *command]
        with open(log, "ab") as file:
            return subprocess.Popen(
                line, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, env={**os.environ, **env}, start_new_session=True
            )

    @staticmethod
    def term(process: subprocess.Popen) -> None:
        """SIGTERM for the command on the machine: `unshare` itself passes nothing on."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)

    @staticmethod
    def kill(process: subprocess.Popen) -> None:
        """As by a power cut, except that the kernel still closes the connections."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def machines(folder: Path, count: int) -> Iterator[Machines]:
    made = Machines(folder, count)
    made.up()
    try:
        yield made
    finally:
        made.down()


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, text=True)
