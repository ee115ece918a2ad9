"""A simulated cluster: hosts of several workers behind one network card, all cards at one switch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan.network import Network
from gtcbmuf.policy.strategy import check_count

HEAD = """<?xml version="1.0"?>
<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">
<platform version="4.1">
<zone id="cluster" routing="Full">
"""


@dataclass(frozen=True)
class Cluster:
    """`workers` on hosts of `per_host` (the last may have fewer); links as a plan has them.

    A worker reaches its host's switch by a link of its own, of network.intra; the host the others by its card,
    of network.inter. Latencies are those of a message from one worker to another.
    """

    workers: int
    per_host: int
    network: Network

    def __post_init__(self):
        check_count("workers", self.workers, 1)
        check_count("workers on each host", self.per_host, 1)
        for name in "inter", "intra":
            link = getattr(self.network, name)
            if link.bandwidth == float("inf"):
                raise SettingsError(f"{name}: a simulated link has a bandwidth; give one.")
        if self.network.inter.latency < self.network.intra.latency:
            raise SettingsError(
                f"latency between hosts {self.network.inter.latency} s is below that within a host, "
                f"{self.network.intra.latency} s: a message leaves by the link of its worker first."
            )

    @property
    def hosts(self) -> list[range]:
        """The workers of each."""
        starts = range(0, self.workers, self.per_host)
        return [range(at, min(at + self.per_host, self.workers)) for at in starts]

    def write(self, platform: Path, hostfile: Path) -> None:
        """What smpirun reads: the platform, and where each rank is."""
        inter, intra = self.network.inter, self.network.intra
        rest = (inter.latency - intra.latency) / 2
        lines = [HEAD]
        for number, workers in enumerate(self.hosts):
            lines.append(f'<zone id="host{number}" routing="Floyd"><router id="bus{number}"/>')
            for worker in workers:
                link = f'bandwidth="{intra.bandwidth:.0f}Bps" latency="{intra.latency / 2:.9f}s"'
                lines.append(
                    f'<host id="worker{worker}" speed="1Gf"/><link id="bus{worker}" {link} {DUPLEX}/>'
                )
            lines += [_route(f"worker{w}", f"bus{number}", f"bus{w}") for w in workers]
            lines.append("</zone>")
        for number in range(len(self.hosts)):
            link = f'bandwidth="{inter.bandwidth:.0f}Bps" latency="{rest:.9f}s"'
            lines.append(f'<link id="card{number}" {link} {DUPLEX}/>')
        count = len(self.hosts)
        lines += [_between(a, b) for a in range(count) for b in range(count) if a != b]
        platform.write_text("\n".join([*lines, "</zone>", "</platform>", ""]))
        hostfile.write_text("".join(f"worker{w}\n" for w in range(self.workers)))


DUPLEX = 'sharing_policy="SPLITDUPLEX"'


def _route(worker: str, bus: str, link: str) -> str:
    return (f'<route src="{worker}" dst="{bus}" symmetrical="NO"><link_ctn id="{link}" direction="UP"/></route>'
            f'<route src="{bus}" dst="{worker}" symmetrical="NO"><link_ctn id="{link}" direction="DOWN"/></route>')  # fmt: skip


def _between(a: int, b: int) -> str:
    return (f'<zoneRoute src="host{a}" dst="host{b}" gw_src="bus{a}" gw_dst="bus{b}" symmetrical="NO">'
            f'<link_ctn id="card{a}" direction="UP"/><link_ctn id="card{b}" direction="DOWN"/></zoneRoute>')  # fmt: skip
