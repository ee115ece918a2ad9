"""Builds gtcbmuf._core. No MPI is needed: its functions are looked up at run time (csrc/transport)."""
import os
import platform
import shutil
import sys
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
        super().build_extension(ext)


def extension():
    import nanobind

    here = os.path.dirname(os.path.abspath(__file__))
    os.chdir(here)
    bind = nanobind.source_dir()
    sources = sorted(glob("csrc/codec/*.c") + glob("csrc/transport/*.c") + glob("csrc/exchange/*.c")
                     + glob("csrc/binding/*.cpp"))
    headers = sorted(glob("csrc/**/*.h", recursive=True))
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


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExt})
