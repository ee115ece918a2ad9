"""Builds gtcbmuf._core. No MPI is needed: its functions are looked up at run time (csrc/transport)."""
import os
import platform
import shutil
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# MPI handles are pointers in one MPI and ints in another; both travel as intptr_t in an integer register.
# These are the ABIs for which that is known to hold; the messages are little-endian.
ARCHITECTURES = ("x86_64", "amd64", "aarch64", "arm64", "ppc64le", "riscv64")
COMMON = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", "-Wall"]
C_FLAGS = COMMON + ["-std=gnu11", "-Wextra", "-Wshadow", "-Wstrict-prototypes"]
CXX_FLAGS = COMMON + ["-std=c++17", "-fno-strict-aliasing"]


def check_architecture():
    machine = platform.machine().lower()
    if machine not in ARCHITECTURES or sys.byteorder != "little" or sys.maxsize < 2**32:
        raise SystemExit(
            f"gtcbmuf._core is for 64-bit little-endian {', '.join(ARCHITECTURES)}; this Python runs on "
            f"{machine} ({sys.byteorder}-endian). Its exchange passes MPI handles through integer registers, "
            "which has not been verified here."
        )


def newest(paths):
    return max(os.path.getmtime(path) for path in paths)


def nanobind_header():
    """Installed anew with each version of nanobind; not in `depends`, which may only name the project's own files."""
    import nanobind

    return os.path.join(nanobind.include_dir(), "nanobind", "nanobind.h")


# -- CUDA: csrc/cuda by nvcc, if there is one. GTCBMUF_CUDA=1 makes its absence an error, 0 leaves it out ----------------

Cuda = namedtuple("Cuda", "nvcc library")  # the compiler; the folder of libcudart_static.a
KERNEL_FLAGS = ["-O3", "-std=c++17", "-fmad=false", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden",
                "-DNDEBUG", "-Icsrc", "--threads", "0"]  # fmt: skip
KERNEL_TARGETS = ["-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90,code=sm_90",
                  "-gencode", "arch=compute_90,code=compute_90"]  # fmt: skip  # the last one is PTX, for newer ones


def nvcc_candidates():
    """NVCC, CUDA_HOME, the PATH, the usual place, and PyPI's nvidia-cuda-nvcc beside this Python."""
    yield os.environ.get("NVCC")
    yield os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    yield "nvcc"
    yield "/usr/local/cuda/bin/nvcc"
    for folder in sys.path:
        yield from sorted(glob(os.path.join(folder, "nvidia", "*", "bin", "nvcc")), reverse=True)


def cudart_folder(nvcc):
    """Of the static runtime that belongs to this nvcc; it says itself where its toolkit is (TOP)."""
    dry = subprocess.run([nvcc, "--dryrun", "-c", "none.cu"], text=True, capture_output=True, check=False)
    tops = [line.split("TOP=", 1)[1].strip() for line in dry.stderr.splitlines() if "TOP=" in line]
    roots = [*tops, os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))]
    roots += sorted(glob(os.path.join(os.path.dirname(roots[-1]), "*")))  # PyPI: nvidia/cuda_nvcc, nvidia/cuda_runtime
    for root in roots:
        for place in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            if os.path.exists(os.path.join(root, place, "libcudart_static.a")):
                return os.path.join(root, place)
    return None


def find_cuda():
    """What to compile the kernels with; None: they are left out."""
    wanted = os.environ.get("GTCBMUF_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"GTCBMUF_CUDA={wanted!r}: allowed is 1 (CUDA must be built) or 0 (leave it out); "
                         "unset: it is built if nvcc is found")  # fmt: skip
    if wanted == "0":
        return None
    missing = "nvcc was not found (set NVCC or CUDA_HOME, or pip install nvidia-cuda-nvcc)"
    for candidate in filter(None, nvcc_candidates()):
        if (nvcc := shutil.which(candidate)) is None:
            continue
        if (folder := cudart_folder(nvcc)) is not None:
            return Cuda(nvcc, folder)
        missing = f"{nvcc} has no libcudart_static.a beside it (pip install nvidia-cuda-runtime)"
    if wanted == "1":
        raise SystemExit(f"GTCBMUF_CUDA=1, but {missing}")
    return None


def compile_kernels(cuda, folder, depends, force):
    """Objects of csrc/cuda/*.cu; one is kept if nothing that it may include is newer."""
    os.makedirs(folder, exist_ok=True)

    def one(source):
        target = os.path.join(folder, os.path.basename(source) + ".o")
        if force or not os.path.exists(target) or os.path.getmtime(target) <= newest([source, *depends]):
            command = [cuda.nvcc, *KERNEL_FLAGS, *KERNEL_TARGETS, "-c", source, "-o", target]
            if subprocess.run(command, check=False).returncode != 0:
                raise SystemExit(f"{cuda.nvcc} cannot compile {source} (see above); GTCBMUF_CUDA=0 installs gtcbmuf without CUDA")
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, sorted(glob("csrc/cuda/*.cu"))))


class BuildExt(build_ext):
    """C flags for C, C++ flags for C++; objects in parallel; an object is kept if nothing it may include is newer."""

    def build_extension(self, ext):
        compiler, compile_one = self.compiler, self.compiler._compile
        missing = [command[0] for command in (compiler.compiler_so, compiler.compiler_so_cxx)
                   if shutil.which(command[0]) is None]
        if missing:
            ext.optional = True  # the portable codec and the simulator work without; the exchange says what it lacks
            raise CompileError(f"no compiler ({', '.join(missing)}): gtcbmuf is installed WITHOUT gtcbmuf._core")
        check_architecture()

        def compile_all(sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None,
                        extra_postargs=None, depends=None):
            macros, objects, _, pp, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs)
            arguments = compiler._get_cc_args(pp, debug, extra_preargs)

            def one(item):
                target, (source, suffix) = item
                includes = [source, *ext.depends, nanobind_header()]
                fresh = os.path.exists(target) and os.path.getmtime(target) > newest(includes)
                if self.force or not fresh:
                    flags = C_FLAGS if suffix == ".c" else CXX_FLAGS
                    compile_one(target, source, suffix, arguments, flags, pp)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(one, build.items()))
            return objects

        compiler.compile = compile_all
        if (cuda := find_cuda()) is not None:
            ext.define_macros.append(("GTCB_CUDA", None))
            ext.extra_objects += compile_kernels(cuda, os.path.join(self.build_temp, "csrc", "cuda"), ext.depends, self.force)
            ext.library_dirs.append(cuda.library)
            ext.libraries += ["cudart_static", "rt"]
        super().build_extension(ext)


def extension():
    import nanobind

    here = os.path.dirname(os.path.abspath(__file__))
    os.chdir(here)
    bind = nanobind.source_dir()
    sources = sorted(glob("csrc/codec/*.c") + glob("csrc/transport/*.c") + glob("csrc/exchange/*.c")
                     + glob("csrc/binding/*.cpp"))
    headers = sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.cuh", recursive=True))
    return Extension(
        "gtcbmuf._core",
        sources=sources,
        depends=headers + ["setup.py"],
        include_dirs=["csrc", nanobind.include_dir(), bind, os.path.join(bind, "..", "ext", "robin_map", "include")],
        define_macros=[("NDEBUG", None), ("NB_COMPACT_ASSERTIONS", None)],
        libraries=["dl", "m"],
        extra_link_args=["-pthread", *(["-Wl,-s"] if sys.platform.startswith("linux") else [])],
        language="c++",
    )


if __name__ == "__main__":  # for setuptools it is; tests import it
    setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExt})
