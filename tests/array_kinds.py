"""Whose arrays a test trains with: NumPy's, CuPy's over the emulation of tests/cuda, and the real CuPy's where there is a GPU."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_emulated import cuda_tests, emulated_core

from gtcbmuf.backends import cuda, native_is_built

KINDS = ["numpy", "cupy, emulated", "cupy"]


def kind_of(name, monkeypatch):
    """name: what it is called; bind; up and down: NumPy's array as one of this kind, and back; or the test is skipped."""
    if name == "numpy":
        from gtcbmuf.numpy import bind

        return SimpleNamespace(name=name, bind=bind, up=lambda array: array, down=np.asarray)
    if name == "cupy":
        if not cuda.devices()[0]:
            pytest.skip(f"this machine has no GPU that can be used: {cuda.devices()[1]}")
        library = pytest.importorskip("cupy", reason="needs CuPy")
    else:
        if not (native_is_built() and cuda_tests.compilers_are_here()):
            pytest.skip("needs the extension gtcbmuf._core, and a C and a C++ compiler")
        library = importlib.import_module("fake_cupy")
        monkeypatch.setattr(cuda, "core", emulated_core())
        monkeypatch.setitem(sys.modules, "cupy", library)
    monkeypatch.delitem(sys.modules, "gtcbmuf.cupy", raising=False)
    adapter = importlib.import_module("gtcbmuf.cupy")
    return SimpleNamespace(name=name, bind=adapter.bind, up=library.asarray, down=lambda array: array.get())
