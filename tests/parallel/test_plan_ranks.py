"""The bytes of a plan are those that the exchange counts, for every operation and strategy; and
gtcbmuf bench as a job."""

import numpy as np
import pytest

import gtcbmuf
import gtcbmuf.numpy
from gtcbmuf import runtime
from gtcbmuf.cli import main
from gtcbmuf.errors import GtcbmufError
from gtcbmuf.job import Job
from gtcbmuf.plan import exchanges, inputs, measure
from gtcbmuf.plan.exchanges import Team
from gtcbmuf.plan.model import FINITE_BYTES, MEET_BYTES
from gtcbmuf.plan.network import Link, Network
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid

NETWORK = Network(Link(1e9))
ELEMENTS = 60_060  # divisible by 1 to 5: every rank sends the same
PERIOD = 3


@pytest.fixture(autouse=True, scope="module")
def _init():
    gtcbmuf.init()


@pytest.fixture
def team(comm):
    return Team.of(comm.size, comm.size)


def mean_sent(comm, before, after) -> float:
    return comm.allreduce(after - before) / comm.size


def sent():
    return runtime.counters()["bytes_sent"]


@pytest.mark.parametrize("elements", [1, 2000, ELEMENTS])
def test_operations(comm, team, elements):
    world, array = runtime.world(), np.zeros(elements, np.float32)
    operations = [
        (world.post_allreduce, exchanges.allreduce),
        (world.post_broadcast, exchanges.broadcast),
        (world.post_allgather, exchanges.allgather),
    ]
    for post, cost in operations:
        before = sent()
        post(array).wait()
        expected = cost(NETWORK, team, 4 * elements).sent if comm.size > 1 else 0
        assert mean_sent(comm, before, sent()) == pytest.approx(expected, rel=1e-6)


def test_owners(comm, team):
    """All ranks send the same elements, and so do their owners."""
    values, n = np.zeros(ELEMENTS, np.float32), comm.size
    values[::10] = 1
    first, second = np.zeros((2, ELEMENTS), np.float32), np.zeros((2, ELEMENTS // n), np.float32)
    before = sent()
    runtime.world().post_owners(0, [values], *first, 1.0, *second, float(n)).wait()
    body = exchanges.expected_body(ELEMENTS / n, ELEMENTS / n / 10)
    expected = exchanges.owners(NETWORK, team, body, body).sent if n > 1 else 0
    assert mean_sent(comm, before, sent()) == pytest.approx(expected, rel=0.02)


def bytes_of_a_block(comm, strategy) -> float:
    """By a rank, the mean, in PERIOD steps of one parameter."""
    params = {"weight": np.zeros(ELEMENTS, np.float32)}
    opt = strategy.bind(params)
    opt.after_update()  # all ranks compare what they train; BMUF: the block is one step on
    for _ in range(PERIOD - 1):
        opt.reduce_({"weight": gradient(comm)})
        opt.after_update()
    opt.state_dict()  # waits for a mean that is under way
    before = sent()
    for _ in range(PERIOD):
        opt.reduce_({"weight": gradient(comm)})
        opt.after_update()
    opt.state_dict()
    return mean_sent(comm, before, sent())


def gradient(comm):
    """Every 10th element is sent."""
    values = np.zeros(ELEMENTS, np.float32)
    values[comm.rank :: 10] = 1
    return values


def test_strategies(comm, team):
    n = comm.size
    if n == 1:
        pytest.skip("needs at least 2 ranks")
    dense = exchanges.allreduce(NETWORK, team, 4 * ELEMENTS).sent
    assert bytes_of_a_block(comm, Dense()) == pytest.approx(PERIOD * dense, rel=1e-6)

    body = exchanges.expected_body(ELEMENTS, ELEMENTS / 10)
    gtc = exchanges.allgather(NETWORK, team, body).sent
    assert bytes_of_a_block(comm, GTC(threshold=1.0)) == pytest.approx(PERIOD * gtc, rel=0.02)

    meet = exchanges.allgather(NETWORK, team, MEET_BYTES).sent
    assert bytes_of_a_block(comm, BMUF(PERIOD)) == pytest.approx(meet + dense, rel=1e-6)

    half = exchanges.allreduce(NETWORK, team, 2 * ELEMENTS).sent
    rounded = BMUF(PERIOD, sync_dtype="bfloat16")
    assert bytes_of_a_block(comm, rounded) == pytest.approx(meet + half, rel=1e-6)
    late = BMUF(PERIOD, sync_dtype="bfloat16", sync_overlap=True)
    finite = exchanges.allgather(NETWORK, team, FINITE_BYTES).sent
    assert bytes_of_a_block(comm, late) == pytest.approx(meet + finite + half, rel=1e-6)

    hybrid = Hybrid(GTC(threshold=1.0), BMUF(PERIOD), groups="world")
    block = meet + exchanges.allgather(NETWORK, team, 0).sent
    block += exchanges.broadcast(NETWORK, team, 4 * ELEMENTS).sent
    assert bytes_of_a_block(comm, hybrid) == pytest.approx(PERIOD * gtc + block, rel=0.02)

    apart = Hybrid(GTC(threshold=1.0), BMUF(PERIOD), groups=1)
    assert bytes_of_a_block(comm, apart) == pytest.approx(meet + dense, rel=1e-6)


# -- gtcbmuf bench --------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(measure, "ELEMENTS", 1 << 16)
    monkeypatch.setattr(measure, "CHECKED", 5000)
    monkeypatch.setattr(measure, "LARGE", 1 << 16)
    monkeypatch.setattr(measure, "REPEATS", 3)
    monkeypatch.setattr(measure, "SMALL_REPEATS", 3)


def pretend_hosts(comm, monkeypatch):
    """Two ranks on each host, of which the last may have one."""
    numbers = [rank - rank % 2 for rank in range(comm.size)]
    monkeypatch.setattr(Job, "host_numbers", numbers)


def test_bench_measures_both_kinds_of_links(comm, small, shared_tmp_path, monkeypatch, capfd):
    if comm.size < 3:
        pytest.skip("needs at least 3 ranks")
    pretend_hosts(comm, monkeypatch)
    path = shared_tmp_path / "here.json"
    assert main(["bench", "--save", str(path)]) == 0
    out = capfd.readouterr().out
    assert ("compression" in out.lower()) == ("bucket_bytes=" in out) == (comm.rank == 0)
    comm.Barrier()
    found = inputs.load(path)
    assert found.about["ranks"] == comm.size and found.about["hosts"] == (comm.size + 1) // 2
    assert found.inter.bandwidth > 0 and found.intra.latency > 0
    comm.Barrier()
    before = path.read_text()
    assert main(["bench", "--save", str(path)]) == 2
    assert ("exists" in capfd.readouterr().err) == (comm.rank == 0)
    assert path.read_text() == before


def test_a_wrong_sum_is_found_before_it_is_timed(comm, small, monkeypatch):
    measure.trial(runtime.world(), 0.01)
    made = measure.gradient

    def biased(rank, elements, density):
        values = made(rank, elements, density)
        values[7] = 1 + comm.rank  # another one than the other ranks believe it to be
        return values

    monkeypatch.setattr(measure, "gradient", biased)
    if comm.size > 1:
        with pytest.raises(GtcbmufError, match="another sum"):
            measure.trial(runtime.world(), 0.01)
