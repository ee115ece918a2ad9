"""scripts/bench codec: packing, unpacking and size, in up to three sections."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from gtcbmuf.errors import SettingsError

from . import build, files, packing, peers, tables, unpacking
from .library import Library

PART = "codec"
SECTIONS = {"c": "tests/codec/bench_codec.c: encode, validate, decode_add, one thread",
            "packing": "encode beside torch's steps and torch.topk",
            "peers": "size and unpacking beside the codecs of others"}  # fmt: skip
PACKAGES = ["torch", "numpy", *dict.fromkeys(kind.package for kind in peers.PEERS if kind.package)]


def options(add) -> None:
    """The command line; add: add_argument of its parser."""
    numbers = lambda kind: lambda text: [kind(x) for x in text.split(",")]
    add("--only", default=",".join(SECTIONS), help="; ".join(f"{k}: {v}" for k, v in SECTIONS.items()))
    add("--elements", type=lambda text: int(float(text)), default=25_000_000, help="of the large buckets (25e6)")
    add("--rounds", type=int, default=9, help="of which the medians are (9)")
    add("--threads", type=numbers(int), default="1,2", help="of packing (1,2)")
    add("--packing-densities", type=numbers(float), default="0.0001,0.001,0.01,0.1", help="(0.0001,0.001,0.01,0.1)")
    add("--densities", type=numbers(float), default="0.001,0.01,0.1", help="of what is unpacked (0.001,0.01,0.1)")
    add("--data", default="speech,random", help="what is unpacked (speech,random)")
    add("--hidden", type=int, default=512, help="units in each of the speech model's two layers (512)")
    add("--steps", type=int, default=40, help="of training before the messages are taken (40)")
    add("--clock", choices=("cpu", "wall"), default="cpu", help="the times that the table shows; a file has both (cpu)")
    files.options(add)


def run_c(folder: str, library: Library, o) -> list[str]:
    """The lines of the C program."""
    program = build.compile_to(Path(folder) / "bench_codec", "tests/codec/bench_codec.c", "csrc/exchange/pool.c",
                               build.CODEC)
    line = [str(program), library.variant, str(o.elements), str(o.rounds)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SettingsError(f"bench_codec failed: {done.stderr}")
    return done.stdout.splitlines()


def measure(o) -> dict:
    sections = files.choose(o.only, SECTIONS, "--only")
    o.data = files.choose(o.data, ("speech", "random"), "--data")
    with tempfile.TemporaryDirectory() as folder:
        library = Library(folder)
        content = {"machine": build.machine(library.variant), "packages": build.packages(PACKAGES), "rounds": o.rounds,
                   "hidden": o.hidden, "steps": o.steps}  # fmt: skip
        if "c" in sections:
            content["c"] = run_c(folder, library, o)
        if "packing" in sections:
            content["packing"] = packing.measure(library, o)
        if "peers" in sections:
            content["missing"] = peers.missing()
            content["unpacking"] = unpacking.measure(library, o)
    return content


def run(o) -> None:
    """The command."""
    files.command(o, PART, measure, lambda content: tables.codec(content, o.clock))
