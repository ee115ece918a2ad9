"""A real SLURM on this machine: slurmctld, and a slurmd for each of some virtual nodes, all of them in one folder.

Nothing of the machine's own settings is used or changed: munge has its own key and socket, every daemon a free port.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "libpmix-dev")  # -dev: the plugin opens libpmix.so
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged")
CORES = 2  # of each node, as SLURM counts them
GPUS = ("/dev/null", "/dev/zero")  # of each node: SLURM wants to see devices

SLURM_CONF = """
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} RealMemory=2000 Gres=gpu:{gpus}"


def missing() -> str | None:
    """Why there can be no cluster here; None: there can. As root, Debian's packages are installed if need be."""
    if os.geteuid() != 0:
        return "needs root, for the daemons of SLURM"
    if all(map(shutil.which, PROGRAMS)):
        return None
    if not shutil.which("apt-get"):
        return f"needs SLURM ({', '.join(PROGRAMS)}), and there is no apt-get to install it"
    install = f"apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends {' '.join(PACKAGES)}"
    done = subprocess.run(install, shell=True, check=False, text=True, timeout=600,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    if done.returncode:
        return f"needs SLURM, and apt-get could not install it: {done.stdout.splitlines()[-1:]}"
    return None


class Cluster:
    """A context: `size` nodes n1, n2, …, each with CORES cores and what passes for GPUS."""

    def __init__(self, folder: Path, size: int = 4):
        self.folder, self.names = folder, [f"n{i + 1}" for i in range(size)]
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self):
        host, ports = socket.gethostname().split(".")[0], _free_ports(1 + len(self.names))
        nodes = [NODE.format(name=name, host=host, port=port, cores=CORES, gpus=len(GPUS))
                 for name, port in zip(self.names, ports[1:], strict=True)]  # fmt: skip
        text = SLURM_CONF.format(host=host, port=ports[0], folder=self.folder, nodes="\n".join(nodes))
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in GPUS))
        for name in ("state", *(f"{what}-{name}" for what in ("spool", "tmp") for name in self.names)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        try:
            files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
            self._start("munged", "--foreground", "--force",
                        *(f"--{what}={self.folder}/munge.{name}" for what, name in files.items()))  # fmt: skip
            self.until("munge", lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D")
            for name in self.names:
                self._start("slurmd", "-D", "-N", name)
            self.until("nodes", lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D") == str(len(self.names)), 30)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, *command: str) -> None:
        log = open(self.folder / f"{command[0]}-{len(self._daemons)}.out", "wb")
        self._daemons.append(subprocess.Popen(command, env=self.environ, stdin=subprocess.DEVNULL, stdout=log,
                                              stderr=subprocess.STDOUT, start_new_session=True))  # not for a Ctrl-C
        log.close()

    def __exit__(self, *_) -> None:
        if len(self._daemons) > 1 and self._daemons[1].poll() is None:
            for job in self.ask("squeue", "-h", "-o", "%i").split():
                self.ask("scancel", job)
            try:
                self.until("end of jobs", lambda: not self.ask("squeue", "-h"), 40)
            except AssertionError as error:
                print(error)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def processes_on(self, node: str) -> list[int]:
        """What jobs run on a node, and its slurmd."""
        found = [self._daemons[2 + self.names.index(node)].pid]
        marks = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.environ['SLURM_CONF']}".encode()}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                if marks <= set((process / "environ").read_bytes().split(b"\0")):
                    found.append(int(process.name))
        return found

    # -- as a user --------------------------------------------------------------------------------------

    def ask(self, *command: str, **options) -> str:
        """What a SLURM command prints; "" while the controller does not answer."""
        done = subprocess.run(command, env=self.environ, check=False, text=True, timeout=60,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)  # fmt: skip
        return done.stdout.strip() if done.returncode == 0 else ""

    def until(self, what: str, true, seconds: float = 120) -> None:
        """Wait for true(); AssertionError with the controller's log if it does not come."""
        end = time.monotonic() + seconds
        while not true():
            alive = all(daemon.poll() is None for daemon in self._daemons)
            if time.monotonic() > end or not alive:
                logs = [f"{log.name}: {log.read_text()[-1200:]}" for log in sorted(self.folder.glob("*.out"))]
                raise AssertionError("\n".join([f"{what}: not after {seconds} s, or a daemon has ended", *logs,
                                                self.ask("squeue", "-l")]))  # fmt: skip
            time.sleep(0.05)

    def submit(self, folder: Path, *arguments: str, **environ: str) -> str:
        """sbatch; the number of the job."""
        done = subprocess.run(["sbatch", "--parsable", *arguments], cwd=folder, env={**self.environ, **environ}, check=False,
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, Restarts, ExitCode, Reason, …"""
        text = self.ask("scontrol", "show", "-o", "job", number)
        return dict(field.split("=", 1) for field in text.split() if "=" in field)

    def until_state(self, number: str, *states: str, seconds: float = 120) -> dict[str, str]:
        self.until(f"job {number} {states}", lambda: self.job(number).get("JobState") in states, seconds)
        return self.job(number)

    def until_requeued(self, number: str, restarts: int) -> None:
        """Wait until the job has been put back into the queue so often."""
        self.until(f"start {restarts} of job {number}",
                   lambda: int(self.job(number).get("Restarts", 0)) >= restarts)  # fmt: skip
        self.until_state(number, "PENDING")

    def start_again(self, number: str) -> None:
        """Spare a requeued job the two minutes that it waits in the queue, when no node has anything left of it.

        That is what they are for: a slurmd that is still ending the steps of one start (it was hung, its node is back) kills
        those of the next, which have the same numbers.
        """
        self.until(f"end of the steps of job {number}", lambda: not list(self.folder.glob(f"spool-*/*_{number}.*")))
        # Not at once: slurmd looks once a second whether they have ended, and tells starts apart by the second.
        self.ask("scontrol", "update", f"JobId={number}", "StartTime=now+3")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
