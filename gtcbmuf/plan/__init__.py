"""Before booking machines: what each strategy would take on them, and which τ to begin with.

network, exchanges, model, advise: closed formulas (docs/planning.md). measure, inputs: their
numbers. tune, record: τ from saved gradients. `gtcbmuf plan`, `bench` and `tune` are the commands.
"""
