"""What all strategies have in common: frozen settings that are checked when they are made."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import operator
from collections.abc import Sequence
from typing import Any

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy.layout import Tensor
from gtcbmuf.policy.worker import Groups, Worker


class Strategy:
    """Base of Dense, GTC, BMUF and Hybrid, which are frozen dataclasses of settings."""

    groups: Any = "world"  # who exchanges gradients with whom: a spec of gtcbmuf.groups.form

    def worker(self, tensors: Sequence[Tensor], groups: Groups) -> Worker:
        """The state machine of one rank (docs/layers.md).

        tensors: the parameters in registration order, the same on every rank.
        groups: the exchanges of this rank.
        Raises SettingsError for settings that do not fit these tensors or groups.
        """
        raise NotImplementedError

    def bind(self, params, **settings):
        """The NumPy API over these parameters: see gtcbmuf.numpy.bind."""
        # The one door upwards: opened by the caller's wish, never by an import of this package.
        return importlib.import_module("gtcbmuf.numpy").bind(self, params, **settings)


def describe(strategy: Strategy) -> str:
    """The settings as one line of JSON: equal for equal strategies, in every process."""
    settings = {"strategy": type(strategy).__name__, **dataclasses.asdict(strategy)}
    return json.dumps(settings, default=_plain)


def _plain(value):
    return value.tolist() if hasattr(value, "tolist") else str(value)


def check_count(name: str, value, at_least: int) -> None:
    try:
        sound = not isinstance(value, bool) and operator.index(value) >= at_least
    except TypeError:
        sound = False
    if not sound:
        raise SettingsError(f"{name}={value!r}: give a whole number, at least {at_least}.")


def check_bool(name: str, value) -> None:
    if not isinstance(value, bool):
        raise SettingsError(f"{name}={value!r}: give True or False.")


def check_number(name: str, value, sound, allowed: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and sound(value)):
        raise SettingsError(f"{name}={value!r}: give {allowed}.")


def check_choice(name: str, value, choices: Sequence[str]) -> None:
    if not (isinstance(value, str) and value in choices):
        raise SettingsError(f"{name}={value!r}: give one of {', '.join(map(repr, choices))}.")
