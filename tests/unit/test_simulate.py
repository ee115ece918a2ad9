"""Training with virtual workers: the bits of the plain loops."""

import numpy as np
import oracle_training as oracle
import pytest
from tiny_problem import LeastSquares, rate, sgd

from gtcbmuf.errors import NonFiniteError, SettingsError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid
from gtcbmuf.simulate import Schedule, Simulation, clip, simulate

STEPS, TAU, PERIOD = 12, 0.3, 4
BLOCK = {"block_momentum": 0.6, "block_lr": 0.9}


def gtc(**settings):
    return GTC(threshold=TAU, dense_below=0, **settings)


def trained(strategy, workers, groups=None, steps=STEPS, **schedule):
    """(problem, the simulation at its end, W after each step)."""
    problem = LeastSquares()
    schedule = Schedule(steps * workers + schedule.get("alone", 0), rate, **schedule)
    run = Simulation(problem, strategy, workers, groups, schedule=schedule)
    path = [run.global_params().copy() for _ in run.steps()]
    return problem, run, path


def same(a, b):
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("average", [True, False])
def test_gtc_has_the_bits_of_the_oracle(workers, average):
    problem, run, path = trained(gtc(average=average, bucket_bytes=600), workers)
    assert len(run.layout.buckets) == 2
    wanted, residuals = oracle.gtc_run(
        problem.start(), problem.of_rank(workers), sgd(workers, STEPS * workers),
        workers=workers, steps=STEPS, threshold=TAU, average=average,
    )  # fmt: skip
    for one, other in zip(path, wanted, strict=True):
        assert same(one, other)
    assert not same(path[0], path[-1])
    for rank in range(workers):
        assert same(residual(run, rank), residuals[rank])


def residual(run, rank):
    lanes, out = run.workers[rank].state()["gradients"]["lanes"], np.empty(run.layout.elements)
    for bucket, lane in zip(run.layout.buckets, lanes):
        for whole, own in run._places(bucket):
            out[whole] = lane["residual"][own]
    return out.astype(np.float32)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_bmuf_has_the_bits_of_the_oracle(workers, nesterov):
    strategy = BMUF(sync_period=PERIOD, nesterov=nesterov, **BLOCK)
    problem, run, path = trained(strategy, workers)
    gradient, update = problem.of_rank(workers), sgd(workers, STEPS * workers)
    wanted = oracle.bmuf_run(
        problem.start(), lambda r, s, p: update(r, s, p, gradient(r, s, p)),
        workers=workers, steps=STEPS, period=PERIOD, nesterov=nesterov, **BLOCK,
    )  # fmt: skip
    for i, (w, _) in enumerate(wanted):
        assert same(path[PERIOD * (i + 1) - 1], w)
        for step in range(PERIOD * i, PERIOD * (i + 1) - 1):  # within a block: W of before
            assert same(path[step], wanted[i - 1][0] if i else problem.start())
    assert same(run.result().params, wanted[-1][0])


def test_the_last_block_may_be_shorter():
    workers, steps = 3, PERIOD + 2
    problem, run, path = trained(BMUF(sync_period=PERIOD, **BLOCK), workers, steps=steps)
    gradient, update = problem.of_rank(workers), sgd(workers, steps * workers)
    block = oracle.Block(problem.start(), **BLOCK)
    for first, last in (0, PERIOD), (PERIOD, steps):
        ends = [block.start] * workers
        for step in range(first, last):
            ends = [update(r, step, p, gradient(r, step, p)) for r, p in enumerate(ends)]
        block.synchronise(ends, [last - first] * workers)
    assert same(path[-1], block.w) and same(run.result().params, block.w)


def test_momentum_is_averaged_if_the_strategy_says_so():
    def buffers(state, steps):
        strategy = BMUF(sync_period=PERIOD, optimizer_state=state, **BLOCK)
        schedule = Schedule(3 * 8, rate, momentum=0.5)
        run = Simulation(LeastSquares(), strategy, 3, schedule=schedule)
        for _ in zip(range(steps), run.steps(), strict=False):
            pass
        return [team.sgd.buffer for team in run.teams]

    kept, averaged = buffers("keep", PERIOD), buffers("average", PERIOD)
    assert not same(kept[0], kept[1])
    for buffer in averaged:
        assert same(buffer, np.mean(kept, axis=0, dtype=np.float64).astype(np.float32))
    for buffer in buffers("auto", PERIOD):
        assert not buffer.any()


@pytest.mark.parametrize("residuals", ["keep", "zero"])
@pytest.mark.parametrize("workers, groups", [(4, 2), (5, 2), (5, [[0, 2, 4], [1], [3]]), (1, 1)])
def test_hybrid_has_the_bits_of_the_oracle(workers, groups, residuals):
    strategy = Hybrid(gtc(), BMUF(sync_period=PERIOD, **BLOCK), groups, residuals)
    problem, run, path = trained(strategy, workers)
    members = run.groups[0].members
    wanted, left = oracle.hybrid_run(
        problem.start(), problem.of_rank(workers), sgd(workers, STEPS * workers), groups=members,
        steps=STEPS, period=PERIOD, threshold=TAU, residuals_at_block=residuals, **BLOCK,
    )  # fmt: skip
    for i, (w, _) in enumerate(wanted):
        assert same(path[PERIOD * (i + 1) - 1], w)
    for rank in range(workers):
        assert same(residual(run, rank), left[rank])


@pytest.mark.parametrize("strategy", [Dense(), gtc(), BMUF(sync_period=2, block_momentum=0.5)])
def test_one_worker(strategy):
    """Dense: plain SGD. The others run, and learn."""
    problem, run, path = trained(strategy, 1)
    params, gradient, update = problem.start(), problem.of_rank(1), sgd(1, STEPS)
    for step in range(STEPS):
        params = update(0, step, params, gradient(0, step, params))
    assert same(path[-1], params) == isinstance(strategy, Dense)
    assert run.course[-1]["distance"] < problem.evaluate(problem.start())["distance"]


def test_one_worker_alone_before_the_others():
    problem, run, path = trained(gtc(), 3, alone=7, alone_rate=0.03)
    start, update = problem.start(), sgd(1, STEPS * 3 + 7, lambda progress: 0.03)
    for i in range(7):
        start = update(0, i, start, problem.of_rank(1)(0, i, start))
        assert same(path[i], start)
    wanted, _ = oracle.gtc_run(
        start, problem.of_rank(3, first=7), sgd(3, STEPS * 3 + 7, first=7), workers=3,
        steps=STEPS, threshold=TAU,
    )  # fmt: skip
    assert same(path[-1], wanted[-1])
    assert run.step == STEPS and run.done == STEPS * 3 + 7


def test_momentum_and_clipping():
    """The local buffer goes on in GTC, and begins at 0 after every block."""
    momentum, limit, workers = 0.75, 20.0, 3
    for strategy in gtc(), BMUF(sync_period=PERIOD, **BLOCK):
        problem, _, path = trained(strategy, workers, momentum=momentum, clip=limit)
        buffers = {}

        def update(rank, step, params, gradient, buffers=buffers, strategy=strategy):
            if isinstance(strategy, BMUF) and step % PERIOD == 0:
                buffers.pop(rank, None)
            buffers[rank] = np.float32(momentum) * buffers.get(rank, np.float32(0)) + gradient
            return sgd(workers, STEPS * workers)(rank, step, params, buffers[rank])

        gradient = problem.of_rank(workers, clip=limit)
        settings = {"workers": workers, "steps": STEPS}
        if isinstance(strategy, GTC):
            wanted = oracle.gtc_run(problem.start(), gradient, update, threshold=TAU, **settings)[
                0
            ][-1]
        else:
            local = lambda r, s, p: update(r, s, p, gradient(r, s, p))  # noqa: B023
            wanted = oracle.bmuf_run(problem.start(), local, period=PERIOD, **BLOCK, **settings)[
                -1
            ][0]
        assert path[-1] == pytest.approx(wanted, rel=1e-5, abs=1e-5)  # the norm is summed otherwise


def test_clip():
    vector = np.full(40_000, 0.5, np.float32)
    assert clip(vector, 200.0) == 100.0 and (vector == 0.5).all()
    assert clip(vector, 10.0) == 100.0
    assert vector == pytest.approx(0.05)
    vector[3] = np.nan
    clip(vector, 1.0)
    assert np.isnan(vector[3])


@pytest.mark.parametrize("strategy", [
    gtc(warmup_steps=3), GTC(density=0.05, dense_below=20), gtc(max_message_bytes=80),
    BMUF(sync_period=3, warmup_steps=2),
    Hybrid(gtc(warmup_steps=2), BMUF(sync_period=3), 2, "flush")])  # fmt: skip
def test_the_bits_of_workers_that_share_nothing(strategy, monkeypatch):
    """Options that the oracle does not have: as the policy alone gives them."""
    _, shared, path = trained(strategy, 5)
    monkeypatch.setattr("gtcbmuf.simulate.memory.Sharing.join", lambda self, worker, team: worker)
    _, apart, other = trained(strategy, 5)
    assert all(same(a, b) for a, b in zip(path, other, strict=True))
    assert shared.result().density == apart.result().density
    assert shared.result().bytes_sent == apart.result().bytes_sent


def test_both_codecs_have_the_same_bits():
    problem, schedule = LeastSquares(), Schedule(60, rate)
    one = simulate(problem, gtc(), 5, schedule=schedule, codec="portable")
    assert same(one.params, simulate(problem, gtc(), 5, schedule=schedule).params)


def test_course_and_result():
    seen = []
    result = simulate(LeastSquares(), gtc(), 4, schedule=Schedule(42, rate, evaluations=3),
                      progress=lambda done, entry: seen.append((done, entry)))  # fmt: skip
    assert [done for done, _ in seen] == list(range(4, 41, 4))
    assert [entry for _, entry in seen if entry] == result.course
    assert [entry["minibatches"] for entry in result.course] == [16, 28, 40]
    assert [entry["steps"] for entry in result.course] == [4, 7, 10] and result.steps == 10
    distances = [entry["distance"] for entry in result.course]
    assert distances == sorted(distances, reverse=True)
    assert 0 < result.density < 1 and result.seconds > 0
    assert 3 * 64 < result.bytes_sent < 3 * (64 + 4 * 252)


def test_1024_workers():
    """On a small model, in seconds; and they learn as one does."""
    problem = LeastSquares({"w": (20, 4)}, rows=2)
    strategy = Hybrid(gtc(), BMUF(sync_period=2, block_momentum=0.5), groups=128)
    result = simulate(problem, strategy, 1024, schedule=Schedule(1024 * 6, 1.0))
    assert result.steps == 6
    start = problem.evaluate(problem.start())["distance"]
    assert result.course[-1]["distance"] < 0.7 * start


@pytest.mark.parametrize("change, text", [
    ({"workers": 0}, "workers=0"),
    ({"workers": 8}, "groups=9"),
    ({"groups": 0}, "at least 1 rank"),
    ({"groups": [[0, 1], [1, 2]]}, "rank 1"),
    ({"groups": "node"}, "no hosts"),
    ({"strategy": gtc(), "groups": 2}, "only Hybrid has groups"),
    ({"workers": 201}, "not enough for one step"),
    ({"problem": LeastSquares({})}, "no parameters"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(change, text):
    hybrid = Hybrid(gtc(), BMUF(sync_period=3), 9)
    settings = {"problem": LeastSquares(), "strategy": hybrid, "workers": 18, **change}
    with pytest.raises(SettingsError, match=text):
        simulate(**settings, schedule=Schedule(200, rate))


@pytest.mark.parametrize("change", [
    {"minibatches": 0}, {"momentum": 1.0}, {"clip": 0}, {"alone": -1}, {"evaluations": 0},
    {"learning_rate": -1}, {"alone_rate": float("nan")}])  # fmt: skip
def test_schedules_that_make_no_sense(change):
    with pytest.raises(SettingsError, match=next(iter(change))):
        Schedule(**{"minibatches": 10, "learning_rate": rate, **change})


@pytest.mark.parametrize("learning_rate", [lambda share: 0.5 - share, lambda share: 1e40])
def test_rates_that_make_no_sense(learning_rate):
    with pytest.raises(SettingsError, match="the learning rate after"):
        simulate(LeastSquares(), gtc(), 2, schedule=Schedule(20, learning_rate))


def test_a_gradient_that_is_not_finite_ends_the_run():
    class Odd(LeastSquares):
        def gradient(self, minibatch, params, out):
            loss = super().gradient(minibatch, params, out)
            if minibatch == 5:
                out[7] = np.nan
            return loss

    with pytest.raises(NonFiniteError, match=r"rank 2: .*first\.weight"):
        simulate(Odd(), gtc(), 3, schedule=Schedule(30, rate))
