"""The speech task as a Problem of gtcbmuf.simulate, with the gradient in C (lstm.c).

A step of a virtual worker is one training sequence. Everything is on one core: run as many
simulations at a time as there are cores.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from gtcbmuf.policy import Tensor

from . import data
from .model import AcousticModel, frame_error_rate

SOURCE = Path(__file__).with_name("lstm.c")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared")
LIMITS = {"steps": 32, "inputs": 256, "classes": 512}  # of lstm.c


class CompilerError(RuntimeError):
    """There is no C compiler, or it failed; the message has the cure or its output."""


def compile_gradient(hidden: int):
    """speech_gradient of lstm.c for this CPU, in about a second. Raises CompilerError."""
    if hidden < 16 or hidden % 16:
        raise ValueError(f"hidden={hidden}: a layer has a multiple of 16 units here")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise CompilerError("a C compiler is needed (Debian: apt install gcc; or set CC)")
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/lstm.so"
        command = [compiler, *FLAGS, f"-DHIDDEN={hidden}", str(SOURCE), "-o", library, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompilerError(f"{' '.join(command)}\n{done.stderr}")
        function = ctypes.CDLL(library).speech_gradient  # stays mapped when the file is gone
    function.restype = ctypes.c_float
    function.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 4
    return function


class SpeechProblem:
    """Framewise phone recognition; see gtcbmuf.simulate.Problem. Not for several threads.

    Minibatch m is one sequence: number m of the epochs' orders laid end to end.
    """

    def __init__(self, speech: data.Speech, *, hidden: int = 96, seed: int = 0, name: str = ""):
        self._function = compile_gradient(hidden)
        self.speech, self.seed = speech, seed
        torch.manual_seed(seed)
        self.model = AcousticModel(speech.inputs, speech.classes, hidden)
        self.tensors = [Tensor(n, tuple(p.shape)) for n, p in self.model.named_parameters()]
        self.description = (
            f"speech {name}, {len(speech)} sequences, {speech.classes} phones, {hidden} units, "
            f"seed {seed}"
        )
        self._start = torch.cat([p.detach().flatten() for p in self.model.parameters()]).numpy()
        self._features, self._labels = speech.features.numpy(), speech.labels.numpy()
        self._first, self._stop = speech.first.numpy(), speech.stop.numpy()
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self._splits: dict[str, list[data.Batch]] = {}

    def start(self) -> np.ndarray:
        return self._start.copy()

    def gradient(self, minibatch: int, params: np.ndarray, out: np.ndarray) -> float:
        inputs, targets = self.sequence(self._number(minibatch))
        steps, width = inputs.shape
        return self._function(
            steps, width, self.speech.classes, inputs.ctypes.data, targets.ctypes.data,
            params.ctypes.data, out.ctypes.data,
        )  # fmt: skip

    def _number(self, minibatch: int) -> int:
        epoch, at = divmod(minibatch, len(self.speech))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = data.epoch_order(len(self.speech), self.seed, epoch)
        return int(self._order[at])

    def sequence(self, number: int) -> data.Batch:
        """What Speech.batch gives for one, by the same arithmetic, as NumPy arrays:
        inputs float32 (20, 120), targets int64 (20,)."""
        first, stop = int(self._first[number]), int(self._stop[number])
        step = data.STACK * np.arange(data.STEPS)
        if first + data.STACK * data.STEPS <= stop:
            inputs = self._features[first : first + data.STACK * data.STEPS]
        else:
            read = np.minimum(first + step, stop - data.STACK)
            inputs = self._features[read[:, None] + np.arange(data.STACK)]
        spoken = first + step - data.STACK * data.DELAY
        counts = (spoken >= first) & (spoken < stop)
        targets = self._labels[np.where(counts, spoken + data.STACK // 2, first)]
        return inputs.reshape(data.STEPS, -1), np.where(counts, targets, data.IGNORE)

    def evaluate(self, params: np.ndarray) -> dict[str, float]:
        """Frame error rates, 0 to 1, of the splits that the set has."""
        vector = torch.from_numpy(params.copy())
        torch.nn.utils.vector_to_parameters(vector, self.model.parameters())
        if not self._splits:
            found = {name: self.speech.evaluation(name) for name in data.SPLIT_NAMES[1:]}
            self._splits = {name: batches for name, batches in found.items() if batches}
        return {n: frame_error_rate(self.model, batches) for n, batches in self._splits.items()}
