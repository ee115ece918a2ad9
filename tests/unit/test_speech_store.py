"""The file of the speech set: written and read whole, and refused with the cure where it is wrong."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from speech_sets import small_path, small_set  # noqa: F401

from speech import data, store


@pytest.mark.parametrize("step", [None, 0.25])
def test_write_and_read_agree(tmp_path, step):
    before = small_set()
    for name in ("a.npz", "b.npz"):
        store.write(tmp_path / name, before, step)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    after = store.read(tmp_path / "a.npz")
    near = 0.5 * step + 1e-5 if step else 0.02
    np.testing.assert_allclose(after.features, before.features, atol=near, rtol=0)
    for name in ("labels", "offsets", "split", "ids", "speakers", "languages", "phones"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_select_keeps_whole_utterances():
    before = small_set()
    chosen = np.arange(len(before.ids)) % 2 == 1
    after = before.select(chosen)
    for new, old in enumerate(np.flatnonzero(chosen)):
        np.testing.assert_array_equal(after.labels[after.offsets[new]:after.offsets[new + 1]],
                                      before.labels[before.offsets[old]:before.offsets[old + 1]])
    assert after.ids.tolist() == before.ids[chosen].tolist()


def test_quantise_refuses_a_step_that_does_not_fit():
    with pytest.raises(ValueError, match="larger step"):
        store.quantise(np.array([[0.0], [100.0]]), 0.1)


def rewrite(path: Path, **changes) -> None:
    """Replace arrays of a file; None removes one."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": np.int64(99)}, "schema 99"),
        ({"schema": None}, "schema None"),
        ({"labels": None}, "'labels' is missing"),
        ({"labels": np.full(542, 200)}, "labels are outside 0..8"),
        ({"features": np.zeros((542, 39))}, "expected (542, 40)"),
        ({"features": np.full((542, 40), np.nan)}, "not finite"),
        ({"offsets": np.arange(9)}, "do not divide 542 frames"),
        ({"split": np.full(8, 4)}, "outside 0..3"),
        ({"split": np.full(8, store.TEST)}, "no utterance is for training"),
    ],
)
def test_a_wrong_file_is_named_with_the_cure(small_path, changes, problem):
    rewrite(small_path, **changes)
    with pytest.raises(data.DatasetError) as caught:
        data.load(small_path)
    message = str(caught.value)
    assert message.startswith(str(small_path)) and problem in message
    assert "build_dataset.py" in message


def test_a_missing_file_is_named_with_the_cure(tmp_path):
    with pytest.raises(data.DatasetError, match=r"none\.npz: there is no such file; .*build_data"):
        data.load(tmp_path / "none.npz")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_named_with_the_cure(small_path, share):
    whole = small_path.read_bytes()
    small_path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(data.DatasetError, match=r"small\.npz: damaged or cut short"):
        data.load(small_path)


def test_a_flipped_byte_is_noticed(small_path):
    whole = bytearray(small_path.read_bytes())
    whole[len(whole) // 3] ^= 0xFF
    small_path.write_bytes(whole)
    with pytest.raises(data.DatasetError, match=r"small\.npz: damaged"):
        data.load(small_path)


def test_a_pickle_inside_is_refused(small_path):
    rewrite(small_path)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(small_path, "a") as archive:
        archive.writestr("extra.npy", buffer.getvalue())
    with pytest.raises(data.DatasetError, match="damaged"):
        data.load(small_path)
