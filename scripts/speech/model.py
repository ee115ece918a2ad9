"""The acoustic model, its loss and its error measure."""

from collections.abc import Iterable

import torch
from torch import nn

from .data import IGNORE, Batch


class AcousticModel(nn.Module):
    """LSTM layers and a linear output: inputs (T, B, inputs) -> logits (T, B, classes)."""

    def __init__(self, inputs: int, classes: int, hidden: int = 96, layers: int = 2):
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, layers)
        self.output = nn.Linear(hidden, classes)
        # An open forget gate at the start lets gradients reach back through time.
        with torch.no_grad():
            for layer in range(layers):
                getattr(self.lstm, f"bias_ih_l{layer}")[hidden:2 * hidden] = 1.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.output(self.lstm(inputs)[0])


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats over the frames whose target counts; a scalar tensor."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(),
                                       ignore_index=IGNORE)


@torch.no_grad()
def frame_error_rate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of counting frames, 0 to 1, whose most probable class is wrong.

    Raises ValueError when no frame counts.
    """
    was_training = model.training
    model.eval()
    wrong = total = 0
    for inputs, targets in batches:
        counts = targets != IGNORE
        wrong += int((model(inputs).argmax(-1) != targets)[counts].sum())
        total += int(counts.sum())
    model.train(was_training)
    if total == 0:
        raise ValueError("no frame to evaluate: the split is empty")
    return wrong / total
