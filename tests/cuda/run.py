"""Compiles the kernels of csrc/cuda against the emulation beside it, and runs the C tests: `python tests/cuda/run.py [test ...]`.

CC and CXX choose the compilers (default: cc, c++). No GPU and no CUDA are needed.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
COMMON = ["-g", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-unused-function", "-fPIC", "-ffp-contract=off",
          "-U_FORTIFY_SOURCE", "-pthread", "-I", str(CSRC)]
C_FLAGS = ["-std=gnu11"]
KERNEL_FLAGS = ["-std=c++17", "-x", "c++", "-Wno-unknown-pragmas", "-include", str(HERE / "emulation.h")]
# No pointer is checked for alignment or bounds by the processor: let the compiler do it.
CHECKED = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
SMALL = ["-DGTCB_CUDA_THREADS=128", "-DGTCB_CUDA_CHUNK=4096"]
LARGE = ["-DGTCB_CUDA_THREADS=512", "-DGTCB_CUDA_CHUNK=32768"]

# name: (source, arguments, flags of the kernels)
TESTS = {
    "kernels": ("test_kernels.c", ["60", "1"], []),
    "kernels_small": ("test_kernels.c", ["60", "2"], SMALL),
    "wide": ("test_wide.cpp", [], []),
    "kernels_checked": ("test_kernels.c", ["600", "3"], CHECKED),
    "kernels_large": ("test_kernels.c", ["300", "4"], LARGE),
    "kernels_long": ("test_kernels.c", ["1500", "5"], SMALL),
}
SLOW = {"kernels_checked", "kernels_large", "kernels_long"}  # minutes


def compilers():
    return shlex.split(os.environ.get("CC", "cc")), shlex.split(os.environ.get("CXX", "c++"))


def compilers_are_here():
    return all(shutil.which(command[0]) for command in compilers())


def fingerprint():
    """Of all that the module is made of."""
    import nanobind

    facts = hashlib.sha256(repr((compilers(), COMMON, KERNEL_FLAGS, nanobind.__version__, sys.version)).encode())
    for path in sorted([*CSRC.rglob("*.*"), *HERE.iterdir(), *(HERE.parent / "codec").iterdir()]):
        if path.is_file():
            facts.update(path.name.encode() + path.read_bytes())
    return facts.hexdigest()[:16]


class Builder:
    """Builds in a directory of its own; the codec once, the kernels once for each set of flags."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self._codec, self._kernels = None, {}

    def _compile_all(self, sources, command, stem):
        def one(source):
            target = self.directory / f"{source.stem}-{stem}.o"
            subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
            return target

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, sources))

    def codec(self):
        if self._codec is None:
            sources = [*sorted((CSRC / "codec").glob("*.c")), HERE.parent / "codec" / "oracle.c"]
            self._codec = self._compile_all(sources, [*compilers()[0], *COMMON, *C_FLAGS], "codec")
        return self._codec

    def kernels(self, flags):
        key = tuple(flags)
        if key not in self._kernels:
            sources = [*sorted((CSRC / "cuda").glob("*.cu")), HERE / "emulation.cpp"]
            command = [*compilers()[1], *COMMON, *KERNEL_FLAGS, *flags]
            self._kernels[key] = self._compile_all(sources, command, f"emulated{len(self._kernels)}")
        return self._kernels[key]

    def program(self, source, flags):
        target = self.directory / f"{Path(source).stem}-{len(self._kernels)}"
        objects = [*self.codec(), *self.kernels(flags)]
        kind = C_FLAGS if source.endswith(".c") else KERNEL_FLAGS
        compiler = compilers()[source.endswith(".cpp")]
        subprocess.run([*compiler, *COMMON, *kind, "-c", str(HERE / source), "-o", f"{target}.o"], check=True)
        subprocess.run([*compilers()[1], *flags, f"{target}.o", *map(str, objects), "-lm", "-pthread", "-o", str(target)],
                       check=True)  # fmt: skip
        return target

    def module(self):
        """The path of emulated_cuda, the Python module that stands in for gtcbmuf._core.cuda."""
        import nanobind

        bind = Path(nanobind.source_dir())
        includes = [f"-I{path}" for path in (sysconfig.get_paths()["include"], nanobind.include_dir(), bind,
                                             bind.parent / "ext" / "robin_map" / "include")]  # fmt: skip
        flags = ["-std=c++17", "-O0", "-w", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing",
                 "-DGTCB_CUDA", "-DNB_COMPACT_ASSERTIONS",
                 "-DNB_DOMAIN=emulated",  # its types are not those of gtcbmuf._core
                 "-I", str(CSRC), *includes]  # fmt: skip
        sources = [HERE / "module.cpp", CSRC / "binding" / "nanobind.cpp"]
        objects = self._compile_all(sources, [*compilers()[1], *flags], "module")
        target = self.directory / f"emulated_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
        subprocess.run([*compilers()[1], "-shared", *map(str, [*objects, *self.codec(), *self.kernels([])]),
                        "-lm", "-pthread", "-o", str(target)], check=True)  # fmt: skip
        return target

    def run(self, name):
        """Builds and runs one test; returns its output, raises CalledProcessError if it fails."""
        source, arguments, flags = TESTS[name]
        return subprocess.run([self.program(source, flags), *arguments], check=True, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout  # fmt: skip


def main(names):
    unknown = set(names) - set(TESTS)
    if unknown:
        raise SystemExit(f"unknown tests {sorted(unknown)}; there are {', '.join(TESTS)}")
    with tempfile.TemporaryDirectory() as directory:
        builder = Builder(directory)
        for name in names or TESTS:
            try:
                print(f"{name}: {builder.run(name).rstrip()}", flush=True)
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"{name} failed ({error.returncode}):\n{error.stdout or ''}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
