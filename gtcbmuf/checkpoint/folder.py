"""The folder of a checkpoint: how its files come into being, and how they are read.

    PATH/manifest.json                          names the folder below, and each file's length and digest
    PATH/data-<16 hex digits>/shared.safetensors
    PATH/data-<16 hex digits>/rank-00000.safetensors, …

A save writes into a new data folder. Renaming the manifest over the old one makes it the checkpoint;
until then the old one is untouched, and what it needs is removed only afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gtcbmuf.checkpoint.manifest import FOLDER, MANIFEST, Manifest, exists, load
from gtcbmuf.errors import FileError

SHARED = "shared.safetensors"
TREE = "tree"  # the tensor of a rank's file that is the JSON of all that is no tensor
TEMPORARY = ".tmp"


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


# -- saving --------------------------------------------------------------------------------------------


def begin(path: Path) -> str:
    """Make a new data folder, empty, in path; its name. One rank does so.

    FileError if path holds other things than a checkpoint, or a damaged or newer one.
    """
    path.mkdir(parents=True, exist_ok=True)
    _sync(path.parent)
    for name in sorted(os.listdir(path)):
        if name not in (MANIFEST, MANIFEST + TEMPORARY) and not FOLDER.fullmatch(name):
            raise FileError(
                f"{path} holds other things ({name}): name a new or empty folder, or a checkpoint."
            )
    sweep(path)
    folder = f"data-{secrets.token_hex(8)}"
    (path / folder).mkdir()
    return folder


def write(file: Path, data: bytes) -> dict[str, Any]:
    """Write under another name, bring to the disk, read back, and rename; what the manifest says of it.

    FileError, which names the file and the reason, if that cannot be done.
    """
    temporary = file.with_name(file.name + TEMPORARY)
    digest = hashlib.sha256(data).hexdigest()
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
            os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or memory is read back
        with open(temporary, "rb") as written:
            if hashlib.file_digest(written, "sha256").hexdigest() != digest:
                raise FileError(f"{temporary} does not read as it was written: the disk is broken.")
        os.replace(temporary, file)
    except OSError as error:
        raise FileError(
            f"{file} cannot be written: {error.strerror}. What was saved before is whole; make room, or name another folder."
        ) from error
    return {"bytes": len(data), "sha256": digest}


def publish(path: Path, manifest: Manifest) -> None:
    """Make the data folder that manifest names the checkpoint. One rank does so, when all have written."""
    folder = path / manifest.folder
    for name, entry in manifest.files.items():
        if not (folder / name).exists() or (folder / name).stat().st_size != entry["bytes"]:
            raise FileError(
                f"{folder / name} was written by its rank, but is not seen here: a checkpoint must be "
                "on a file system that all ranks share."
            )
    _sync(folder)
    _sync(path)
    write(path / MANIFEST, manifest.text())
    _sync(path)


def sweep(path: Path) -> None:
    """Remove data folders that the manifest does not name: of saves that failed, or were replaced."""
    keep = load(path).folder if exists(path) else None
    for name in os.listdir(path):
        if FOLDER.fullmatch(name) and name != keep:
            shutil.rmtree(path / name)
    with contextlib.suppress(FileNotFoundError):
        os.remove(path / (MANIFEST + TEMPORARY))


def _sync(folder: Path) -> None:
    """Bring the folder's entries to the disk: new names and renamings."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- reading -------------------------------------------------------------------------------------------


def read(path: Path, manifest: Manifest, name: str) -> bytes:
    """A file of the checkpoint, whole; FileError unless it is what was written."""
    file, entry = path / manifest.folder / name, manifest.files[name]
    try:
        data = file.read_bytes()
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror}.") from error
    check(file, entry, len(data), hashlib.sha256(data).hexdigest())
    return data


def check(file: Path, entry: Mapping[str, Any], length: int, digest: str) -> None:
    """FileError unless length and digest are those of the manifest's entry."""
    if length != entry["bytes"]:
        raise FileError(
            f"{file} is damaged: it has {length} bytes, {entry['bytes']} were written. Go back to "
            "another checkpoint."
        )
    if digest != entry["sha256"]:
        raise FileError(
            f"{file} is damaged: its bytes are not those that were written. Go back to another "
            "checkpoint."
        )
