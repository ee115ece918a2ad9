"""Which CUDA device is this rank's."""

from __future__ import annotations

import warnings

from gtcbmuf import runtime
from gtcbmuf.backends import cuda
from gtcbmuf.errors import SettingsError


def why_on_the_host() -> str:
    """Why gradients on a GPU are copied to the host whole before they are thresholded; "": they are not, if all parameters are
    on one GPU."""
    if not cuda.is_built():
        return "gtcbmuf was built without CUDA; install it again with nvcc at hand and GTCBMUF_CUDA=1"
    if runtime.shrinks():
        return 'on_failure="shrink" works with residuals on the host only'
    return ""


def local_device(*, share: bool = False) -> int:
    """The number of this rank's CUDA device: local ranks are dealt out over the devices that it sees.

    All ranks must call it together. SettingsError, on all of them, where a rank sees no device. A
    RuntimeWarning names the ranks that have one device in common; share=True: that is wanted.
    """
    found, why = cuda.devices()
    number = runtime.local_rank() % len(found) if found else None
    everyone = runtime.gather(why if number is None else (found[number]["uuid"],))
    if blind := {rank: one for rank, one in enumerate(everyone) if isinstance(one, str)}:
        rank, text = next(iter(blind.items()))
        raise SettingsError(
            f"no CUDA device can be used on {len(blind)} of {len(everyone)} ranks; rank {rank}: {text}"
        )
    mine = [rank for rank, one in enumerate(everyone) if one == everyone[runtime.rank()]]
    if len(mine) > 1 and not share and runtime.rank() == mine[0]:
        warnings.warn(
            f"ranks {', '.join(map(str, mine))} share one GPU ({found[number]['name']}): start as many "
            "ranks on a host as it has GPUs, or say local_device(share=True)",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip
    return number
