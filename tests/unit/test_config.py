"""The environment is read in one place and nothing in it is ignored silently."""

from pathlib import Path

import pytest

from gtcbmuf import config
from gtcbmuf.errors import SettingsError

README = Path(__file__).parents[2] / "README.md"


def test_an_empty_environment_gives_the_defaults():
    assert config.read({"HOME": "/"}) == config.Config()
    assert config.Config().timeout_seconds == 600


def test_each_setting_is_read():
    found = config.read({
        "GTCBMUF_VARIANT": "scalar",
        "GTCBMUF_BACKEND": "portable",
        "GTCBMUF_THREADS": "3",
        "GTCBMUF_TIMEOUT_SECONDS": "1.5",
        "GTCBMUF_STALL_SECONDS": "0.5",
        "GTCBMUF_PROGRESS_THREAD": "0",
        "GTCBMUF_SHARED_MEMORY": "0",
        "GTCBMUF_REQUIRE_NATIVE": "1",
        "GTCBMUF_CUDA_MPI": "0",
    })
    assert found == config.Config(
        variant="scalar", backend="portable", threads=3, timeout_seconds=1.5, stall_seconds=0.5, progress_thread=False,
        shared_memory=False, require_native=True, cuda_mpi=False,
    )


def test_set_but_empty_is_not_set():
    assert config.read({"GTCBMUF_THREADS": " "}) == config.Config()


@pytest.mark.parametrize("name, value, allowed", [
    ("GTCBMUF_VARIANT", "avx 512", "gtcbmuf doctor"),
    ("GTCBMUF_BACKEND", "cuda", "native or portable"),
    ("GTCBMUF_THREADS", "0", "at least 1"),
    ("GTCBMUF_THREADS", "two", "at least 1"),
    ("GTCBMUF_TIMEOUT_SECONDS", "-1", "greater than 0"),
    ("GTCBMUF_TIMEOUT_SECONDS", "inf", "greater than 0"),
    ("GTCBMUF_TIMEOUT_SECONDS", "nan", "greater than 0"),
    ("GTCBMUF_PROGRESS_THREAD", "yes", "0 or 1"),
])
def test_an_unknown_value_says_what_is_allowed(name, value, allowed):
    with pytest.raises(SettingsError, match=allowed) as caught:
        config.read({name: value})
    assert name in str(caught.value) and repr(value) in str(caught.value)


def test_an_unknown_name_says_which_are_known():
    with pytest.raises(SettingsError) as caught:
        config.read({"GTCBMUF_TIMEOUT": "5"})
    assert "GTCBMUF_TIMEOUT," in str(caught.value)
    for setting in config.SETTINGS:
        assert setting.name in str(caught.value)


def test_every_field_has_a_setting():
    fields = {setting.field for setting in config.SETTINGS}
    assert fields == set(config.Config.__dataclass_fields__)


@pytest.mark.parametrize("cores, local_size, threads",
                         [(2, 4, 1), (8, 2, 4), (64, 4, 4), (6, 2, 3), (1, 1, 1), (4, 0, 4)])
def test_default_threads(monkeypatch, cores, local_size, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(cores), raising=False)
    assert config.default_threads(local_size) == threads


def test_the_readme_has_the_same_table():
    assert config.markdown_table() in README.read_text()
