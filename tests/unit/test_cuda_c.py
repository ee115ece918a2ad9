"""The kernels of csrc/cuda, emulated (tests/cuda), beside the scalar codec. No GPU is needed."""

import subprocess

import pytest
from cuda_emulated import cuda_tests

pytestmark = pytest.mark.skipif(not cuda_tests.compilers_are_here(), reason="needs a C and a C++ compiler")


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return cuda_tests.Builder(tmp_path_factory.mktemp("cuda"))


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if name in cuda_tests.SLOW else ()) for name in cuda_tests.TESTS
])  # fmt: skip
def test_kernels(builder, name):
    try:
        print(builder.run(name))
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{name}: exit status {error.returncode}\n{error.stdout or ''}", pytrace=False)
