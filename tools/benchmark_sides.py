"""What the two sides of a benchmark share: the stages, and a step of training around the heads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from benchmark_inputs import Workload
from benchmark_laps import Laps
from torch import Tensor

CLIP_NORM = 1.0


class Side(Protocol):
    """One implementation; every method reports the end of its stages to `laps`."""

    name: str
    work: Workload

    def whole(self, output_size: Sequence[int]) -> Any:
        """One image, from pixels to results of that size, as a user calls it."""

    def inference(self, laps: Laps) -> Any:
        """The same in stages: backbone, neck, heads, post-processing.

        Normalising and padding the picture belongs to the first, the kernel head to the third.
        """

    def predict(self) -> Any:
        """What `post_process` takes."""

    def post_process(self, predictions: Any) -> Any:
        """The last stage alone."""

    def training(self, laps: Laps) -> dict[str, Tensor]:
        """A step of neck and heads, given the backbone's features: targets, forward, matching,
        losses, backward, optimiser."""

    def end_training(self) -> None:
        """Free the gradients."""


def autocast(work: Workload) -> contextlib.AbstractContextManager:
    """Float32 as it is, or autocast to the workload's type."""
    if work.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(work.device, dtype=getattr(torch, work.dtype))


class Trained:
    """Features of a batch and the optimiser of the heads, which moves nothing: its rate is 0.

    Args:
        features: of the backbone; they get gradients, as in training.
        parameters: of neck and heads.
        fused: whether the optimiser updates all parameters in one go.
    """

    def __init__(
        self, features: Sequence[Tensor], parameters: Sequence[Tensor], *, fused: bool
    ) -> None:
        self.features = [f.detach().requires_grad_() for f in features]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.05, fused=fused)

    def begin(self) -> list[Tensor]:
        """The features, without gradients of the step before."""
        self.end()
        return self.features

    def finish(self, losses: dict[str, Tensor], laps: Laps) -> None:
        """Backward pass and update."""
        torch.stack(list(losses.values())).sum().backward()
        laps.end("backward")
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.optimizer.step()
        laps.end("optimiser")

    def end(self) -> None:
        """Free all gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        for feature in self.features:
            feature.grad = None


def padded_size(size: Sequence[int], divisibility: int) -> tuple[int, int]:
    """(height, width) of a batch of such pictures."""
    height, width = (-(-n // divisibility) * divisibility for n in size)
    return height, width


def agreement(ours: Any, reference: Any) -> float:
    """Share of equal pixels of two panoptic id maps, or of two sets of instance masks."""
    if "panoptic_seg" in ours:
        return float((ours["panoptic_seg"][0] == reference[0]).float().mean())
    return float((ours["instances"].pred_masks == reference[2]).float().mean())


def losses_differ(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Largest relative difference of two sets of losses.

    Raises:
        ValueError: other names.
    """
    if set(ours) != set(reference):
        raise ValueError(f"losses {sorted(ours)} against {sorted(reference)}")
    return max(
        abs(float(value) - float(reference[name])) / max(abs(float(reference[name])), 1e-6)
        for name, value in ours.items()
    )
