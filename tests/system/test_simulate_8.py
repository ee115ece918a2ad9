"""Eight ranks, which the parallel tests do not have by default, and a simulation of them."""

from jobs import shell


def test_a_simulation_has_the_bits_of_8_ranks():
    done = shell("exec python tests/parallel/run.py -n 8 -k numpy -- "
                 "tests/parallel/test_simulate_ranks.py", timeout=300)  # fmt: skip
    assert done.status == 0, done.output
    assert "11 passed" in done.output
