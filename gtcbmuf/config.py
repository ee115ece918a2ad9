"""The environment, read once and in this place only: the C core never calls getenv.

Each setting is a row of SETTINGS; `gtcbmuf doctor` and the README print the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gtcbmuf.errors import SettingsError

PREFIX = "GTCBMUF_"


@dataclass(frozen=True)
class Config:
    """What the environment asks for; None where it leaves the choice to the library."""

    variant: str | None = None
    backend: str | None = None
    threads: int | None = None
    timeout_seconds: float = 600.0
    stall_seconds: float = 60.0
    progress_thread: bool | None = None
    shared_memory: bool = True
    require_native: bool = False
    cuda: bool | None = None
    cuda_mpi: bool | None = None
    on_failure: str = "end"


@dataclass(frozen=True)
class Setting:
    field: str
    parse: Callable[[str], Any]
    allowed: str
    default: str
    meaning: str

    @property
    def name(self) -> str:
        return PREFIX + self.field.upper()


def _word(text: str) -> str:
    if not text.replace("_", "").isalnum():
        raise ValueError
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return parse


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _flag(text: str) -> bool:
    return {"0": False, "1": True}[text]


SETTINGS = (
    Setting("variant", _word, "a variant that `gtcbmuf doctor` lists as supported",
            "the fastest that this CPU supports",
            "Which build of the C codec to use; the bytes are the same from each."),
    Setting("backend", _one_of("native", "portable"), "native or portable", "native",
            "The codec for Python: the C extension, or numba and NumPy. "
            "Exchanges over MPI always need the extension."),
    Setting("threads", _count, "an integer, at least 1",
            "usable cores divided by ranks on this host; at least 1, at most 4",
            "Threads that encode and decode in each process."),
    Setting("timeout_seconds", _seconds, "a number greater than 0", "600",
            "How long to wait for the other ranks before a DeadlineError says who is missing."),
    Setting("stall_seconds", _seconds, "a number greater than 0", "60",
            "How long a rank waits before it says for whom, and where in the program it waits."),
    Setting("progress_thread", _flag, "0 or 1", "1 if MPI offers MPI_THREAD_MULTIPLE, else 0",
            "Exchange in the background, or only while the program waits."),
    Setting("shared_memory", _flag, "0 or 1", "1",
            "Whether ranks on one host read each other's messages where they lie, or MPI carries all. "
            "It takes 8 MiB of /dev/shm for each rank and group of ranks."),
    Setting("require_native", _flag, "0 or 1", "0",
            "For test runs: a missing C extension is a failure where it would be a skip."),
    Setting("on_failure", _one_of("end", "shrink"), "end or shrink", "end",
            "What becomes of the job when a rank dies: it ends, or the others go on (docs/shrink.md). init(on_failure=...) counts first."),
    Setting("cuda_mpi", _flag, "0 or 1", "1 if MPI says that it is CUDA-aware on all ranks, else 0",
            "Whether MPI reads and writes long messages in the GPU's memory, or they go by way of the host's (docs/cuda.md)."),
    Setting("cuda", _flag, "0 or 1", "1 if nvcc is found, else 0",
            "While gtcbmuf is installed: 1 makes a missing CUDA compiler an error, 0 leaves the GPU code out."),
)  # fmt: skip


def read(environ: Mapping[str, str]) -> Config:
    """The configuration in `environ`; SettingsError says what is allowed where it is not sound."""
    by_name = {setting.name: setting for setting in SETTINGS}
    values = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        if name not in by_name:
            raise SettingsError(f"the environment has {name}, which gtcbmuf does not know; "
                              f"it knows {', '.join(by_name)}")  # fmt: skip
        setting, text = by_name[name], environ[name].strip()
        if not text:
            continue  # set but empty: as if it were not set
        try:
            values[setting.field] = setting.parse(text)
        except (ValueError, KeyError):
            raise SettingsError(f"{name}={text!r}: allowed is {setting.allowed}") from None
    return Config(**values)


@lru_cache(maxsize=1)
def current() -> Config:
    """The configuration of this process, read at the first call."""
    return read(os.environ)


def default_threads(local_size: int) -> int:
    """A fair share of the cores that this process may use. More than 4 threads a rank only
    compete with the training itself: memory bandwidth is used up before that."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, min(4, cores // max(1, local_size)))


def markdown_table() -> str:
    """The table that README.md shows; a test compares the two."""
    rows = ["| variable | allowed | default | meaning |", "|---|---|---|---|"]
    rows += [f"| `{s.name}` | {s.allowed} | {s.default} | {s.meaning} |" for s in SETTINGS]
    return "\n".join(rows)
