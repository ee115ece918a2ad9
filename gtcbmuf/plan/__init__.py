"""Before booking machines: what each strategy would take on them, and which τ to begin with.

network, exchanges, model, advise: closed formulas (docs/planning.md). measure, inputs: their
numbers. gradients, tune: τ from saved gradients. `gtcbmuf plan`, `bench` and `tune` are the commands.
"""

from gtcbmuf.plan.gradients import Recorder

__all__ = ["Recorder"]
