"""scripts/gpu/rank.py over the emulation of tests/cuda: tensors on the host stand in for those on the GPU."""

import sys
from pathlib import Path

import torch
from cuda_emulated import emulated_core
from torch_devices import EmulatedHome

from gtcbmuf.backends import cuda
from gtcbmuf.torch import optimizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from gpu import rank

torch.set_num_threads(1)
cuda.core = emulated_core()
optimizer.home_of = lambda named, rank: EmulatedHome()
rank.main(torch.device("cpu"))
