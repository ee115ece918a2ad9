"""A small speech task for the demo: framewise phone recognition with an LSTM.

Put `scripts/` on `sys.path` and import the modules as `speech.data`, `speech.model`, ...
README.md beside this file says which module does what.
"""
