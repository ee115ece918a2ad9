"""Compiles the C tests of the codec and runs them: `python tests/codec/run.py [test ...]`.

CC chooses the compiler (default: cc). EMULATOR runs the programs under a command, such as qemu-aarch64-static.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CODEC = HERE.parents[1] / "csrc" / "codec"
FLAGS = ["-std=gnu11", "-g", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-unused-function", "-fPIC",
         "-ffp-contract=off", "-pthread"]
PLAIN = ["-O3"]
SANITIZED = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

# name: (source, arguments, flags)
TESTS = {
    "format": ("test_format.c", [], SANITIZED),
    "loops": ("test_loops.c", [], PLAIN),
    "loops_sanitized": ("test_loops.c", [], SANITIZED),
    "spans": ("test_spans.c", [], SANITIZED),
    "variants": ("test_variants.c", ["2"], PLAIN),
    "variants_sanitized": ("test_variants.c", ["1"], SANITIZED),
    "large": ("test_large.c", [], PLAIN),
    "fuzz_validate": ("fuzz_validate.c", ["1000000"], SANITIZED),
}


def compiler():
    return shlex.split(os.environ.get("CC", "cc"))


def compiler_is_here():
    return shutil.which(compiler()[0]) is not None


class Builder:
    """Builds test programs in a directory of its own; the codec once for each set of flags."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self._objects = {}

    def _call(self, *arguments):
        subprocess.run([*compiler(), *FLAGS, *map(str, arguments)], check=True)

    def objects(self, flags):
        key = tuple(flags)
        if key not in self._objects:
            sources = [*sorted(CODEC.glob("*.c")), HERE / "oracle.c"]
            built = []
            for source in sources:
                target = self.directory / f"{source.stem}-{len(self._objects)}.o"
                self._call(*flags, "-c", source, "-o", target)
                built.append(target)
            self._objects[key] = built
        return self._objects[key]

    def program(self, source, flags):
        target = self.directory / f"{Path(source).stem}-{flags[0]}"
        if not target.exists():
            self._call(*flags, HERE / source, *self.objects(flags), "-lm", "-o", target)
        return target

    def run(self, name):
        """Builds and runs one test; returns its output, raises CalledProcessError if it fails."""
        source, arguments, flags = TESTS[name]
        command = [*shlex.split(os.environ.get("EMULATOR", "")), self.program(source, flags), *arguments]
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


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
