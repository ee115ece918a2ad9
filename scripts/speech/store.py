"""The file format of the speech set: one .npz, written without dates so that bytes reproduce.

Arrays, for F frames of U utterances and P phones:

    schema      int64 ()        SCHEMA
    features    float16 (F, 40) natural-log mel band energies, one frame each 10 ms; or instead
    codes       uint8 (F, 40)   quantised features, each the difference from the frame before it
                                (modulo 256; the first frame of the file from zero), and
    step, floor float32 ()      feature = floor + step * code, once the differences are summed
    labels      uint8 or int16 (F,)  index into `phones` of the phone spoken in the frame
    offsets     int64 (U + 1,)  frames offsets[u]:offsets[u + 1] are utterance u
    split       int8 (U,)       TRAIN, DEV, TEST or UNSEEN
    ids, speakers, languages    str (U,)
    phones      str (P,)        phones[0] is silence
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SCHEMA = 1
TRAIN, DEV, TEST, UNSEEN = range(4)
SPLIT_NAMES = ("train", "dev", "test", "unseen")
BANDS = 40

_CURE = "restore it from version control, or make it again with scripts/speech/build_dataset.py"
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that zip knows


class DatasetError(ValueError):
    """A data file is missing, damaged or of another schema; the message names it and the cure."""


@dataclass(frozen=True)
class Dataset:
    """The set in memory; shapes and types as in the module's table, features float32."""

    features: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    split: np.ndarray
    ids: np.ndarray
    speakers: np.ndarray
    languages: np.ndarray
    phones: np.ndarray

    def utterances(self, split: int) -> np.ndarray:
        """Indices of the utterances in one split, int64 ascending."""
        return np.flatnonzero(self.split == split)

    def select(self, chosen: np.ndarray) -> "Dataset":
        """The utterances where `chosen`, bool (U,), is true, in the same order."""
        lengths = np.diff(self.offsets)
        frames = np.repeat(chosen, lengths)
        return Dataset(
            self.features[frames], self.labels[frames],
            np.concatenate([[0], np.cumsum(lengths[chosen])]), self.split[chosen],
            self.ids[chosen], self.speakers[chosen], self.languages[chosen], self.phones,
        )


def write(path: Path, data: Dataset, step: float | None = None) -> None:
    """Write `data`; with `step` (in nepers of band energy) quantised, else as float16."""
    arrays = {"schema": np.int64(SCHEMA)}
    if step is None:
        arrays["features"] = data.features.astype(np.float16)
    else:
        arrays |= quantise(data.features, step)
    small = len(data.phones) <= 256
    arrays["labels"] = data.labels.astype(np.uint8 if small else np.int16)
    arrays["offsets"] = data.offsets.astype(np.int64)
    arrays["split"] = data.split.astype(np.int8)
    for name in ("ids", "speakers", "languages", "phones"):
        arrays[name] = getattr(data, name).astype(str)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _DATE)
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, 9)


def quantise(features: np.ndarray, step: float) -> dict[str, np.ndarray]:
    """`codes`, `step` and `floor` of the format; differences in time pack better than levels."""
    floor = np.float32(features.min())
    levels = np.rint((features - floor) / step)
    if levels.max() > 255:
        raise ValueError(f"step {step} leaves {int(levels.max()) + 1} levels, 256 fit; "
                         "take a larger step")
    codes = np.diff(levels.astype(np.uint8), axis=0, prepend=np.uint8(0))
    return {"codes": codes, "step": np.float32(step), "floor": floor}


def dequantise(codes: np.ndarray, step: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Features float32 (F, 40) of `quantise`'s arrays, within step / 2 of the original."""
    return floor + step * np.cumsum(codes, axis=0, dtype=np.uint8).astype(np.float32)


def read(path: str | Path) -> Dataset:
    """Read and check a data file; raises `DatasetError` naming the file and the cure."""
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path}: there is no such file; {_CURE}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zip, zlib and npy each raise their own kinds
        raise DatasetError(f"{path}: damaged or cut short ({error}); {_CURE}") from error
    schema = arrays.get("schema")
    if schema is None or schema.shape or int(schema) != SCHEMA:
        raise DatasetError(f"{path}: schema {schema}, this version reads {SCHEMA}; {_CURE}")
    try:
        if "codes" in arrays:
            features = dequantise(arrays["codes"], arrays["step"], arrays["floor"])
        else:
            features = arrays["features"].astype(np.float32)
        fields = ("offsets", "split", "ids", "speakers", "languages", "phones")
        data = Dataset(features, arrays["labels"].astype(np.int64),
                       **{name: arrays[name] for name in fields})
    except KeyError as error:
        raise DatasetError(f"{path}: the array {error} is missing; {_CURE}") from error
    problem = _inconsistency(data)
    if problem:
        raise DatasetError(f"{path}: {problem}; {_CURE}")
    return data


def _inconsistency(data: Dataset) -> str | None:
    """What contradicts the format's table, or None."""
    frames, count = len(data.labels), len(data.split)
    if data.features.shape != (frames, BANDS):
        return f"features have shape {data.features.shape}, expected {(frames, BANDS)}"
    if not np.isfinite(data.features).all():
        return "features are not finite"
    if frames and not 0 <= data.labels.min() <= data.labels.max() < len(data.phones):
        return f"labels are outside 0..{len(data.phones) - 1}"
    offsets = data.offsets
    if offsets.shape != (count + 1,) or offsets[0] != 0 or offsets[-1] != frames:
        return f"offsets do not divide {frames} frames into {count} utterances"
    if (np.diff(offsets) <= 0).any():
        return "offsets are not increasing"
    if count and not TRAIN <= data.split.min() <= data.split.max() <= UNSEEN:
        return "split holds values outside 0..3"
    if any(len(getattr(data, name)) != count for name in ("ids", "speakers", "languages")):
        return f"ids, speakers or languages are not {count} long"
    return None
