"""The codecs under test, as pytest parameters: portable with either kernels, every native variant.

Without the extension there is one native parameter, which is skipped (a failure where
GTCBMUF_REQUIRE_NATIVE=1).
"""

import importlib.util

import pytest

from gtcbmuf.backends import kernels_numpy, native_is_built, portable


def _portable_on_numpy():
    """A second copy of the module, running on the NumPy kernels."""
    spec = importlib.util.spec_from_file_location("portable_on_numpy", portable.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.kernels = kernels_numpy
    return module


def _native(threads):
    if not native_is_built():
        mark = pytest.mark.skip(reason="the extension gtcbmuf._core is not built")
        return [pytest.param(None, id="native", marks=mark)]
    from gtcbmuf.backends.native import NativeCodec, variants

    parameters = []
    for name, supported in variants():
        mark = pytest.mark.skipif(not supported, reason=f"this CPU lacks {name}")
        codec = NativeCodec(name, threads) if supported else None
        parameters.append(pytest.param(codec, id=f"{name}-{threads}", marks=mark))
    return parameters


PORTABLE_ON_NUMPY = _portable_on_numpy()
PORTABLE = [
    pytest.param(portable, id="portable"),
    pytest.param(PORTABLE_ON_NUMPY, id="numpy"),
]
ALL = PORTABLE + _native(threads=1)
BUT_PORTABLE = ALL[1:]  # to be compared with portable
THREADED = _native(threads=3)  # for buckets that are large enough to be cut
