"""scripts/compare_links and scripts/simulate_cluster: what they refuse, their tables, the simulated platform."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import compare_links
import simulate_cluster
from cluster.platform import Cluster
from links import hosts

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan.network import Link, Network, Rates

NETWORK = Network(Link(1.25e9, 5e-5), Link(2e9, 1e-5))
LINKS = {
    "format": compare_links.FORMAT, "version": compare_links.VERSION, "cores": 2, "hosts": 4, "inputs": [],
    "runs": [
        {"rate": "1gbit", "ranks": 4, "method": "GTC", "step": 0.2, "steps": [0.19, 0.2, 0.23], "card_bytes": 2e6,
         "predicted": 0.25, "simulated": 0.19, "predicted_card_bytes": 1.5e6, "step_seconds": 0.1, "density": 0.01, "period": 5},
        {"rate": "1gbit", "ranks": 4, "method": "MPI_Allreduce", "step": 0.5, "steps": [0.5], "card_bytes": 3e6},
    ],
}  # fmt: skip
CLUSTER = {
    "format": simulate_cluster.FORMAT, "version": simulate_cluster.VERSION, "per_host": 8, "link_us": 50,
    "elements": 1e6, "step_ms": 100, "density": 0.01, "period": 10, "group": None,
    "intra": {"bandwidth": 2e9, "latency": 1e-5}, "rates": {"encode": 1e9, "decode": 1e8, "reduce": 3e8},
    "runs": [{"workers": 64, "gbit": 10, "method": "BMUF", "step": 0.128, "worker_bytes": 2e6, "predicted": 0.16,
              "predicted_bytes": 2e6}],
}  # fmt: skip
BOTH = pytest.mark.parametrize("script, content", [(compare_links, LINKS), (simulate_cluster, CLUSTER)])


def test_the_table_of_links():
    lines = compare_links.table(LINKS).splitlines()
    assert lines[0].startswith("4 hosts on one machine of 2 cores; computation is a wait of 100 ms")
    assert lines[-2] == "| 1gbit | 4 | GTC | 200 ± 20 | 250 | +25.0 % | 190 | -5.0 % | 2.00 | 1.50 |"
    assert lines[-1] == "| 1gbit | 4 | MPI_Allreduce | 500 ± 0 |  |  |  |  | 3.00 |  |"


def test_the_table_of_a_cluster():
    last = simulate_cluster.table(CLUSTER).splitlines()[-1]
    assert last == "| 10 Gbit/s | 64 | BMUF | 128.0 | 160.0 | +25.0 % | 50.0 | 57 | 2.000 | 2.000 |"


def test_each_run_is_predicted_from_what_was_measured_on_its_own_links():
    inputs = [{"rate": rate, "per_host": each, "inter": {"bandwidth": at, "latency": 1e-4, "in_turn": at / 2},
               "intra": {"bandwidth": 9e8, "latency": 1e-5, "in_turn": None} if each > 1 else None,
               "rates": {"encode": 1e9, "decode": 1e8, "reduce": at}}
              for rate, each, at in (("1gbit", 1, 1e8), ("1gbit", 2, 2e8), ("100mbit", 1, 1e7))]  # fmt: skip
    record = {"rate": "1gbit", "per_host": 2, "method": "dense", "elements": 10**6, "step_seconds": 0.1, "ranks": 8,
              "density": 0.01, "period": 5, "group": 2}  # fmt: skip
    network = compare_links.measured_network({"inputs": inputs}, record)
    assert network == Network(Link(2e8, 1e-4, 1e8), Link(9e8, 1e-5), Rates(1e9, 1e8, 2e8))
    other = compare_links.measured_network({"inputs": inputs}, {**record, "per_host": 1, "rate": "100mbit"})
    assert other == Network(Link(1e7, 1e-4, 5e6), rates=Rates(1e9, 1e8, 1e7))
    for method in compare_links.model.METHODS:
        assert compare_links.predict(network, {**record, "method": method}).method == method


@BOTH
@pytest.mark.parametrize("change, match", [
    ({"format": "gtcbmuf plan inputs"}, "something else"),
    ({"version": 0}, "version 0"),
])  # fmt: skip
def test_a_foreign_or_older_file_is_refused(script, content, change, match, tmp_path):
    file = tmp_path / "file.json"
    file.write_text(json.dumps({**content, **change}))
    with pytest.raises(SettingsError, match=match):
        script.load(file)


@BOTH
def test_a_damaged_or_missing_file_is_refused(script, content, tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        script.load(tmp_path / "file.json")
    (tmp_path / "file.json").write_text(json.dumps(content)[:-20])
    with pytest.raises(SettingsError, match="damaged"):
        script.load(tmp_path / "file.json")


@BOTH
def test_a_file_that_is_there_stays(script, content, tmp_path, monkeypatch):
    file = tmp_path / "file.json"
    file.write_text("mine")
    monkeypatch.setattr(sys, "argv", ["", "--save", str(file)])
    with pytest.raises(SystemExit, match="exists"):
        script.main()
    assert file.read_text() == "mine"


@pytest.mark.parametrize("count, rate, match", [
    (1, "1gbit", "a link needs two"),
    (4, "1 Gbit/s", "write it as"),
    (4, "0mbit", "write it as"),
])  # fmt: skip
def test_impossible_hosts_are_refused(count, rate, match):
    with pytest.raises(hosts.LinksError, match=match):
        hosts.Hosts(count, rate)


def test_who_is_not_root_is_told(monkeypatch):
    monkeypatch.setattr(hosts.sys, "platform", "linux")
    monkeypatch.setattr(hosts.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(hosts.os, "geteuid", lambda: 1000)
    with pytest.raises(hosts.LinksError, match="start it with sudo"):
        hosts.check_machine()
    monkeypatch.setattr(hosts.shutil, "which", lambda tool: None)
    with pytest.raises(hosts.LinksError, match="apt install iproute2"):
        hosts.check_machine()


@pytest.mark.parametrize("workers, per_host, network, match", [
    (0, 8, NETWORK, "workers"),
    (8, 0, NETWORK, "workers on each host"),
    (8, 2, Network(Link(float("inf"))), "has a bandwidth"),
    (8, 2, Network(Link(1e9, 1e-6), Link(1e9, 1e-5)), "latency between hosts"),
])  # fmt: skip
def test_impossible_platforms_are_refused(workers, per_host, network, match):
    with pytest.raises(SettingsError, match=match):
        Cluster(workers, per_host, network)


def test_the_platform(tmp_path):
    """5 workers on hosts of 2: the path between two workers, added up."""
    Cluster(5, 2, NETWORK).write(tmp_path / "platform.xml", tmp_path / "hosts")
    assert (tmp_path / "hosts").read_text().split() == [f"worker{i}" for i in range(5)]
    root = ElementTree.parse(tmp_path / "platform.xml").getroot()
    zones = {zone.get("id"): zone for zone in root.findall("zone/zone")}
    assert [[h.get("id") for h in zone.findall("host")] for zone in zones.values()] == [
        ["worker0", "worker1"], ["worker2", "worker3"], ["worker4"]]  # fmt: skip
    links = {link.get("id"): link for link in root.iter("link")}
    path = ["bus0", "card0", "card1", "bus3"]  # from worker 0 to worker 3
    assert sum(float(links[i].get("latency")[:-1]) for i in path) == pytest.approx(5e-5)
    assert min(float(links[i].get("bandwidth")[:-3]) for i in path) == 1.25e9
    assert sum(float(links[i].get("latency")[:-1]) for i in ("bus0", "bus1")) == pytest.approx(1e-5)
    routes = {(r.get("src"), r.get("dst")) for r in root.findall("zone/zoneRoute")}
    assert len(routes) == 6 and ("host0", "host2") in routes


@pytest.mark.parametrize("inter, intra, expected", [(3e-4, 1e-4, 3e-4), (2e-4, 5e-4, 5e-4)])
def test_a_measured_host_that_is_slower_than_the_links_between(inter, intra, expected):
    network = Network(Link(1e8, inter), Link(1e9, intra))
    found = simulate_cluster._simulable(network)
    assert (found.inter, found.intra) == (Link(1e8, expected), Link(1e9, intra))
    Cluster(8, 2, found)
