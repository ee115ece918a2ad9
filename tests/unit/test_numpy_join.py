"""join() of the NumPy adapter: parameters and residuals as plain loops have them."""

import numpy as np
import oracle_uneven
import pytest
from oracle_training import F
from torch_runs import programs, world
from virtual_team import noise, sgd

from gtcbmuf import BMUF, GTC, Dense

START = np.random.default_rng(1).standard_normal(60).astype(F)
COUNTS = [[1, 4, 2], [3, 0, 2]]


def loop(opt, params, rank):
    for epoch, steps in enumerate(COUNTS):
        for step in range(steps[rank]):
            grad = noise()(rank, 100 * epoch + step, params)
            yield from opt.reducing([grad])
            params -= F(0.1) * grad
            yield from opt.updating()
        last = yield from opt.joining()
        assert last == (1, 0)[epoch]


@pytest.mark.parametrize("strategy", [Dense(), GTC(threshold=0.7, dense_below=0), BMUF(sync_period=2, block_momentum=0.5)])
def test_the_bits_of_the_plain_loops(strategy):
    groups, params = world([[0, 1, 2]]), [START.copy() for _ in range(3)]
    bound = [strategy.bind([p], groups=g) for p, g in zip(params, groups, strict=True)]
    programs([loop(opt, p, rank) for rank, (opt, p) in enumerate(zip(bound, params, strict=True))], groups)
    args = START, noise(), sgd()
    if isinstance(strategy, Dense):
        wanted = oracle_uneven.dense(*args, counts=COUNTS)[-1]
    elif isinstance(strategy, GTC):
        wanted = oracle_uneven.gtc(*args, counts=COUNTS, threshold=0.7)[0][-1]
    else:
        wanted = oracle_uneven.bmuf(*args, counts=COUNTS, period=2, block_momentum=0.5)[-1][1]
    assert [p.tobytes() for p in params] == [wanted.tobytes()] * 3


def test_in_one_process_without_others():
    params = START.copy()
    opt = GTC(threshold=0.7, dense_below=0).bind([params], groups=world([[0]])[0])
    opt.reduce_([np.ones_like(params)])
    opt.after_update()
    assert opt.join() == 0 and opt.join() == 0
