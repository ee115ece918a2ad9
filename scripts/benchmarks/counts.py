"""Instructions of the codec for each element, counted by callgrind and held to tests/codec/instructions.json.

Counts do not depend on the machine's mood: two runs of one program differ by nothing. They do depend on the compiler.
gcc 11 gives up to 5 % more than gcc 12, so another major version has a wider margin; clang 14 gives from 48 % fewer to
38 % more, and no margin that forgives that would see a slow-down, so another compiler is not judged. valgrind 3.19 knows
no AVX-512: that variant is not counted.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from gtcbmuf.errors import SettingsError

from .build import CODEC, ROOT, compile_to, compiler, compiler_line

FORMAT, VERSION = "gtcbmuf instruction counts", 1
REFERENCE = ROOT / "tests" / "codec" / "instructions.json"
MARGIN = 0.03  # for other minor versions of the compiler, and other C libraries
WIDE = 0.1  # for another major version of the same compiler
WRITE = "scripts/bench counts --write"


def needs() -> str | None:
    """What this machine lacks for counting, None: nothing."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "x86-64: the reference is of its instructions"
    if shutil.which("valgrind") is None or not _compiles():
        return "valgrind with its headers, and a C compiler (Debian: apt install valgrind gcc)"
    return None


def _compiles() -> bool:
    """The compiler finds valgrind's header."""
    try:
        line = [*compiler(), "-E", "-x", "c", "-"]
    except SettingsError:
        return False
    text = "#include <valgrind/callgrind.h>\n"
    return subprocess.run(line, input=text, capture_output=True, text=True, check=False).returncode == 0


def family(line: str) -> tuple[str, str]:
    """Compiler and major version, from the first line of its --version: ("gcc", "12"), ("clang", "14")."""
    name = "clang" if "clang" in line else "gcc"
    found = re.search(r"clang version (\d+)" if name == "clang" else r"\) (\d+)\.", line)
    return name, found[1] if found else "unknown"


def parse(dumps: list[str], units: str) -> dict[str, float]:
    """Instructions a unit for each label. dumps: callgrind's files; units: what the program printed."""
    totals = {}
    for text in dumps:
        label = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.M)
        total = re.search(r"^totals: (\d+)$", text, re.M)
        if label and total:
            totals[label[1]] = int(total[1])
    found = {}
    for line in units.splitlines():
        label, count = line.split("\t")
        if label not in totals:
            raise SettingsError(f"callgrind left no counts of {label!r}")
        found[label] = totals[label] / int(count)
    return found


def count() -> dict[str, float]:
    """Compiles the codec and counts; SettingsError if that is not possible here."""
    if needs():
        raise SettingsError(f"needs {needs()}")
    with tempfile.TemporaryDirectory() as folder:
        # Symbols of the C library are looked up before the counting, not in its first operation.
        program = compile_to(Path(folder) / "count", "tests/codec/count_instructions.c", CODEC, flags=("-Wl,-z,now",))
        line = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no",
                f"--callgrind-out-file={folder}/counts", str(program)]  # fmt: skip
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SettingsError(f"{' '.join(line)}\n{done.stderr[-3000:]}")
        return parse([path.read_text() for path in Path(folder).glob("counts.*")], done.stdout)


def load(path: Path = REFERENCE) -> dict:
    """SettingsError for what is no reference of this version."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); make it: {WRITE}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise SettingsError(f"{path} is no file of instruction counts of version {VERSION}; make it: {WRITE}")
    return content


def write(found: dict[str, float], path: Path = REFERENCE) -> None:
    content = {"format": FORMAT, "version": VERSION, "compiler": compiler_line(),
               "unit": "instructions for each element (encode) or sent element (validate, decode_add)",
               "counts": {label: float(f"{value:.5g}") for label, value in found.items()}}  # fmt: skip
    path.write_text(json.dumps(content, indent=1) + "\n")


def judge(reference: dict, line: str) -> tuple[float | None, str]:
    """The margin for the compiler that calls itself `line`, None if its counts cannot be judged; and the reason."""
    (name, major), (its_name, its_major) = family(line), family(reference["compiler"])
    if name != its_name:
        return None, f"{its_name}, which made the reference; here is {name} {major}"
    if major != its_major:
        return WIDE, f"a margin of {WIDE:.0%}: the reference is of {its_name} {its_major}, here is {name} {major}"
    return MARGIN, f"a margin of {MARGIN:.0%}"


def slower(reference: dict[str, float], found: dict[str, float], margin: float) -> list[str]:
    """What takes more instructions than the margin allows, one line each. A label that only one side has is one, too,
    except those of a variant that this processor lacks."""
    variants = {label.split(", ")[1] for label in found}
    lines = [f"{label}: not counted" for label in reference
             if label not in found and label.split(", ")[1] in variants]  # fmt: skip
    for label, value in found.items():
        if label not in reference:
            lines.append(f"{label}: not in the reference")
        elif value > reference[label] * (1 + margin):
            lines.append(f"{label}: {value:.3f}, reference {reference[label]:.3f} "
                         f"({100 * (value / reference[label] - 1):+.1f} %)")  # fmt: skip
    return lines


def table(found: dict[str, float], reference: dict[str, float] | None) -> str:
    """A row for each operation and variant, a column for each density; in brackets the change to the reference."""
    densities = list(dict.fromkeys(label.split(", ")[2] for label in found))
    rows = list(dict.fromkeys(tuple(label.split(", ")[:2]) for label in found))
    lines = ["| instructions | variant | " + " | ".join(densities) + " |", "|---|---" + "|---:" * len(densities) + "|"]
    for operation, variant in rows:
        labels = [f"{operation}, {variant}, {density}" for density in densities]
        cells = [f"{found[x]:.2f}" + (f" ({100 * (found[x] / reference[x] - 1):+.1f} %)"
                 if reference and x in reference else "") for x in labels]  # fmt: skip
        unit = "an element" if operation == "encode" else "a sent element"
        lines.append(f"| {operation}, {unit} | {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def options(add) -> None:
    """The command line; add: add_argument of its parser."""
    add("--write", action="store_true", help="make these counts the reference")


def run(options) -> None:
    """The command."""
    found = count()
    if options.write:
        write(found)
        print(table(found, None))
        print(f"\n{REFERENCE.relative_to(ROOT)} is of {compiler_line()} now")
        return
    reference = load()
    print(f"{compiler_line()}; in brackets: against the reference, which is of {reference['compiler']}\n")
    print(table(found, reference["counts"]))
    margin, reason = judge(reference, compiler_line())
    if margin is None:
        print(f"\nno verdict: it needs {reason}")
        return
    problems = slower(reference["counts"], found, margin)
    if problems:
        raise SettingsError("more instructions than the reference allows:\n" + "\n".join(problems))
    print(f"\nwithin the reference, {reason}")
