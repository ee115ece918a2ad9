"""The arrows of docs/layers.md: which room may use which. The allowed ones are written out here;
everything else is a violation."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Python: a room is a module or package below gtcbmuf/. Every room may use `errors`.
CORE = {"config", "launcher", "groups", "agreement", "runtime", "job", "ending", "exchange", "backends", "_core"}
ALLOWED = {
    "": {"runtime", "groups", "observe", "policy", "preemption"},  # gtcbmuf/__init__.py: public names only
    "errors": set(),
    "config": set(),
    "groups": set(),
    "ulfm": set(),
    "recovery": {"agreement", "config", "ending", "groups", "job", "runtime", "ulfm"},
    "launcher": {"ending"},  # a bound for MPI's own waits
    "checkpoint": {""},  # for the version number
    "agreement": {"", "config"},  # "" for the version number
    "backends": {"_core"},
    "device": {"backends", "policy", "runtime"},  # of policy the lanes that it moves
    "whereabouts": set(),
    "neighbours": set(),
    "ending": {"neighbours"},
    "tickets": {"_core", "backends", "exchange", "whereabouts"},  # of exchange its type only
    "exchange": {"_core", "backends", "tickets", "whereabouts"},
    "cuda_aware": {"_core", "agreement"},
    "job": {"agreement", "config", "cuda_aware", "ending", "exchange", "groups", "neighbours", "ulfm", "windows"},
    "runtime": {"agreement", "config", "ending", "exchange", "groups", "job", "launcher", "recovery", "ulfm"},
    "windows": set(),
    "preemption": {"agreement", "runtime"},
    "policy": set(),  # it is given an exchange
    "simulate": {"backends", "groups", "policy"},
    "observe": set(),  # it is given exchanges and workers
    "survival": {"observe", "policy", "recovery"},
    "arrays": {"policy"},
    "bound": {"arrays", "observe", "policy", "runtime", "agreement", "survival"},
    "numpy": {"bound", "observe", "policy"},
    "cupy": {"bound", "device", "observe", "policy"},
    "torch": {"", "checkpoint", "device", "observe", "policy", "preemption", "survival"} | CORE - {"_core"},
    "plan": {"", "backends", "policy"},  # the bench is given an exchange
    "cli": {"", "checkpoint", "device", "observe", "policy", "plan"} | CORE,
}

# C: each room may include its own headers and those named.
INCLUDES = {
    "codec": set(),
    "cuda": {"codec"},
    "transport": {"codec"},
    "exchange": {"codec", "transport"},
    "binding": {"codec", "cuda", "transport", "exchange"},
}


def room_of(module: str) -> str:
    """gtcbmuf.torch.verbs -> torch; gtcbmuf -> "" """
    return (module.split(".") + [""])[1]


def imported_rooms(path: Path, package: str):
    """Rooms of gtcbmuf that a file imports, anywhere in it. package: the file's own, dotted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module
            modules = [f"{base}.{alias.name}" for alias in node.names] if base == "gtcbmuf" else [base]
        else:
            continue
        for module in modules:
            if module.split(".")[0] == "gtcbmuf":
                yield room_of(module), node.lineno


def python_violations(root: Path, allowed=ALLOWED):
    rooms_there = {p.stem if p.suffix == ".py" else p.name for p in (root / "gtcbmuf").iterdir()}
    rooms_there |= {"_core"}
    for path in sorted((root / "gtcbmuf").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        room = "" if parts[1] == "__init__" else parts[1]
        if room not in allowed:
            yield f"{path.relative_to(root)}: a room that docs/layers.md does not draw"
            continue
        for used, line in imported_rooms(path, ".".join(parts[:-1])):
            used = used if used in rooms_there else ""  # a name of gtcbmuf/__init__.py
            if used not in {room, "errors"} | allowed[room]:
                yield f"{path.relative_to(root)}:{line}: {room} imports {used or 'gtcbmuf'}"


def include_violations(root: Path):
    for path in sorted((root / "csrc").rglob("*.[ch]*")):
        room = path.relative_to(root / "csrc").parts[0]
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
            if not found:
                continue
            name = f"{path.relative_to(root)}:{number}: {line.strip()}"
            used = found[2].split("/")[0] if "/" in found[2] else room
            if found[1] == '"' and used not in INCLUDES[room] | {room}:
                yield name
            if found[2] == "mpi.h" or (found[2].startswith("Python") and room != "binding"):
                yield name


def test_python_rooms():
    assert list(python_violations(ROOT)) == []


def test_c_rooms():
    assert list(include_violations(ROOT)) == []


def test_only_config_reads_the_environment():
    """launcher looks at the launcher's variables, doctor (cli) shows both; nothing else at any."""
    readers = {path.relative_to(ROOT / "gtcbmuf").parts[0]
               for path in (ROOT / "gtcbmuf").rglob("*.py")
               if re.search(r"os\.(environ|getenv)", path.read_text())}  # fmt: skip
    assert readers <= {"config.py", "launcher.py", "cli"}
    for path in (ROOT / "csrc").rglob("*.[ch]*"):
        assert not re.search(r"\b(getenv|exit|abort|MPI_Abort)\s*\(", path.read_text()), path


@pytest.mark.parametrize("file, text, found", [
    ("policy/gtc.py", "from gtcbmuf.groups import form", "policy imports groups"),
    ("policy/gtc.py", "from ..runtime import rank", "policy imports runtime"),
    ("policy/gtc.py", "from gtcbmuf import torch", "policy imports torch"),
    ("policy/gtc.py", "def f():\n    import gtcbmuf.exchange", "policy imports exchange"),
    ("backends/native.py", "from gtcbmuf import runtime", "backends imports runtime"),
    ("groups.py", "from . import exchange", "groups imports exchange"),
    ("torch/verbs.py", "from gtcbmuf import _core", "torch imports _core"),
    ("drawer.py", "", "a room that docs/layers.md does not draw"),
])  # fmt: skip
def test_a_planted_import_is_found(tmp_path, file, text, found):
    for name in ALLOWED:
        room = tmp_path / "gtcbmuf" / name
        room.mkdir(parents=True, exist_ok=True)
        (room / "__init__.py").write_text("from gtcbmuf.errors import GtcbmufError\n")
    assert list(python_violations(tmp_path)) == []
    (tmp_path / "gtcbmuf" / file).write_text(text)
    violations = list(python_violations(tmp_path))
    assert len(violations) == 1 and found in violations[0]


@pytest.mark.parametrize("file, text", [
    ("codec/a.c", '#include "transport/transport.h"'),
    ("codec/a.h", "#include <mpi.h>"),
    ("transport/a.c", '  #  include "exchange/exchange.h"'),
    ("exchange/a.c", "#include <Python.h>"),
    ("cuda/a.cuh", '#include "exchange/exchange.h"'),
])  # fmt: skip
def test_a_planted_include_is_found(tmp_path, file, text):
    path = tmp_path / "csrc" / file
    path.parent.mkdir(parents=True)
    path.write_text('#include <stdint.h>\n#include "own.h"\n')
    assert list(include_violations(tmp_path)) == []
    path.write_text(text)
    assert len(list(include_violations(tmp_path))) == 1
