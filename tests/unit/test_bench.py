"""gtcbmuf bench in one process: it checks before it times, and what it saves is read by plan."""

import math

import numpy as np
import pytest

from gtcbmuf.backends import choose, native_is_built, portable
from gtcbmuf.cli import main
from gtcbmuf.errors import GtcbmufError
from gtcbmuf.plan import inputs, measure
from gtcbmuf.plan.exchanges import Team
from gtcbmuf.plan.model import Job, dense, gtc
from gtcbmuf.plan.network import Link, Network, Rates

pytestmark = pytest.mark.skipif(not native_is_built(), reason="needs the extension")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(measure, "ELEMENTS", 1 << 18)
    for variable in ("OMPI_COMM_WORLD_SIZE", "PMIX_NAMESPACE", "PMI_SIZE"):
        monkeypatch.delenv(variable, raising=False)


class Wrong:
    """A codec that does one thing wrong."""

    def __init__(self, **methods):
        self.__dict__.update(methods)

    def __getattr__(self, name):
        return getattr(portable, name)


def test_a_wrong_codec_is_found_before_it_is_timed():
    measure.check_codec(choose("native"))
    measure.check_codec(portable)
    with pytest.raises(GtcbmufError, match="not that of the portable"):
        measure.check_codec(Wrong(encode=lambda g, i, o, t: portable.encode(g, i, o, 2 * t)))
    with pytest.raises(GtcbmufError, match="does not give back"):
        measure.check_codec(Wrong(decode_add=lambda messages, dense: None))


def test_gradients_have_the_density_and_differ_between_ranks():
    one, other = (measure.gradient(rank, 100_000, 0.01) for rank in (0, 1))
    assert np.count_nonzero(one) == pytest.approx(1000, rel=0.1)
    assert set(np.unique(one)) == {-1, 0, 1} and not np.array_equal(one, other)


def test_rates_are_of_the_right_magnitude():
    rates = measure.rates(choose("native"), 0.01)
    assert all(1e5 < rate < 1e12 for rate in (rates.encode, rates.decode, rates.reduce))


def test_the_limit_is_where_the_formulas_of_a_plan_agree():
    rates, n = Rates(2e8, 1e8, 3e8), measure.ELEMENTS
    job = Job(n, 1.0, 2, 1, density=0.01, overlap=0.0, bucket_bytes=4 * n)
    at = measure.worthwhile_below(rates, 0.01)
    seconds = [method(job, Network(Link(at), rates=rates)).step - 1 for method in (dense, gtc)]
    assert seconds[0] == pytest.approx(seconds[1], rel=1e-3)
    assert measure.worthwhile_below(Rates(1e9, 1e9, 1e8), 0.01) == math.inf


def test_the_predicted_trial_is_that_of_the_model():
    network, n = Network(Link(1e8, 1e-4)), measure.ELEMENTS
    job = Job(n, 1.0, 8, 4, density=0.01, overlap=0.0, bucket_bytes=4 * n)
    trial = measure.predicted(network, Team.of(8, 4), 0.01)
    assert trial.dense == pytest.approx(dense(job, network).step - 1)
    assert trial.gtc == pytest.approx(gtc(job, network).step - 1)


def test_the_bucket_is_the_smallest_that_does_not_wait_for_latency():
    density, team = 0.01, Team.of(8, 4)
    for latency in (0.0, 1e-5, 1e-4, 3e-4, 1.0):
        network = Network(Link(1e8, latency), Link(1e9, latency))
        job = lambda mib: Job(mib << 18, 1.0, 8, 4, density=density, overlap=0.0, bucket_bytes=mib << 20)
        free = Network(Link(1e8, 0.0), Link(1e9, 0.0))

        def share(mib):  # of latency, in what a step of one bucket takes
            step = gtc(job(mib), network).step - 1
            return (step - (gtc(job(mib), free).step - 1)) / step

        sizes = [mib for mib in (1, 2, 4, 8, 16, 32) if share(mib) <= 0.1]
        assert measure.worthwhile_bucket(network, team, density) == (sizes[0] if sizes else 64) << 20
    assert {measure.worthwhile_bucket(Network(Link(1e8, x), Link(1e9, x)), team, density) >> 20 for x in (0.0, 1e-4, 1.0)} == {1, 4, 64}


def test_the_command_saves_what_plan_reads(tmp_path, capsys):
    path = tmp_path / "here.json"
    assert main(["bench", "--save", str(path)]) == 0
    out = capsys.readouterr().out
    assert "million sent elements/s" in out and "compression to a density of 0.005 pays" in out
    found = inputs.load(path)
    assert found.inter is None and found.rates.encode > 0 and found.about["ranks"] == 1
    job = ["plan", "--elements", "1e6", "--step-ms", "50", "--workers", "4", "--inputs", str(path)]
    assert main(job) == 2  # no link was measured
    assert main([*job, "--link-gbit", "1"]) == 0


@pytest.mark.parametrize("options, says", [
    (["--density", "0"], "--density 0.0"), (["--density", "nan"], "--density nan"),
    (["--save", "FILE"], "exists; name another file, or add --force"),
])  # fmt: skip
def test_refusals_come_before_measuring(options, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "rates", lambda *_: pytest.fail("it has measured"))
    path = tmp_path / "here.json"
    path.write_text("mine")
    assert main(["bench", *(str(path) if o == "FILE" else o for o in options)]) == 2
    assert says in capsys.readouterr().err and path.read_text() == "mine"
