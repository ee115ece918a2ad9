"""Many workers in one process, over the same strategies and the same messages as under MPI."""

from gtcbmuf.simulate.problem import Problem, Schedule
from gtcbmuf.simulate.sgd import SGD, clip
from gtcbmuf.simulate.trainer import Result, Simulation, simulate
from gtcbmuf.simulate.virtual import VirtualExchange, virtual_world

__all__ = [
    "SGD",
    "Problem",
    "Result",
    "Schedule",
    "Simulation",
    "VirtualExchange",
    "clip",
    "simulate",
    "virtual_world",
]
