"""on_failure="shrink" between two hosts (network namespaces) of two ranks: the survivors go on, with the bits of the oracle."""

import json
import os
import shutil
import sys

import pytest
from jobs import ROOT, Done
from test_shrink import SCRIPT, check, needs_ulfm

sys.path.insert(0, str(ROOT / "scripts"))

from links.hosts import Hosts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make hosts of network namespaces"),
    pytest.mark.skipif(not (shutil.which("ip") and shutil.which("tc")), reason="needs ip and tc"),
]
HOSTS = [[0, 1], [2, 3]]


@needs_ulfm
@pytest.mark.parametrize("how", [
    {"strategy": "GTC", "deaths": {"3": ["before", 12]}},
    {"strategy": "GTC", "deaths": {"0": ["after backward", 12], "2": ["after", 20]}},
    {"strategy": "BMUF", "momentum": 0.5, "deaths": {"0": ["before", 12]}},
    {"strategy": "Hybrid", "momentum": 0.5, "groups": HOSTS, "deaths": {"2": ["before", 7]}},
    {"strategy": "Hybrid", "rounding": 1e-5, "groups": HOSTS, "deaths": {"2": ["before", 7], "3": ["after", 14]}},
])  # fmt: skip
def test_survivors_on_two_hosts_go_on(how, tmp_path, monkeypatch):
    for name in "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM":
        monkeypatch.setenv(name, "1")
    how = {**how, "steps": 30}
    with Hosts(2, "1gbit") as hosts:
        output = hosts.mpirun(2, ["--with-ft", "ulfm", "env", "OMP_NUM_THREADS=1", "GTCBMUF_TIMEOUT_SECONDS=30",
                                  sys.executable, SCRIPT, str(tmp_path), json.dumps(how)], timeout=60)  # fmt: skip
    check(Done(0, output, 0.0), tmp_path, how)
