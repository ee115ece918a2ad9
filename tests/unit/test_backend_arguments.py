"""What the user can get wrong: arguments of the codecs, and the choice of one."""

import subprocess
import sys

import codecs_under_test as codecs
import numpy as np
import pytest

from gtcbmuf.backends import choose, native_is_built, portable
from gtcbmuf.errors import SettingsError

every_codec = pytest.mark.parametrize("codec", codecs.ALL)


# -- arguments -----------------------------------------------------------------------------------


def bad_arguments():
    """(name, change of sound arguments of encode, error, words of its text)."""
    f = np.float32
    memory = np.zeros(20, f)
    frozen = np.zeros(10, f)
    frozen.flags.writeable = False
    unaligned = np.zeros(41, np.uint8)[1:].view(f)
    sound = [np.zeros(10, f)]
    yield "an_array", {"segments": np.zeros(10, f)}, TypeError, "put a single array into a list"
    yield "no_array", {"segments": [[0.0] * 10]}, TypeError, r"segments\[0\] must be a NumPy array"
    yield "two_dims", {"segments": [np.zeros((2, 5), f)]}, ValueError, r"shape \(2, 5\)"
    yield "strided", {"segments": [np.zeros(20, f)[::2]]}, ValueError, "ascontiguousarray"
    yield "unaligned", {"segments": [unaligned]}, ValueError, "not aligned"
    yield "ints", {"segments": [np.zeros(10, np.int32)]}, TypeError, "int32; gradients are one of"
    yield "bits", {"segments": [np.zeros(10, np.uint16)]}, TypeError, "pass dtype='bfloat16'"
    yield "swapped", {"segments": [np.zeros(10, ">f4")]}, ValueError, "native byte order"
    yield "two_dtypes", {"segments": [np.zeros(5, f), np.zeros(5)]}, TypeError, "float64, expected"
    yield "not_dtype", {"segments": sound, "dtype": "float64"}, TypeError, "float32, expected float"
    yield "no_dtype", {"segments": sound, "dtype": "int8"}, TypeError, "dtype is 'int8'"
    yield "empty", {"segments": []}, ValueError, "no elements"
    yield "short_in", {"residual_in": np.zeros(9, f)}, ValueError, "9 elements, the segments have"
    yield "long_out", {"residual_out": np.zeros(11, f)}, ValueError, "residual_out has 11 elements"
    yield "double_in", {"residual_in": np.zeros(10)}, TypeError, "residual_in has dtype float64"
    yield "read_only", {"residual_out": frozen}, ValueError, "residual_out is read-only"
    yield "overlap", {"residual_in": memory[:10], "residual_out": memory[5:15]}, ValueError, "apart"
    yield "aliased", {"segments": [memory[:10]], "residual_out": memory[:10]}, ValueError, "a copy"
    for value in (0, -1.0, np.nan, np.inf, 1e-50, 1e39):
        yield f"tau_{value}", {"threshold": value}, ValueError, "finite and > 0"
    yield "tau_text", {"threshold": "big"}, TypeError, "threshold must be a number"
    yield "cap_0", {"max_sent": 0}, ValueError, "max_sent is 0"
    yield "cap_half", {"max_sent": 0.5}, TypeError, "max_sent must be an integer"
    yield "sequence", {"sequence": 2**64}, ValueError, r"sequence is 18446744073709551616"
    yield "bucket", {"bucket": 2**32}, ValueError, "bucket is 4294967296"
    yield "sender", {"sender": -1}, ValueError, "sender is -1"


@every_codec
@pytest.mark.parametrize("change, error, says", [
    pytest.param(*each, id=name) for name, *each in bad_arguments()
])  # fmt: skip
def test_bad_arguments_of_encode(codec, change, error, says):
    zeros = np.zeros(10, np.float32)
    arguments = {
        "segments": [zeros + 1], "residual_in": zeros.copy(), "residual_out": zeros.copy(),
        "threshold": 1.0, **change,
    }  # fmt: skip
    with pytest.raises(error, match=says):
        codec.encode(**arguments)


@every_codec
def test_bad_arguments_of_the_others(codec):
    for array, error in [(np.zeros(3, np.int32), TypeError), (np.zeros((2, 2)), ValueError)]:
        with pytest.raises(error):
            codec.raw(array)
    with pytest.raises(ValueError, match="weight is -1"):
        codec.raw(np.zeros(3), weight=-1)
    with pytest.raises(TypeError, match="contiguous buffer of bytes"):
        codec.validate("text")
    with pytest.raises(TypeError, match="dense has dtype float64"):
        codec.decode_add([], np.zeros(3))
    with pytest.raises(ValueError, match="dense is read-only"):
        codec.decode_add([], np.frombuffer(bytes(12), np.float32))


# -- choosing ------------------------------------------------------------------------------------


def test_choose_never_falls_back_silently(monkeypatch):
    monkeypatch.setattr("gtcbmuf.backends.native_is_built", lambda: False)
    with pytest.raises(SettingsError, match="GTCBMUF_BACKEND=portable"):
        choose("native")
    with pytest.warns(RuntimeWarning, match="not built: using portable"):
        assert choose() is portable


def test_choose_by_name():
    assert choose("portable") is portable
    with pytest.raises(SettingsError, match="'fast' does not exist"):
        choose("fast")


@pytest.mark.skipif(not native_is_built(), reason="the extension gtcbmuf._core is not built")
def test_choose_native():
    assert choose() == choose("native")
    assert choose("native", variant="scalar", threads=2).variant == "scalar"
    with pytest.raises(SettingsError, match="variant 'sse' does not exist"):
        choose("native", variant="sse")
    with pytest.raises(SettingsError, match="threads is 0"):
        choose("native", threads=0)


def test_portable_works_without_numba():
    program = """
import sys
sys.modules["numba"] = None
import numpy as np
from gtcbmuf.backends import portable
message = portable.encode([np.ones(9, np.float32)], *np.zeros((2, 9), np.float32), 0.5)
dense = np.zeros(9, np.float32)
portable.decode_add([message], dense)
assert (dense == 0.5).all() and portable.kernels.__name__.endswith("kernels_numpy")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
