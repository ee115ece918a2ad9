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


LOOP = "for step in range(100):\n    if step == 50 and gtcbmuf.rank() == 1: {}\n    " + SUM


@pytest.mark.parametrize("leave", ["sys.exit('my own words')", "break"])
def test_a_rank_that_ends_its_program_early_ends_all(leave):
    status, output, seconds = job(3, "-c", INIT + LOOP.format(leave))
    assert status != 0 and seconds < 30, output
    assert output.count("ExchangeClosedError: rank 1 ended its program before sequence 50") == 1, output
    assert output.count("gtcbmuf: rank 0 of 3 ends the job:") == 1
    assert output.count("my own words") == leave.count("my own words")


def test_ranks_may_come_to_their_end_at_different_times():
    status, output, _ = job(3, "-c", INIT + SUM + "time.sleep(3 if gtcbmuf.rank() == 1 else 0)\nprint('fine')")
    assert (status, output.count("fine")) == (0, 3) and "gtcbmuf:" not in output, output


def test_an_exception_in_a_thread_ends_all():
    thread = "__import__('threading').Thread(target=lambda: 1 / 0).start()"
    status, output, seconds = job(3, "-c", INIT + LOOP.format(thread) + "\ntime.sleep(60)")
    assert status != 0 and seconds < 30
    assert output.count("ZeroDivisionError: division by zero") == 1
    assert "gtcbmuf: rank 1 of 3 ends the job" in output


def test_who_caused_it_speaks_and_not_who_heard_of_it():
    """A damaged body is found on rank 2; rank 0 hears of it and fails before."""
    damage = ("if gtcbmuf.rank() == 2: runtime.world()._core.corrupt_next()\n"
              "for step in range(9): runtime.world().post_allreduce(numpy.ones(50000, numpy.float32)).wait()\n")  # fmt: skip
    status, output, _ = job(3, "-c", INIT + damage)
    assert status != 0
    assert "gtcbmuf: rank 2 of 3 ends the job" in output and "MessageError" in output, output
    assert "ExchangeClosedError" not in output


def test_a_killed_rank_ends_all():
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    status, output, seconds = job(3, "-c", INIT + LOOP.format(kill))
    assert status != 0 and seconds < 30
    if "prterun" in output:  # MPICH's mpirun kills the others before they can say anything
        assert output.count("gtcbmuf: rank 1 of 3 (process ") == 1 and "died without a word; the job ends" in output, output
        assert output.count("gtcbmuf: this run has saved and restored no checkpoint") == 1


@pytest.mark.parametrize("before, said", [
    ("", "Timeout (0:00:06)!"),
    (INIT, "rank 0 waited 6."),
    (INIT + SUM + "time.sleep(1)\n", "has waited 6.0 s at the end of its program for the end of other ranks"),
], ids=["start", "exchange", "end"])  # fmt: skip
def test_a_stopped_rank_ends_all_after_the_deadline(before, said):
    stop = ("import os, signal\nif os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK')) == '1':\n"
            "    os.kill(os.getpid(), signal.SIGSTOP)\n")  # fmt: skip
    after = "" if "end of its program" in said else (INIT if not before else "") + SUM
    status, output, seconds = job(3, "-c", before + stop + after, GTCBMUF_TIMEOUT_SECONDS="6", GTCBMUF_STALL_SECONDS="2")
    assert status != 0 and seconds < 40, output
    first = "rank 2 gave up at sequence 0, after it had waited in vain for rank 1"  # rank 0 began to wait a moment later
    assert said in output or ("rank 0 waited" in said and first in output), output
    stalled = output.count("in post_allreduce(mean=True) of 10 float32 (bucket 0), sequence 0, for the header of rank 1, since ")
    assert (stalled, output.count("gtcbmuf: stalled: rank")) == ((2, 2) if "rank 0 waited" in said else (0, 0)), output
    if stalled:
        assert output.count("it gives up after 6 s. Posted at <string>:") == 2 and output.count(", line ") >= 2


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
