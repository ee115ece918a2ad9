"""manifest.json: what a checkpoint is of, and which files belong to it. It is the last file to be renamed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gtcbmuf import __version__
from gtcbmuf.errors import FileError

FORMAT, VERSION = "gtcbmuf checkpoint", 1
MANIFEST = "manifest.json"
FOLDER = re.compile(r"data-[0-9a-f]{16}")


@dataclass(frozen=True)
class Manifest:
    """folder: of the files, beside the manifest. files: name -> {"bytes": length, "sha256": hex}.

    groups: the ranks of each group. strategy: its settings by name. optimizer: type of the inner one.
    """

    step: int
    world_size: int
    groups: list[list[int]]
    strategy: Mapping[str, Any]
    optimizer: str
    folder: str
    files: Mapping[str, Mapping[str, Any]]
    gtcbmuf: str = __version__

    def text(self) -> bytes:
        """JSON; the digest of all the rest stands at its end."""
        fields = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return _dump({**fields, "sha256": _digest(fields)})


def _dump(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=1).encode()


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dump(fields)).hexdigest()


def exists(path: Path) -> bool:
    """Whether any checkpoint, sound or not, is at path."""
    return (path / MANIFEST).exists()


def load(path: Path) -> Manifest:
    """The manifest of the checkpoint at path; FileError if there is none, or none that can be used."""
    file = path / MANIFEST
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileError(f"{path} is no checkpoint: it has no {MANIFEST}.") from None
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror}.") from error
    return _parse(file, data)


def _parse(file: Path, data: bytes) -> Manifest:
    try:
        fields = json.loads(data)
        found, version = fields["format"], fields["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(file, "not the JSON of a manifest") from None
    if found != FORMAT:
        raise FileError(f"{file} is not of a {FORMAT} but of {found!r}; name the right folder.")
    if version != VERSION:
        raise FileError(
            f"{file} has version {version}, this library reads {VERSION}. Go on with the library that "
            f"wrote it (gtcbmuf {fields.get('gtcbmuf', '?')})."
        )
    digest = fields.pop("sha256", None)
    if digest != _digest(fields) or data != _dump({**fields, "sha256": digest}):
        raise _damaged(file, "its digest is another")
    del fields["format"], fields["version"]
    try:
        manifest = Manifest(**fields)
    except TypeError as error:
        raise _damaged(file, str(error)) from None
    if not FOLDER.fullmatch(manifest.folder):
        raise _damaged(file, f"its folder is {manifest.folder!r}")
    return manifest


def _damaged(file: Path, what: str) -> FileError:
    return FileError(f"{file} is damaged ({what}). Go back to another checkpoint.")
