"""scripts/reproduce: what it trains, and which setting it takes."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import reproduce
import simulate_speech
from speech import trials

from gtcbmuf.simulate import results


@pytest.fixture
def options(tmp_path):
    return reproduce.parse(["--small", "--results", str(tmp_path / "results.jsonl")])


def written(options, cell, trial, **values):
    """A record as scripts/simulate_speech writes it."""
    words = reproduce.arguments(cell, trial, 0, options.samples, options)
    results.append(
        options.results,
        {**simulate_speech.knobs(simulate_speech.parse(words)), **values},
    )


def test_the_best_trial_by_dev_is_taken(options):
    cell, (first, second, *_) = ("gtc", 32), trials.TRIALS["gtc", 32]
    written(options, cell, first, dev=0.32, test=0.30)
    written(options, cell, second, dev=0.31, test=0.35)
    assert reproduce.best(cell, [first, second], options) == second


def test_a_trial_of_other_samples_is_not_mistaken(options):
    cell, (first, second, *_) = ("bmuf", 32), trials.TRIALS["bmuf", 32]
    words = reproduce.arguments(cell, first, 0, 7 * options.samples, options)
    other = simulate_speech.knobs(simulate_speech.parse(words))
    results.append(options.results, {**other, "dev": 0.1})
    written(options, cell, first, dev=0.33)
    written(options, cell, second, dev=0.32)
    assert reproduce.best(cell, [first, second], options) == second


def test_every_method_has_the_same_budget():
    assert {len(tried) for tried in (*trials.TRIALS.values(), trials.ONE)} == {4}
    assert set(trials.TRIALS) == {(m, n) for m in ("gtc", "bmuf", "hybrid") for n in (32, 64, 128)}


@pytest.mark.parametrize("cell", [*trials.TRIALS, ("one", 1)])
def test_every_trial_is_one_that_simulate_speech_accepts(cell, options):
    for trial in reproduce.cells(small=False)[cell]:
        words = reproduce.arguments(cell, trial, 1, 200_000, options)
        found = simulate_speech.parse(words)
        simulate_speech.make_strategy(found)
        assert all(getattr(found, knob) == value for knob, value in trial.items())


@pytest.mark.parametrize("words, match", [
    ([], "--data FILE is needed"),
    (["--small", "--data", "x.npz"], "leave out --data"),
    (["--small", "--seeds", "0"], "at least 1"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(words, match, capsys):
    with pytest.raises(SystemExit):
        reproduce.parse(words)
    assert match in capsys.readouterr().err


def test_a_damaged_file_of_results_stays_as_it_is(options, monkeypatch):
    options.results.write_text(json.dumps({"version": 7}) + "\n")
    monkeypatch.setattr("sys.argv", ["", "--small", "--results", str(options.results)])
    with pytest.raises(SystemExit, match="version 7"):
        reproduce.main()
    assert json.loads(options.results.read_text()) == {"version": 7}


def test_failed_runs_are_named_and_the_others_kept(options):
    with pytest.raises(SystemExit, match="1 of 1 runs failed"):
        reproduce.train([["--strategy", "gtc", "--workers", "0"]], options)
