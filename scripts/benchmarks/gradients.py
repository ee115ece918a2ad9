"""Messages to unpack: those of workers that train the speech task, and random positions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from speech import data, model
from tqdm import tqdm

from gtcbmuf.errors import GtcbmufError

from .library import Encoder, Library

BATCH, CLIP, RATE = 8, 1.0, 1.0  # of a worker: sequences in a step, largest norm of a gradient, learning rate


@dataclass
class Messages:
    """messages[i] is the library's, uint8; words[i] the same by definition: 2 * index + negative, uint32, increasing.

    gradient, residual, threshold: what messages[-1] was encoded from.
    """

    name: str
    elements: int
    messages: list[np.ndarray] = field(default_factory=list)
    words: list[np.ndarray] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    gradient: np.ndarray | None = None
    residual: np.ndarray | None = None

    @property
    def sent(self) -> int:
        return sum(len(words) for words in self.words)

    @property
    def density(self) -> float:
        return self.sent / len(self.words) / self.elements

    def put(self, encoder: Encoder, gradient, residual, out, threshold) -> None:
        """Encodes, and adds the message and its words."""
        message = encoder.run(gradient, residual, out, threshold).copy()
        encoder.library.check(message)
        self.messages.append(message)
        self.words.append(reached(gradient, residual, threshold))
        self.thresholds.append(threshold)
        self.gradient, self.residual = gradient, residual


def reached(gradient: np.ndarray, residual: np.ndarray, threshold: float) -> np.ndarray:
    """The words of what has come to the threshold, as docs/algorithms.md defines it: no code of the codec is used."""
    total = residual + gradient
    indices = np.flatnonzero(np.abs(total) >= np.float32(threshold))
    return (2 * indices + (total[indices] < 0)).astype(np.uint32)


def check(library: Library, made: Messages) -> None:
    """The messages mean the words, all added to a sum; GtcbmufError if not."""
    found, expected = np.zeros((2, made.elements), np.float32)
    library.adder(made.messages, found)[0]()
    for words, threshold in zip(made.words, made.thresholds):
        quanta = np.where(words & 1, np.float32(-threshold), np.float32(threshold))
        expected[words >> 1] += quanta
    if not np.array_equal(found, expected):
        raise GtcbmufError(f"{made.name}: decode_add gives another sum than the definition")


def random(library: Library, elements: int, density: float, count: int, seed: int = 0) -> Messages:
    rng = np.random.default_rng(seed)
    made = Messages("random positions", elements)
    encoder, zeros, out = library.encoder(elements), np.zeros(elements, np.float32), np.ones(elements, np.float32)
    for _ in range(count):
        gradient = np.where(rng.random(elements, np.float32) < density, np.float32(1), np.float32(0.25))
        gradient *= 2 * rng.integers(0, 2, elements, np.int8) - 1
        made.put(encoder, gradient, zeros, out, 1.0)
    return made


def speech(
    library: Library, density: float, count: int, hidden: int, steps: int, workers: int = 4
) -> Messages:
    """Of the last steps of a training by GTC; τ is steered so that about `density` of the elements is sent."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task = data.load()
    net = model.AcousticModel(task.inputs, task.classes, hidden)
    parameters = list(net.parameters())
    elements = sum(p.numel() for p in parameters)
    made = Messages("speech gradients", elements)
    encoder, order, threshold = library.encoder(elements), data.epoch_order(len(task), 0, 0), None
    total, *residuals = np.zeros((1 + workers, elements), np.float32)
    kept = -(-count // workers)  # steps whose messages are kept
    for step in tqdm(range(steps), desc=f"speech, {density:.1%}", leave=False):
        total.fill(0)
        this = Messages(made.name, elements)
        for rank in range(workers):
            at = (step * workers + rank) * BATCH % (len(order) - BATCH)
            gradient = _gradient(net, parameters, *task.batch(order[at : at + BATCH]))
            if threshold is None:
                threshold = float(np.float32(np.quantile(np.abs(gradient), 1 - density)))
            out = np.empty_like(total)  # a new one: what a message was made from stays as it was
            this.put(encoder, gradient, residuals[rank], out, threshold)
            residuals[rank] = out
        library.adder(this.messages, total)[0]()
        _update(parameters, total, RATE * min(1, step / 10) / workers)
        threshold *= float(np.clip((this.density / density) ** 0.5, 0.5, 2))
        threshold = float(np.float32(threshold))
        if step >= steps - kept:
            made.messages += this.messages
            made.words += this.words
            made.thresholds += this.thresholds
            made.gradient, made.residual = this.gradient, this.residual
    return made


def _gradient(net, parameters, inputs, targets) -> np.ndarray:
    net.zero_grad()
    model.cross_entropy(net(inputs), targets).backward()
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    return torch.cat([p.grad.flatten() for p in parameters]).numpy()


@torch.no_grad()
def _update(parameters, total: np.ndarray, rate: float) -> None:
    at = 0
    for p in parameters:
        p -= rate * torch.from_numpy(total[at : at + p.numel()]).view_as(p)
        at += p.numel()
