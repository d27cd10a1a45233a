"""This code as one side of the benchmark."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from benchmark_inputs import Material, Workload
from benchmark_laps import Laps
from benchmark_sides import Trained, autocast, padded_size
from torch import Tensor


class Ours:
    """`KNet` as it is built from the config, called as a user calls it."""

    name = "ours"

    def __init__(self, material: Material, work: Workload) -> None:
        self.model, self.inputs, self.work = material.model, material.batched_inputs, work
        self._trained: Trained | None = None

    def _image(self, output_size: Sequence[int]) -> list[dict[str, Any]]:
        height, width = output_size
        return [{"image": self.inputs[0]["image"], "height": height, "width": width}]

    def _mode(self, training: bool) -> Any:
        return self.model if self.model.training == training else self.model.train(training)

    @torch.no_grad()
    def whole(self, output_size: Sequence[int]) -> Any:
        with autocast(self.work):
            return self._mode(False)(self._image(output_size))[0]

    def inference(self, laps: Laps) -> Any:
        with _stages(self.model.heads, laps):
            result = self.whole(self.work.output_size)
            laps.end("post-processing")
        return result

    @torch.no_grad()
    def predict(self) -> Any:
        with autocast(self.work):
            return self._mode(False).predict(self._image(self.work.output_size))[0]

    @torch.no_grad()
    def post_process(self, predictions: Any) -> Any:
        return self.model.task.results(predictions, self.work.output_size)

    def training(self, laps: Laps) -> dict[str, Tensor]:
        model = self.model
        if self._trained is None:
            with torch.no_grad():
                features = self._mode(False).backbone(model._images(self.inputs))
            chosen = [features[name] for name in model.in_features]
            self._trained = Trained(chosen, list(model.heads.parameters()), fused=True)
        features = self._trained.begin()
        self._mode(True)
        padded = padded_size(self.work.size, model.size_divisibility)
        laps.restart()
        with autocast(self.work):
            targets = model.task.targets(self.inputs, padded, model.device)
            laps.end("targets")
            initial, rounds = model.heads(features)
            laps.end("forward")
            with laps.timing(model.criterion, "match", "matching"):
                losses = model.criterion(initial, rounds, targets)
            laps.end("losses")
        self._trained.finish(losses, laps)
        return losses

    def end_training(self) -> None:
        if self._trained is not None:
            self._trained.end()


@contextlib.contextmanager
def _stages(heads: torch.nn.Module, laps: Laps) -> Iterator[None]:
    """While open, a call of the heads ends the stages before the post-processing."""
    handles = [
        heads.neck.register_forward_pre_hook(lambda *_: laps.end("backbone")),
        heads.neck.register_forward_hook(lambda *_: laps.end("neck")),
        heads.rounds.register_forward_hook(lambda *_: laps.end("heads")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
