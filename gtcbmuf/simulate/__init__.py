"""Many workers in one process, over the same strategies and the same messages as under MPI."""

from gtcbmuf.simulate.virtual import VirtualExchange, virtual_world

__all__ = ["VirtualExchange", "virtual_world"]
