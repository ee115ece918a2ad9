"""What doctor finds out about this process without talking to any other."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from gtcbmuf import __version__, config
from gtcbmuf.backends import native_is_built

PACKAGES = ("numpy", "numba", "mpi4py", "torch")

Lines = list[tuple[str, str]]


def software() -> Lines:
    return [
        ("gtcbmuf", f"{__version__} in {Path(__file__).parents[1]}"),
        ("Python", f"{platform.python_version()}, {sys.executable}"),
        *((name, version_of(name)) for name in PACKAGES),
    ]


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def mpi(MPI, launch) -> Lines:
    name, version = MPI.get_vendor()
    levels = {MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE", MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
              MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
              MPI.THREAD_MULTIPLE: "MPI_THREAD_MULTIPLE"}  # fmt: skip
    return [
        ("library", f"{name} {'.'.join(map(str, version))}, {loaded_libmpi()}"),
        ("launcher", launch.text + (f", {launch.size} processes" if launch.size > 1 else "")),
        ("thread level", levels[MPI.Query_thread()]),
    ]


def loaded_libmpi() -> str:
    """The file of the MPI library in this process, as Linux tells it."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return "its file is not known here"
    mapped = {line.split(maxsplit=5)[-1] for line in lines}
    found = sorted(path for path in mapped if os.path.basename(path).startswith("libmpi"))
    return ", ".join(found) or "its file is not known here"


def codec(settings: config.Config) -> tuple[Lines, list[str]]:
    """Lines for the table, and problems."""
    if not native_is_built():
        problem = (
            "the extension gtcbmuf._core is not built: no exchange over MPI is possible. Install "
            "gtcbmuf again with a C and a C++ compiler at hand: pip install --force-reinstall "
            "--no-cache-dir gtcbmuf"
        )
        return [("back end", "portable (numba, NumPy)")], [problem]
    try:
        from gtcbmuf.backends import native

        variants = native.variants()
        native.NativeCodec(settings.variant)  # SettingsError: no such variant here
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, say so and go on
        return [("back end", "native, but it does not work")], [str(error)]
    supported = [name for name, usable in variants if usable]
    return [
        ("back end", settings.backend or "native"),
        ("variants compiled", ", ".join(name for name, _ in variants)),
        ("variants supported", f"{', '.join(supported)} (in use: {chosen_variant(settings)})"),
        ("CUDA", cuda()),
    ], []


def cuda() -> str:
    """Whether the GPU code is in the extension, and what it finds here."""
    from gtcbmuf.backends import cuda as backend

    if not backend.is_built():
        return (
            "not built: no nvcc was found when gtcbmuf was installed, or GTCBMUF_CUDA=0; install again with "
            "nvcc at hand and GTCBMUF_CUDA=1. Gradients on a GPU are copied to the host"
        )
    devices, why = backend.devices()
    if not devices:
        return f"built; no GPU is usable here: {why}"
    return "built; " + ", ".join(f"{i}: {facts['name']}" for i, facts in enumerate(devices))


def chosen_variant(settings: config.Config) -> str:
    from gtcbmuf import _core

    return settings.variant or _core.best_variant()


def environment(settings: config.Config) -> Lines:
    """The GTCBMUF_* variables that say something other than the default."""
    default = config.Config()
    set_here = [(s.name, os.environ.get(s.name, "")) for s in config.SETTINGS
                if getattr(settings, s.field) != getattr(default, s.field)]  # fmt: skip
    return set_here or [("GTCBMUF_*", "none is set: defaults")]


def usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
