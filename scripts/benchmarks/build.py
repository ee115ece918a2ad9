"""Programs and the shared library that the parts measure, compiled as setup.py compiles the extension; the machine."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gtcbmuf.errors import SettingsError

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-pthread", "-DNDEBUG", f"-I{ROOT / 'csrc'}")
CODEC = "csrc/codec/*.c"


def compiler() -> list[str]:
    """CC, or cc, or gcc; SettingsError if there is none."""
    chosen = shlex.split(os.environ.get("CC", "")) or ["cc" if shutil.which("cc") else "gcc"]
    if shutil.which(chosen[0]) is None:
        raise SettingsError("needs a C compiler (Debian: apt install gcc; or set CC)")
    return chosen


def compile_to(target: Path, *patterns: str, flags: tuple[str, ...] = ()) -> Path:
    """patterns: sources, from the project's folder. SettingsError with the compiler's output if it fails."""
    sources = sorted(path for pattern in patterns for path in glob(str(ROOT / pattern)))
    line = [*compiler(), *FLAGS, *flags, *sources, "-lm", "-o", str(target)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SettingsError(f"{' '.join(line)}\n{done.stderr[-3000:]}")
    return target


def compiler_line() -> str:
    """What the compiler says of itself: "gcc (Debian 12.2.0-14) 12.2.0"; a name in place of cc."""
    said = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=False)
    line = (said.stdout.splitlines() or ["unknown"])[0]
    return line.replace("cc ", "gcc ", 1) if line.startswith("cc ") else line


def has_glibc() -> bool:
    """Whether this Python runs on the GNU C library."""
    return platform.libc_ver()[0] == "glibc"


def cpu() -> str:
    """The model of the processor, as the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fact = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = fact.get("model name", platform.machine())
    return f"{name} (family {fact['cpu family']}, model {fact['model']})" if "cpu family" in fact else name


def packages(names: list[str]) -> dict[str, str | None]:
    """Versions of what is installed; None for what is not."""

    def found(name):
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: found(name) for name in names}


def machine(variant: str) -> dict:
    """Of a file of results. load: processes that wanted a core in the last minute, as the run began."""
    return {"cpu": cpu(), "cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1),
            "system": platform.system(), "variant": variant, "compiler": compiler_line(),
            "python": platform.python_version()}  # fmt: skip
