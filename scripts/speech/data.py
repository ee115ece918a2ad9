"""Training sequences and evaluation batches of the speech set.

The network runs at a low frame rate: three 10 ms frames are stacked to one input of 120 values
each 30 ms, and the target is the phone in the middle one. Its output is delayed by a few steps
so that it sees some of what follows. Of every utterance three copies, shifted by one frame,
serve for training; they are index arithmetic on one array of features, never stored.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import store
from .store import SPLIT_NAMES, DatasetError

EXTRACT = Path(__file__).with_name("extract.npz")
STACK = 3  # frames in one input
STEPS = 20  # low-rate frames in one training sequence: 0.6 s
DELAY = 2  # low-rate frames between an input and its target
IGNORE = -100  # target of steps that do not count (torch's ignore_index)

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Speech:
    """The normalised set and its training sequences.

    features: float32 (F, 40); labels: int64 (F,); offsets: int64 (U + 1,); split: int8 (U,)
    first, stop: int64 (S,), training sequence s reads frames from first[s], and those from
        stop[s] on are not its own.
    """

    features: torch.Tensor
    labels: torch.Tensor
    offsets: np.ndarray
    split: np.ndarray
    first: torch.Tensor
    stop: torch.Tensor
    classes: int

    inputs: int = STACK * store.BANDS

    def __len__(self) -> int:
        """Number of training sequences."""
        return len(self.first)

    def batch(self, index: np.ndarray | torch.Tensor) -> Batch:
        """Training sequences `index` (B,): inputs float32 (20, B, 120), targets int64 (20, B).

        Raises IndexError when an index is not in 0..len(self) - 1.
        """
        index = torch.as_tensor(index, dtype=torch.int64)
        return self._gather(self.first[index], self.stop[index], STEPS)

    def evaluation(self, split: str, utterances_per_batch: int = 32) -> list[Batch]:
        """Whole utterances of "dev", "test" or "unseen", of like length together.

        Inputs are float32 (T, B, 120), targets int64 (T, B) with IGNORE after an utterance's
        end; T differs from batch to batch. Empty when the set has no utterance in the split.
        """
        chosen = np.flatnonzero(self.split == SPLIT_NAMES.index(split))
        lengths = np.diff(self.offsets)[chosen] // STACK
        chosen, lengths = (a[np.argsort(lengths, kind="stable")] for a in (chosen, lengths))
        batches = []
        for begin in range(0, len(chosen), utterances_per_batch):
            part = slice(begin, begin + utterances_per_batch)
            first = torch.as_tensor(self.offsets[chosen[part]])
            stop = first + STACK * torch.as_tensor(lengths[part])
            batches.append(self._gather(first, stop, int(lengths[part].max()) + DELAY))
        return batches

    def _gather(self, first: torch.Tensor, stop: torch.Tensor, steps: int) -> Batch:
        step = STACK * torch.arange(steps)[:, None]
        # After the end the last input is repeated: the delayed targets still need an input.
        read = torch.minimum(first + step, stop - STACK)
        inputs = self.features[read[..., None] + torch.arange(STACK)].flatten(2)
        spoken = first + step - STACK * DELAY
        counts = (spoken >= first) & (spoken < stop)
        targets = self.labels[torch.where(counts, spoken + STACK // 2, first)]
        return inputs, targets.masked_fill(~counts, IGNORE)


def load(path: str | Path = EXTRACT) -> Speech:
    """Read, check and normalise a set; raises `DatasetError` naming the file and the cure.

    Each utterance has its own mean subtracted; one standard deviation for each band, that of the
    training utterances, serves all.
    """
    data = store.read(path)
    features = data.features
    for start, stop in itertools.pairwise(data.offsets):
        features[start:stop] -= features[start:stop].mean(0)
    train = data.utterances(store.TRAIN)
    if len(train) == 0:
        raise DatasetError(f"{path}: no utterance is for training; make the file again with "
                           "scripts/speech/build_dataset.py")
    of_training = np.repeat(data.split == store.TRAIN, np.diff(data.offsets))
    features /= features[of_training].std(0)
    first, stop = _cut(data.offsets, train)
    return Speech(
        features=torch.from_numpy(features), labels=torch.from_numpy(data.labels),
        offsets=data.offsets, split=data.split,
        first=torch.from_numpy(first), stop=torch.from_numpy(stop), classes=len(data.phones),
    )


def _cut(offsets: np.ndarray, utterances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First frame and end of the training sequences of all shifted copies.

    The first DELAY steps of a sequence have no target, so sequences overlap by that many, and
    every low-rate frame is the target of exactly one sequence of its copy.
    """
    first, stop = [], []
    for utterance in utterances:
        for shift in range(STACK):
            begin = offsets[utterance] + shift
            count = (offsets[utterance + 1] - begin) // STACK
            starts = begin + STACK * np.arange(0, count, STEPS - DELAY)
            first.append(starts)
            stop.append(np.full(len(starts), begin + STACK * count))
    return np.concatenate(first), np.concatenate(stop)


def epoch_order(count: int, seed: int, epoch: int, multiple: int = 1) -> np.ndarray:
    """The order of `count` sequences in one epoch: int64, a permutation without its remainder.

    The last `count % multiple` are left out (others in each epoch). With `multiple` the product
    of batch size and the largest number of workers, every run sees exactly the same samples.
    """
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[: count - count % multiple]


def shard(order: np.ndarray, rank: int, size: int) -> np.ndarray:
    """The part of `order` that worker `rank` of `size` takes.

    The parts of all ranks are disjoint and together the whole order, whatever `size` is; batch k
    of all workers together is a consecutive piece of the order.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} is not in 0..{size - 1}")
    return order[rank::size]
