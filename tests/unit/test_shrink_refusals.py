"""on_failure="shrink": what is refused."""

from types import SimpleNamespace

import pytest

from gtcbmuf import ulfm
from gtcbmuf.errors import SettingsError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid
from gtcbmuf.policy.survivor import check_survivable


def mpi(name, **methods):
    return SimpleNamespace(get_vendor=lambda: (name, (5, 0, 0)), Comm=SimpleNamespace(**methods))


@pytest.mark.parametrize("MPI, started, cure", [
    (mpi("MPICH", Shrink=None), True, "use Open MPI 5"),
    (mpi("Open MPI"), True, "use Open MPI 5"),
    (mpi("Open MPI", Shrink=None), False, "mpirun --with-ft ulfm"),
])  # fmt: skip
def test_an_mpi_without_ulfm_is_refused(MPI, started, cure):
    with pytest.raises(SettingsError, match=cure):
        ulfm.require(MPI, started)


def test_an_mpi_with_ulfm_is_not():
    ulfm.require(mpi("Open MPI", Shrink=None), True)


@pytest.mark.parametrize("strategy, name", [
    (Hybrid(GTC(threshold=1), BMUF(4, warmup_steps=3)), "warmup_steps"),
])  # fmt: skip
def test_strategies_that_are_refused(strategy, name):
    with pytest.raises(SettingsError, match=name):
        check_survivable(strategy)


@pytest.mark.parametrize("strategy", [Dense(), GTC(threshold=1, warmup_steps=3), GTC(threshold=1, exchange="owners"), BMUF(4, warmup_steps=3, sync_dtype="bfloat16"), BMUF(4, sync_overlap=True),
                                      BMUF(4, optimizer_state="average"), Hybrid(GTC(threshold=1), BMUF(4))])
def test_strategies_that_are_not(strategy):
    check_survivable(strategy)
