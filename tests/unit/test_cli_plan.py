"""gtcbmuf plan: its table, JSON and plot; refusals with the cure; the file of inputs."""

import json
import re
import sys
from pathlib import Path

import pytest

from gtcbmuf.cli import main
from gtcbmuf.errors import SettingsError
from gtcbmuf.plan import inputs
from gtcbmuf.plan.inputs import Inputs
from gtcbmuf.plan.network import Link, Rates

JOB = ["plan", "--elements", "25e6", "--step-ms", "200", "--workers", "64", "--per-host", "8"]
LINK = ["--link-gbit", "10", "--link-us", "50"]
MEASURED = Inputs(Link(1.25e9, 5e-5, 1e9), Link(2e9, 1e-5), Rates(2e9, 3e8, 4e8), {"ranks": 4})


def fails(capsys, *arguments):
    assert main([*arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_the_table(capsys):
    assert main([*JOB, *LINK]) == 0
    out = capsys.readouterr().out
    assert "25,000,000 elements, 24 buckets; density 0.005" in out
    assert "64 on 8 hosts" in out and "10 Gbit/s, 50 µs" in out
    assert "16 Gbit/s, 10 µs  (assumed)" in out and "0.5 of a step  (assumed)" in out
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines if line and line[0].isdigit()] == [
        "1", "2", "4", "8", "16", "32", "64"]  # fmt: skip
    assert "\nUse GTC: speed-up" in out


def test_the_page_shows_what_is_printed(capsys):
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text()
    command, shown = re.search(r"\$ gtcbmuf (plan .*)\n((?:.*\n)*?)```", page).groups()
    assert main(command.split()) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown.splitlines()


def test_json_has_what_the_table_has(capsys):
    assert main([*JOB, *LINK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["job"]["workers"] == 64 and found["network"]["inter"]["bandwidth"] == 1.25e9
    assert found["assumed"] == ["intra", "rates", "overlap"]
    assert len(found["predictions"]) == 7 * 6
    last = found["predictions"][-6]
    assert (last["method"], last["workers"]) == ("dense", 64)
    parts = last["compute"] + last["gradients"] + last["blocks"]
    assert last["step"] == parts and last["speedup"] == 64 * 0.2 / parts
    plain, owners = found["predictions"][-5], found["predictions"][-2]
    assert (plain["method"], owners["method"], owners["workers"]) == ("GTC", "GTC owners", 64)
    assert 2 < found["owners_from"] < 64 and owners["step"] < plain["step"]
    assert found["choice"] == "GTC" and "GTC" in found["verdict"]


def test_measured_inputs_count_unless_an_option_says_otherwise(tmp_path, capsys):
    path = tmp_path / "here.json"
    inputs.save(MEASURED, path)
    assert inputs.load(path) == MEASURED
    assert (
        main([*JOB, "--inputs", str(path), "--json", "--link-gbit", "1", "--decode-rate", "5e8"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["network"] == {
        "inter": {"bandwidth": 1.25e8, "latency": 5e-5, "in_turn": None},
        "intra": {"bandwidth": 2e9, "latency": 1e-5, "in_turn": None},
        "rates": {"encode": 2e9, "decode": 5e8, "reduce": 4e8},
    }
    assert found["assumed"] == ["overlap"]
    assert main([*JOB, "--inputs", str(path), "--json", "--link-us", "7"]) == 0
    inter = json.loads(capsys.readouterr().out)["network"]["inter"]
    assert inter == {"bandwidth": 1.25e9, "latency": 7e-6, "in_turn": 1e9}
    assert main([*JOB, "--inputs", str(path)]) == 0
    assert "  measured        ranks 4\n" in capsys.readouterr().out


def test_one_host_needs_no_link(capsys):
    assert main([*JOB[:-1], "64"]) == 0
    assert "between hosts" not in capsys.readouterr().out


@pytest.mark.parametrize("change, says", [
    (["--density", "0"], "density=0.0: give the share"),
    (["--density", "1.01"], "density=1.01"),
    (["--workers", "0"], "workers=0: give a whole number, at least 1"),
    (["--per-host", "0"], "workers on each host=0"),
    (["--elements", "2.5"], "--elements 2.5: give a whole number"),
    (["--elements", "inf"], "--elements inf"),
    (["--step-ms", "-1"], "step_seconds=-0.001"),
    (["--link-gbit", "0"], "bandwidth=0.0: give bytes per second, more than 0"),
    (["--group", "7"], "group=7: 64 workers, 8 on each host, can be in groups of 1, 2, 4, 8, 16"),
    (["--period", "0"], "period=0"),
    (["--intra-us", "5"], "give --intra-gbit as well"),
    (["--encode-rate", "nan"], "encode rate=nan"),
    (["--inputs", "nothing.json"], "nothing.json cannot be read"),
])  # fmt: skip
def test_refusals_say_the_cure(change, says, capsys):
    assert says in fails(capsys, *JOB, *LINK, *change)


def test_a_link_that_nobody_named(capsys):
    assert "give --link-gbit and --link-us, or --inputs" in fails(capsys, *JOB)


def test_a_plot_is_drawn_and_not_over_another_file(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    path = tmp_path / "plan.png"
    assert main([*JOB, *LINK, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG") and str(path) in capsys.readouterr().out
    path.write_text("mine")
    assert "exists; name another file, or add --force" in fails(
        capsys, *JOB, *LINK, "--plot", str(path)
    )
    assert path.read_text() == "mine"
    assert main([*JOB, *LINK, "--plot", str(path), "--force"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_matplotlib(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    says = fails(capsys, *JOB, *LINK, "--plot", str(tmp_path / "plan.png"))
    assert "--plot needs matplotlib, which is not installed: pip install matplotlib" in says


# -- the file of inputs ---------------------------------------------------------------------------


def test_a_file_is_not_replaced_unless_forced(tmp_path):
    path = tmp_path / "here.json"
    inputs.save(MEASURED, path)
    before = path.read_text()
    with pytest.raises(SettingsError, match="--force"):
        inputs.save(Inputs(), path)
    assert path.read_text() == before
    inputs.save(Inputs(), path, force=True)
    assert inputs.load(path) == Inputs()
    assert [p.name for p in tmp_path.iterdir()] == ["here.json"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="there is no folder"):
        inputs.save(MEASURED, tmp_path / "no" / "here.json")


@pytest.mark.parametrize("damage, says", [
    (lambda c: c.update(version=1), "is of version 1; this is version 2. Measure again"),
    (lambda c: c.update(format="something"), "holds something else"),
    (lambda c: c.pop("rates"), "is damaged: no 'rates'"),
    (lambda c: c["inter"].update(bandwidth=0), "bandwidth=0: give bytes per second"),
    (lambda c: c["inter"].update(bandwidth="fast"), "bandwidth='fast'"),
    (lambda c: c["intra"].pop("latency"), "intra should have bandwidth, in_turn, latency"),
    (lambda c: c["rates"].update(more=1), "rates should have decode, encode, reduce"),
    (lambda c: c.update(intra=[1, 2]), "intra should have"),
    (lambda c: c.update(about=3), "is damaged"),
])  # fmt: skip
def test_a_damaged_file_is_refused(damage, says, tmp_path, capsys):
    path = tmp_path / "here.json"
    inputs.save(MEASURED, path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    assert says in fails(capsys, *JOB, "--inputs", str(path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null"])
def test_a_file_that_is_no_json(content, tmp_path):
    path = tmp_path / "here.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="Measure again"):
        inputs.load(path)
