"""The file with measured numbers, which `gtcbmuf bench` writes and `gtcbmuf plan` reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan import saved
from gtcbmuf.plan.network import Link, Network, Rates

FORMAT, VERSION = "gtcbmuf plan inputs", 2
MEASURE = "Measure again: mpirun -n 4 gtcbmuf bench --save FILE"


@dataclass(frozen=True)
class Inputs:
    """What was measured; None: was not. about: where and how, for people."""

    inter: Link | None = None
    intra: Link | None = None
    rates: Rates | None = None
    about: dict[str, Any] = field(default_factory=dict)


def save(inputs: Inputs, path: str | Path, force: bool = False) -> None:
    """Writes a file; SettingsError if there is one, unless `force`."""
    saved.check_free(path, force)
    saved.write(path, FORMAT, VERSION, asdict(inputs))


def load(path: str | Path) -> Inputs:
    """Reads a file; SettingsError for one that is not there, damaged, or of another version."""
    content = saved.read(path, FORMAT, VERSION, "measured inputs", MEASURE)
    kinds = {"inter": Link, "intra": Link, "rates": Rates}
    try:
        read = {name: _read(name, kind, content[name]) for name, kind in kinds.items()}
        return Inputs(**read, about=dict(content["about"]))
    except (KeyError, TypeError, ValueError) as error:  # SettingsError is a ValueError
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise SettingsError(f"{path} is damaged: {reason} {MEASURE}") from None


def _read(name: str, kind: type, values):
    if values is None:
        return None
    known = {f.name for f in fields(kind)}
    if not isinstance(values, dict) or set(values) != known:
        raise ValueError(f"{name} should have {', '.join(sorted(known))}.")
    return kind(**values)


def network(inputs: Inputs, single_host: bool) -> tuple[Network, list[str]]:
    """The network to plan with, and which of its parts were not measured but assumed.

    single_host: no exchange leaves the host, so that the card does not count.
    """
    default = Network(Link(1.0))
    intra, rates = inputs.intra or default.intra, inputs.rates or default.rates
    if inputs.inter is None and not single_host:
        raise SettingsError(
            "the link between hosts is not known: give --link-gbit and --link-us, or --inputs with "
            "a file of `gtcbmuf bench --save` that was made on two hosts or more."
        )
    assumed = [name for name in ("intra", "rates") if getattr(inputs, name) is None]
    return Network(inputs.inter or intra, intra, rates), assumed
