"""How jobs end: an exception on one rank or on all, exits, and MPI started or ended by the program."""

import pytest
from jobs import job, shell

INIT = "import gtcbmuf, numpy, time, sys\nfrom gtcbmuf import runtime\ngtcbmuf.init()\n"
SUM = "runtime.world().post_allreduce(numpy.ones(10, numpy.float32)).wait()\n"


def test_an_exception_on_one_rank_ends_all():
    status, output, seconds = job(3, "-c", INIT + "if gtcbmuf.rank() == 1: raise ValueError('boom')\n"
                                  "runtime.barrier()")  # fmt: skip
    assert status != 0 and seconds < 30
    assert output.count("ValueError: boom") == 1
    assert "gtcbmuf: rank 1 of 3 ends the job" in output


def test_the_same_exception_on_all_ranks_is_printed_once():
    status, output, _ = job(3, "-c", INIT + SUM + "raise ValueError('boom')")
    assert status != 0
    assert output.count("ValueError: boom") == 1
    assert "gtcbmuf: rank 0 of 3 ends the job" in output


def test_a_rank_that_leaves_without_a_word_is_named_at_the_deadline():
    code = ("import os\nos.environ['GTCBMUF_TIMEOUT_SECONDS'] = '3'\n" + INIT
            + "if gtcbmuf.rank() == 1: time.sleep(60)\n" + SUM)  # fmt: skip
    status, output, seconds = job(3, "-c", code)
    assert status != 0 and seconds < 30
    assert "DeadlineError" in output and "rank 1" in output


def test_a_job_of_one_needs_no_launcher():
    code = INIT + SUM + "print(gtcbmuf.rank(), gtcbmuf.size())\n"
    status, output, _ = shell(f'python -c "{code}"')
    assert (status, output) == (0, "0 1\n")
    status, output, _ = shell(f'python -c "{code}raise ValueError(0)"')
    assert status == 1 and output.count("ValueError: 0") == 1


@pytest.mark.parametrize("code", [
    "from mpi4py import MPI\n" + INIT + SUM,
    INIT + SUM + "from mpi4py import MPI\nMPI.Finalize()\n",
    INIT + SUM + "gtcbmuf.shutdown(); gtcbmuf.init()\n" + SUM,
    INIT + "t = runtime.world().post_allgather(numpy.zeros(9, numpy.uint8))\n",  # never waited for
    "import gtcbmuf, numpy\nfrom gtcbmuf import runtime\n"
    "import mpi4py\nmpi4py.rc.initialize = False\ngtcbmuf.init()\n" + SUM,
], ids=["mpi4py-first", "finalize", "init-twice", "in-flight", "mpi4py-not-initialised"])  # fmt: skip
def test_beginnings_and_ends_that_are_fine(code):
    status, output, seconds = job(2, "-c", code + "print('fine')")
    assert (status, output.count("fine")) == (0, 2), output
    assert seconds < 30


def test_a_lower_thread_level_works_without_the_thread():
    code = ("import mpi4py\nmpi4py.rc.thread_level = 'funneled'\nfrom mpi4py import MPI\n" + INIT
            + SUM + "print('thread', runtime.engine().progress_thread)\n")  # fmt: skip
    status, output, _ = job(2, "-c", code)
    assert status == 0, output
    assert output.count("thread False") == 2 or output.count("thread True") == 2  # MPI may give more


@pytest.mark.parametrize("name, value, message", [
    ("GTCBMUF_THREADS", "many", "GTCBMUF_THREADS='many': allowed is an integer"),
    ("GTCBMUF_VARIANT", "sse17", "variant 'sse17' does not exist"),
])  # fmt: skip
def test_what_only_one_rank_cannot_do_ends_all_ranks(name, value, message):
    code = f"""
import os
if os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK')) == '1':
    os.environ['{name}'] = '{value}'
import gtcbmuf
try:
    gtcbmuf.init()
except Exception as error:
    print(f'{{type(error).__name__}}: {{error}}\\n', end='')
"""
    status, output, seconds = job(3, "-c", code)
    assert status == 0 and seconds < 30
    assert output.count(f"rank 1: {message}") == 3 == output.count("Error: ")
