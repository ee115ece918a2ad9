"""Which CUDA compiler setup.py finds, and what it says when there is none; what was built on this machine."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from gtcbmuf.backends import cuda, native_is_built

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def build(monkeypatch):
    """setup.py on a machine without CUDA."""
    pytest.importorskip("setuptools", reason="needs setuptools")
    spec = spec_from_file_location("gtcbmuf_setup", ROOT / "setup.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("GTCBMUF_CUDA", "NVCC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "path", [])
    usual = module.nvcc_candidates
    monkeypatch.setattr(module, "nvcc_candidates", lambda: (c for c in usual() if c != "/usr/local/cuda/bin/nvcc"))
    return module


def toolkit(root, library="lib64"):
    """A folder that looks like one of CUDA; its nvcc says nothing."""
    nvcc = root / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    if library:
        (root / library).mkdir(parents=True)
        (root / library / "libcudart_static.a").write_text("")
    return str(nvcc)


def test_none_is_found(build, monkeypatch):
    assert build.find_cuda() is None
    monkeypatch.setenv("GTCBMUF_CUDA", "1")
    with pytest.raises(SystemExit, match="GTCBMUF_CUDA=1, but nvcc was not found .*pip install nvidia-cuda-nvcc"):
        build.find_cuda()


@pytest.mark.parametrize("how", ["NVCC", "CUDA_HOME", "PATH"])
def test_one_is_found(build, monkeypatch, tmp_path, how):
    nvcc = toolkit(tmp_path / "cuda")
    place = {"NVCC": nvcc, "CUDA_HOME": str(tmp_path / "cuda"), "PATH": os.path.dirname(nvcc)}
    monkeypatch.setenv(how, place[how])
    assert build.find_cuda() == (nvcc, str(tmp_path / "cuda" / "lib64"))
    monkeypatch.setenv("GTCBMUF_CUDA", "0")
    assert build.find_cuda() is None


@pytest.mark.parametrize("runtime", ["cu13", "cuda_runtime"])
def test_pypi(build, monkeypatch, tmp_path, runtime):
    """One folder for all (CUDA 13), or one for each package (12)."""
    together = runtime == "cu13"
    nvcc = toolkit(tmp_path / "nvidia" / ("cu13" if together else "cuda_nvcc"), "lib" if together else None)
    if not together:
        (tmp_path / "nvidia" / runtime / "lib").mkdir(parents=True)
        (tmp_path / "nvidia" / runtime / "lib" / "libcudart_static.a").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert build.find_cuda() == (nvcc, str(tmp_path / "nvidia" / runtime / "lib"))


def test_a_compiler_without_the_static_runtime(build, monkeypatch, tmp_path):
    monkeypatch.setenv("NVCC", toolkit(tmp_path / "cuda", None))
    assert build.find_cuda() is None
    monkeypatch.setenv("GTCBMUF_CUDA", "1")
    with pytest.raises(SystemExit, match="has no libcudart_static.a beside it .*pip install nvidia-cuda-runtime"):
        build.find_cuda()


def test_a_value_that_is_neither(build, monkeypatch):
    monkeypatch.setenv("GTCBMUF_CUDA", "yes")
    with pytest.raises(SystemExit, match="GTCBMUF_CUDA='yes': allowed is 1 .* or 0"):
        build.find_cuda()


@pytest.mark.skipif(not native_is_built(), reason="the extension gtcbmuf._core is not built")
def test_what_was_built_here():
    """It is loaded in this process, whether there is a driver or not; and asks for no shared CUDA runtime."""
    from gtcbmuf import _core

    if not cuda.is_built():
        pytest.skip("needs nvcc when gtcbmuf is installed")
    code = Path(_core.__file__).read_bytes()
    assert b"libcudart.so" not in code and b"libcuda.so.1" in code
    assert b"sm_80" in code and b"sm_90" in code


def test_newer_devices_get_ptx(build):
    assert "arch=compute_90,code=compute_90" in build.KERNEL_TARGETS
