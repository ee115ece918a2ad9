"""`gtcbmuf checkpoint inspect PATH`: what is in a checkpoint, and are its files what was written?

Every file is read whole. The exit status is not 0 if PATH is no checkpoint, or one of its files is damaged.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

from safetensors import safe_open

from gtcbmuf import checkpoint
from gtcbmuf import groups as grouping
from gtcbmuf.errors import FileError


def add_to(commands) -> None:
    parser = commands.add_parser("checkpoint", help="look at a saved run")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    inspect = verbs.add_parser(
        "inspect", help="what is in it, and is it sound",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    inspect.add_argument("path", type=Path, metavar="PATH")
    inspect.set_defaults(run=run)


def run(options) -> int:
    path = options.path
    manifest = checkpoint.load(path)
    print(f"{path}, written by gtcbmuf {manifest.gtcbmuf}")
    print(f"  step       {manifest.step}")
    print(f"  ranks      {manifest.world_size} in {grouping.describe(manifest.groups)}")
    print(f"  optimizer  {manifest.optimizer}")
    print(f"  strategy   {_settings(manifest.strategy)}")
    files = {name: _look_at(path / manifest.folder / name, entry)
             for name, entry in manifest.files.items()}  # fmt: skip
    print(f"files, {sum(entry['bytes'] for entry in manifest.files.values()):,} bytes in all")
    for name, entry in manifest.files.items():
        print(f"  {name:24}{entry['bytes']:14,} bytes  {files[name].problem or 'sound'}")
    _print_tensors({name: file.tensors for name, file in files.items()})
    problems = [file.problem for file in files.values() if file.problem]
    if problems:
        raise FileError("; ".join(problems))
    return 0


def _settings(settings) -> str:
    """GTC(threshold=0.5, …), as it is written in a program."""
    rest = dict(settings)
    kind = {"gtc": "GTC", "bmuf": "BMUF"}
    name = rest.pop("strategy", None)
    values = [f"{key}={_nested(kind.get(key), value)}" for key, value in rest.items()]
    return f"{name or ''}({', '.join(values)})"


def _nested(name: str | None, value) -> str:
    return repr(value) if name is None else _settings({"strategy": name, **value})


class _File:
    """tensors: name -> (dtype, shape), none if it is damaged; problem: what is wrong, or None."""

    def __init__(self):
        self.tensors, self.problem = {}, None


def _look_at(path: Path, entry) -> _File:
    file = _File()
    try:
        with open(path, "rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        checkpoint.check(path, entry, path.stat().st_size, digest)
        with safe_open(path, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dict)
                part = tensors.get_slice(name)
                file.tensors[name] = part.get_dtype(), tuple(part.get_shape())
    except OSError as error:
        file.problem = f"{path} cannot be read: {error.strerror}"
    except FileError as error:
        file.problem = str(error)
    return file


def _print_tensors(of_files) -> None:
    """Each tensor once: its dtype, shape, and whether all ranks have the same or each its own."""
    holders = defaultdict(list)
    for file, tensors in of_files.items():
        for name, kind in tensors.items():
            holders[name, kind].append(file)
    width = max((len(name) for name, _ in holders), default=0) + 2
    print("tensors")
    for (name, (dtype, shape)), files in sorted(holders.items()):
        where = "all ranks" if files == [checkpoint.SHARED] else f"{len(files)} ranks, each its own"
        if (name, dtype) != (checkpoint.TREE, "U8"):
            print(f"  {name:{width}}{dtype:6}{str(list(shape)):16}{where}")
