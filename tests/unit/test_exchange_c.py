"""The exchange over a fake MPI of threads (tests/exchange), under the sanitizers."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shlex.split(os.environ.get("CC", "cc"))
FLAGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-unused-function", "-Wno-unknown-warning-option",
         "-ffp-contract=off", "-fno-omit-frame-pointer", "-pthread"]  # fmt: skip
SANITIZERS = {"memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], "threads": ["-fsanitize=thread"]}

pytestmark = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="this machine has no C compiler")


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request, tmp_path_factory):
    target = tmp_path_factory.mktemp("exchange") / request.param
    sources = [path for room in ("csrc/codec", "csrc/transport", "csrc/exchange", "tests/exchange")
               for path in sorted((ROOT / room).glob("*.c"))]  # fmt: skip
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/exchange'}"]
    subprocess.run([*COMPILER, *FLAGS, *SANITIZERS[request.param], *include, *sources, "-lm", "-ldl", "-o", target], check=True)
    return target


@pytest.mark.parametrize("ranks, seed", [(1, 1), (2, 2), (3, 1), (5, 2)])  # odd seeds: messages cut in pieces of 100 bytes
def test_exchange(program, ranks, seed):
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []  # the thread sanitizer wants addresses where it knows them
    # what MPI may still write into is left alone on purpose
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([*fixed, program, str(ranks), str(seed)], env=environment, timeout=300, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    if done.returncode:
        pytest.fail(f"exit status {done.returncode}\n{done.stdout}", pytrace=False)
    assert done.stdout.split("\n")[0] == "reduce ok"
