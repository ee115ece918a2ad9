"""A small speech set for tests."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from speech import store


def small_set(seed: int = 0, lengths=(3, 7, 59, 60, 61, 119, 200, 33)) -> store.Dataset:
    """Random utterances of awkward lengths in all splits."""
    rng = np.random.default_rng(seed)
    frames, count = sum(lengths), len(lengths)
    return store.Dataset(
        features=rng.normal(-5, 3, (frames, store.BANDS)).astype(np.float32),
        labels=rng.integers(0, 9, frames),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        split=np.array([store.TRAIN] * (count - 3) + [store.DEV, store.TEST, store.UNSEEN]),
        ids=np.array([f"u{i}" for i in range(count)]),
        speakers=np.array(["someone"] * count),
        languages=np.array(["xx"] * count),
        phones=np.array([f"p{i}" for i in range(9)]),
    )


@pytest.fixture
def small_path(tmp_path):
    path = tmp_path / "small.npz"
    store.write(path, small_set())
    return path
