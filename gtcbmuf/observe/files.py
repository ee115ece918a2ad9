"""A file of each rank, in a folder that all may share."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from gtcbmuf.errors import FileError


def open_rank(folder, name: str, rank: int, mode: str) -> TextIO:
    """folder/name-rank0003.json…: lines reach the file as they are written. FileError says why not."""
    path = Path(folder) / name.format(rank=rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, mode, buffering=1, encoding="utf-8")  # noqa: SIM115 (open while the run lasts)
    except OSError as error:
        raise FileError(
            f"rank {rank}: {path} cannot be written: {error.strerror}. Give a folder in which every rank may write."
        ) from error
