"""The C tests of the codec (tests/codec), compiled and run here."""

import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

# By its path: there is another run.py in tests/parallel.
spec = spec_from_file_location("codec_tests", Path(__file__).parents[1] / "codec" / "run.py")
codec_tests = module_from_spec(spec)
spec.loader.exec_module(codec_tests)

pytestmark = pytest.mark.skipif(not codec_tests.compiler_is_here(), reason="no C compiler")


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return codec_tests.Builder(tmp_path_factory.mktemp("codec"))


@pytest.mark.parametrize("name", codec_tests.TESTS)
def test_codec(builder, name):
    try:
        print(builder.run(name))
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{name}: exit status {error.returncode}\n{error.stdout or ''}", pytrace=False)
