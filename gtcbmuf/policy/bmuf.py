"""BMUF: blockwise model-update filtering; local steps, and a filtered mean of models every block.

Source: K. Chen, Q. Huo, "Scalable training of deep learning machines by incremental block training
with intra-block parallel optimization and blockwise model-update filtering", ICASSP 2016, equations
(1) to (7). docs/algorithms.md has them in our letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy.blocks import Blocks
from gtcbmuf.policy.dense import dense
from gtcbmuf.policy.layout import BUCKET_BYTES, Layout, Tensor
from gtcbmuf.policy.machine import Machine
from gtcbmuf.policy.strategy import Strategy, check_bool, check_choice, check_count, check_number
from gtcbmuf.policy.worker import Groups


@dataclass(frozen=True)
class BMUF(Strategy):
    """Every sync_period steps, the mean of all workers' models, filtered with block momentum.

    sync_period: local steps in a block.
    block_momentum: η, at least 0 and less than 1; None: 1 - 1/N for N participants.
    block_lr: ζ, more than 0.
    nesterov: start the next block from the look-ahead W + ηΔ (NBM) rather than from W (CBM).
    warmup_steps: so many first steps exchange gradients, densely; then the first block begins.
    optimizer_state: what adapters do with the optimizer's state at a block's end: "keep",
        "reset", "average", or "auto": reset momentum, keep Adam's moments.
    average_buffers: whether adapters hand in buffers such as batch-norm statistics to be averaged.
    sync_dtype: what block deltas travel in: None, as the model is (float32, or float64), or
        "bfloat16", half the bytes; what rounding took from a participant's delta is added to its
        next one.
    sync_overlap: let the mean of a block travel during the next one, and apply it one block late.

    block_momentum=0.9, block_lr=0.7 and Adam inside is DiLoCo. Raises SettingsError.
    """

    sync_period: int
    block_momentum: float | None = None
    block_lr: float = 1.0
    nesterov: bool = True
    warmup_steps: int = 0
    optimizer_state: str = "auto"
    average_buffers: bool = True
    sync_dtype: str | None = None
    sync_overlap: bool = False

    def __post_init__(self):
        check_count("sync_period", self.sync_period, 1)
        if self.block_momentum is not None:
            at_most = "a number from 0 to less than 1, or None for 1 - 1/N"
            check_number("block_momentum", self.block_momentum, lambda x: 0 <= x < 1, at_most)
        check_number("block_lr", self.block_lr, lambda x: x > 0, "a number greater than 0")
        check_bool("nesterov", self.nesterov)
        check_count("warmup_steps", self.warmup_steps, 0)
        choices = ("auto", "keep", "reset", "average")
        check_choice("optimizer_state", self.optimizer_state, choices)
        check_bool("average_buffers", self.average_buffers)
        if self.sync_dtype not in (None, "bfloat16"):
            raise SettingsError(f'sync_dtype={self.sync_dtype!r}: give None or "bfloat16".')
        check_bool("sync_overlap", self.sync_overlap)
        if self.sync_overlap and self.optimizer_state == "average":
            raise SettingsError(
                'sync_overlap=True with optimizer_state="average": only the model\'s mean overlaps '
                'the next block. Give "keep" or "reset".'
            )

    def worker(self, tensors: Sequence[Tensor], groups: Groups) -> Machine:
        """See Strategy.worker; every rank is a participant."""
        layout = Layout.plan(tensors, bucket_bytes=BUCKET_BYTES)
        return Machine(
            self, layout, groups,
            blocks=Blocks(self, layout, groups.world, groups.world, range(groups.world.size)),
            warmup_steps=self.warmup_steps,
            warm=lambda: dense(layout, groups.world, average=True),
        )  # fmt: skip
