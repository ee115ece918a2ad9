"""Forced alignment: which phone is spoken in which frame.

Every phone is a left-to-right model of three states, with optional silence between words. The
states of an utterance are first spread evenly over its speech, then Gaussians (one a state) and
Viterbi paths are re-estimated in turn, and at last a small neural network, which sees 21 frames
of context, replaces the Gaussians.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch

STATES_PER_PHONE = 3
SILENCE_ID = 0
_CONTEXT = torch.arange(-10, 11, 2)  # frames around the one to be classified
_BATCH = 512  # frames
_PRIOR_WEIGHT = 0.7  # how much of the state prior is divided out of the network's posterior


class Chain(NamedTuple):
    """The states an utterance passes through.

    states: int32 (S,), the state ids `phone * STATES_PER_PHONE + k` in order.
    skips: bool (S,), true where the phone before (an optional silence) may be jumped over.
    """

    states: np.ndarray
    skips: np.ndarray


def make_chain(words: Sequence[Sequence[int]]) -> Chain:
    """Chain of the words' phone ids, with silence at both ends and between words."""
    phones, optional = [SILENCE_ID], [False]
    for word in words:
        phones += [*word, SILENCE_ID]
        optional += [False] * len(word) + [True]
    states = np.repeat(np.array(phones, np.int32) * STATES_PER_PHONE, STATES_PER_PHONE)
    states += np.tile(np.arange(STATES_PER_PHONE, dtype=np.int32), len(phones))
    skips = np.zeros(len(states), bool)
    for position in range(2, len(phones)):
        skips[STATES_PER_PHONE * position] = optional[position - 1]
    return Chain(states, skips)


def shortest(chain: Chain) -> int:
    """Frames that the chain needs at least (no optional silence, but one at each end)."""
    spoken = np.count_nonzero(chain.states >= STATES_PER_PHONE)
    return int(spoken) + 2 * STATES_PER_PHONE


def align(
    mels: Sequence[np.ndarray],
    cepstra: Sequence[np.ndarray],
    chains: Sequence[Chain],
    phone_count: int,
    gaussian_rounds: int = 8,
    network_rounds: int = 2,
    report: Callable[[str], None] = print,
) -> list[np.ndarray]:
    """Phone id of every frame, a list of int16 (frames,) in the order of `mels`.

    One thread and fixed seeds: the same versions on the same kind of processor give the same
    labels. `mels` are (frames, BANDS), `cepstra` (frames, 39).
    """
    torch.set_num_threads(1)
    state_count = phone_count * STATES_PER_PHONE
    paths = [_even_path(mel, chain) for mel, chain in zip(mels, chains, strict=True)]
    for number in range(gaussian_rounds):
        gaussians = _fit_gaussians(cepstra, chains, paths, state_count)
        total = 0.0
        for i, chain in enumerate(chains):
            scores = _gaussian_scores(cepstra[i], chain.states, *gaussians)
            paths[i], score = viterbi(scores, chain.skips)
            total += score
        mean = total / sum(map(len, paths))
        report(f"Gaussian round {number + 1}: log-likelihood {mean:.3f} a frame")
    for number in range(network_rounds):
        network = _Network(mels)
        loss = network.fit(np.concatenate(_along(chains, paths)), state_count)
        for i, chain in enumerate(chains):
            paths[i], _ = viterbi(network.scores(i)[:, chain.states], chain.skips)
        report(f"network round {number + 1}: cross-entropy {loss:.3f} a frame")
    return [(s // STATES_PER_PHONE).astype(np.int16) for s in _along(chains, paths)]


def _along(chains: Sequence[Chain], paths: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The state ids that the paths pass, one for each frame."""
    return [chain.states[path] for chain, path in zip(chains, paths, strict=True)]


def _even_path(mel: np.ndarray, chain: Chain) -> np.ndarray:
    """Silence where the ends are quiet, the spoken states evenly spread between."""
    frames, states = len(mel), chain.states
    energy = mel.mean(1)
    quiet, loud = np.percentile(energy, [5, 95])
    voiced = np.flatnonzero(energy > quiet + 0.3 * (loud - quiet))
    edge = STATES_PER_PHONE
    start, stop = edge, frames - edge
    spoken = np.flatnonzero(states >= STATES_PER_PHONE)
    if len(voiced):
        tight = max(voiced[0] - 3, edge), min(voiced[-1] + 4, frames - edge)
        if tight[1] - tight[0] >= len(spoken):
            start, stop = tight

    def spread(items: np.ndarray, count: int) -> np.ndarray:
        return items[np.arange(count) * len(items) // count]

    ends = np.arange(edge)
    return np.concatenate([spread(ends, start), spread(spoken, stop - start),
                           spread(len(states) - edge + ends, frames - stop)])


@numba.njit(cache=True)
def viterbi(scores, skips):
    """Best path of positions through a chain: (int32 (frames,), its score).

    scores: (frames, S) log-likelihood of each frame at each position. A path starts in the first
    silence or the phone after it and ends in the last silence or the phone before it.
    """
    frames, size = scores.shape
    jump = 4  # to the first state of a phone from the last state before the skipped silence
    best = np.full(size, -1e30)
    step = np.zeros((frames, size), np.int8)
    best[0] = scores[0, 0]
    if size > 3:
        best[3] = scores[0, 3]
    for t in range(1, frames):
        new = np.empty(size)
        for s in range(size):
            value, move = best[s], 0
            if s >= 1 and best[s - 1] > value:
                value, move = best[s - 1], 1
            if skips[s] and s >= jump and best[s - jump] > value:
                value, move = best[s - jump], jump
            new[s] = value + scores[t, s]
            step[t, s] = move
        best = new
    s = size - 1
    if size > 3 and best[size - 4] > best[s]:
        s = size - 4
    score = best[s]
    path = np.empty(frames, np.int32)
    for t in range(frames - 1, -1, -1):
        path[t] = s
        s -= step[t, s]
    return path, score


def _fit_gaussians(cepstra, chains, paths, state_count):
    """Means and variances (state_count, 39), drawn a little towards the global ones."""
    size = cepstra[0].shape[1]
    count = np.zeros(state_count)
    first, second = np.zeros((state_count, size)), np.zeros((state_count, size))
    for values, chain, path in zip(cepstra, chains, paths, strict=True):
        states, values = chain.states[path], values.astype(np.float64)
        count += np.bincount(states, minlength=state_count)
        np.add.at(first, states, values)
        np.add.at(second, states, values**2)
    mean = first.sum(0) / count.sum()
    power = second.sum(0) / count.sum()
    prior = 20.0  # frames: rare states need the help of the global Gaussian
    means = (first + prior * mean) / (count + prior)[:, None]
    variances = (second + prior * power) / (count + prior)[:, None] - means**2
    return means, np.maximum(variances, 0.05)


def _gaussian_scores(values, states, means, variances):
    """Log-likelihoods (frames, len(states)), each different state computed once."""
    used, places = np.unique(states, return_inverse=True)
    values = torch.from_numpy(values).double()
    mean = torch.from_numpy(means[used])
    precision = 1 / torch.from_numpy(variances[used])
    constant = 0.5 * (precision.log() - mean**2 * precision).sum(1)
    scores = constant - 0.5 * (values**2 @ precision.T) + values @ (mean * precision).T
    return np.ascontiguousarray(scores.numpy()[:, places])


class _Network:
    """A small multilayer perceptron that scores states from 11 of the 21 frames around one."""

    def __init__(self, mels: Sequence[np.ndarray]):
        torch.manual_seed(0)
        scaled = [(mel - mel.mean(0)) / (mel.std(0) + 1e-2) for mel in mels]
        lengths = torch.tensor([len(mel) for mel in mels])
        self.frames = torch.from_numpy(np.concatenate(scaled))
        self.stops = lengths.cumsum(0)
        self.starts = self.stops - lengths
        self.first = self.starts.repeat_interleave(lengths)
        self.last = self.stops.repeat_interleave(lengths) - 1

    def _inputs(self, index: torch.Tensor) -> torch.Tensor:
        around = index[:, None] + _CONTEXT
        around = around.clamp(self.first[index][:, None], self.last[index][:, None])
        return self.frames[around].flatten(1)

    def fit(self, states: np.ndarray, state_count: int) -> float:
        """One pass over all frames; the mean cross-entropy of its last tenth."""
        target = torch.from_numpy(states.astype(np.int64))
        share = torch.bincount(target, minlength=state_count) + 1.0
        self.log_prior = (share / share.sum()).log()
        width = len(_CONTEXT) * self.frames.shape[1]
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(width, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256),
            torch.nn.ReLU(), torch.nn.Linear(256, state_count),
        )
        optimizer = torch.optim.Adam(self.layers.parameters(), 1e-3)
        batches = torch.randperm(len(target)).split(_BATCH)
        losses = []
        for number, index in enumerate(batches):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - number / len(batches))
            loss = torch.nn.functional.cross_entropy(self.layers(self._inputs(index)),
                                                     target[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses[-max(1, len(losses) // 10):]))

    def scores(self, utterance: int) -> np.ndarray:
        """Scaled log-likelihoods of every state in one utterance: (frames, state_count)."""
        index = torch.arange(self.starts[utterance], self.stops[utterance])
        with torch.no_grad():
            scores = self.layers(self._inputs(index)).log_softmax(1)
        return (scores - _PRIOR_WEIGHT * self.log_prior).double().numpy()
