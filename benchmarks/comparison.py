"""This code against the published algorithm written out, on the CPU: times and peak memory."""

from __future__ import annotations

import copy
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from workload import Workload, make_inputs, make_model, peak_memory

from knet.classes import class_ids_from_config
from knet.modeling.predictions import Frame

IMAGE, HEADS, STEP = "whole image", "heads + post-processing", "training step"


class Ours:
    """`KNet` as it is built from the config.

    Attributes:
        stages: what is measured, as functions without arguments. The heads are given the neck's
            maps. The step is that of neck and heads, from the backbone's features, which get
            gradients, to AdamW, whose rate is 0, so that every call measures the same.
    """

    fused = True  # the optimiser

    def __init__(
        self, work: Workload, *, accelerated: bool, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        self.cfg, self.model = make_model(work, accelerated=accelerated, weights=weights)
        self.ids, self.work = class_ids_from_config(self.cfg), work
        self.inputs = make_inputs(work, self.ids, work.batch)
        self._prepare()
        with torch.no_grad():
            self.trained = [f.requires_grad_() for f in self._features(self.inputs)]
            maps = self._neck(self._features(self.inputs[:1]))
        self.parameters = list(self.model.heads.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, fused=self.fused)
        self.stages: dict[str, Callable[[], Any]] = {
            IMAGE: lambda: self.image(work.output_size),
            HEADS: torch.no_grad()(lambda: self._results(self._last_round(maps), work.output_size)),
            STEP: self.step,
        }

    def _prepare(self) -> None:
        """Before anything is computed."""

    def _images(self, inputs: Sequence[dict[str, Any]]) -> Tensor:
        return self.model._images(inputs)

    def _features(self, inputs: Sequence[dict[str, Any]]) -> list[Tensor]:
        images = self._images(inputs)
        self.frame = Frame(tuple(images.shape[-2:]), self.work.size)
        features = self.model.backbone(images)
        return [features[name] for name in self.model.in_features]

    @torch.no_grad()
    def image(self, output_size: Sequence[int]) -> Any:
        """From pixels to results, as a user calls it."""
        size = dict(zip(("height", "width"), output_size))
        return self.model([{"image": self.inputs[0]["image"], **size}])[0]

    def _neck(self, pyramid: Sequence[Tensor]) -> Any:
        return self.model.heads.neck(pyramid)

    def _last_round(self, maps: Any) -> Any:
        heads = self.model.heads
        start = heads.kernel_head(*maps)
        return heads.rounds(start.features, start.kernels, start.masks, start.levels)[-1]

    def _results(self, last: Any, output_size: Sequence[int]) -> Any:
        predictions = self.model.task.predictions(last, 0, self.frame)
        return self.model.task.results(predictions, output_size)

    def losses(self) -> dict[str, Tensor]:
        """Of a batch, given the backbone's features."""
        targets = self.model.task.targets(self.inputs, self.frame.padded_size, self.model.device)
        return self.model.criterion(*self.model.heads(self.trained, targets), targets)

    def step(self) -> None:
        """Losses, gradients, clipping and update."""
        self.model.train()
        torch.stack(list(self.losses().values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for feature in self.trained:
            feature.grad = None
        self.model.eval()


class Reference(Ours):
    """Detectron2's backbone as it comes, and the plain heads with the model's parameters."""

    fused = False

    def __init__(self, work: Workload) -> None:
        super().__init__(work, accelerated=False)

    def _prepare(self) -> None:
        self.plain, self.steps = _load("reference"), _load("reference_training")
        for name in ("backbone", "heads"):
            module = copy.deepcopy(getattr(self.model, name))
            setattr(self.model, name, module.to(memory_format=torch.contiguous_format))
        knet = self.cfg.MODEL.KNET
        setup = self.plain.Setup(
            len(self.ids.things), len(self.ids.stuff), norm_groups=knet.NORM_GROUPS,
            num_heads=knet.NUM_HEADS, num_rounds=knet.NUM_ROUNDS,
        )  # fmt: skip
        self.known = (dict(self.model.heads.named_parameters()), setup)
        # the reference has the published factors
        for name in self.steps.LOSS_WEIGHTS:
            key = {"cls": "CLASS"}.get(name, name.upper()) + "_WEIGHT"
            self.steps.LOSS_WEIGHTS[name] = knet.LOSS[key]
            if name in self.steps.COST_WEIGHTS:
                self.steps.COST_WEIGHTS[name] = knet.COST[key]

    def _images(self, inputs: Sequence[dict[str, Any]]) -> Tensor:
        return super()._images(inputs).contiguous()

    @torch.no_grad()
    def image(self, output_size: Sequence[int]) -> Any:
        features = self._features(self.inputs[:1])
        return self._results(self.plain.heads(*self.known, features)[1][-1], output_size)

    def _neck(self, pyramid: Sequence[Tensor]) -> Any:
        return self.plain.neck(*self.known, pyramid)

    def _last_round(self, maps: Any) -> Any:
        return self.plain.update_rounds(*self.known, self.plain.kernel_head(*self.known, *maps))[-1]

    def _results(self, last: Any, output_size: Sequence[int]) -> Any:
        sizes = (self.frame.padded_size, self.frame.image_size, tuple(output_size))
        scores, masks = last.class_logits[0].sigmoid(), last.masks[0]
        if self.ids.stuff:
            return self.plain.panoptic(scores, masks, self.known[1], sizes)
        top_k = self.cfg.TEST.DETECTIONS_PER_IMAGE
        return self.plain.instances(scores, masks, sizes, top_k=top_k)

    def losses(self) -> dict[str, Tensor]:
        things, stride = torch.tensor(self.ids.things), self.model.task.loss_stride
        truth = [
            self.steps.ground_truth(
                torch.searchsorted(things, x["instances"].gt_classes),
                x["instances"].gt_masks.tensor, x.get("sem_seg"), self.ids.stuff,
                self.frame.padded_size, stride,
            )
            for x in self.inputs
        ]  # fmt: skip
        outputs = self.plain.heads(*self.known, self.trained)
        with_rank = bool(self.cfg.MODEL.KNET.LOSS.RANK_WEIGHT)
        return self.steps.losses(*outputs, truth, len(self.ids.things), with_rank=with_rank)


def _load(name: str) -> ModuleType:
    """A module of the plain implementation beside the tests; FileNotFoundError without them."""
    path = Path(__file__).parents[1] / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seconds(run: Callable[[], Any]) -> float:
    """That a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(runs: Sequence[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Seconds of several functions, called in turns after one round that does not count.

    Whatever slows the machine down for a while so meets all of them alike; every other round goes
    backwards.

    Returns:
        For each function, its time in every round.
    """
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(-1, repeats):
        order = range(len(runs)) if repeat % 2 else reversed(range(len(runs)))
        for index in order:
            taken = seconds(runs[index])
            if repeat >= 0:
                times[index].append(taken)
    return times


def compare_times(
    work: Workload, stages: Sequence[str], repeats: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row a stage, milliseconds and ratios; and how near ours comes to the reference.

    Medians over the rounds; a ratio is the median of those of each round.
    """
    plain, reference = Ours(work, accelerated=False), Reference(work)
    ours = Ours(work, accelerated=True, weights=plain.model.state_dict())
    a, b = (side.stages[IMAGE]() for side in (ours, reference))
    pair = (a["panoptic_seg"][0], b[0]) if ours.ids.stuff else (a["instances"].pred_masks, b[2])
    near = {"same pixels": float((pair[0] == pair[1]).float().mean())}
    if STEP in stages:
        theirs = reference.losses()
        near["largest relative difference of a loss"] = max(
            abs(value.item() / theirs[name].item() - 1) for name, value in ours.losses().items()
        )
    sides = {"accelerated": ours, "plain": plain, "reference": reference}
    rows = []
    for stage in stages:
        times = dict(zip(sides, alternate([s.stages[stage] for s in sides.values()], repeats)))
        row: dict[str, Any] = {"": stage}
        for name, values in times.items():
            row[f"{name}, ms"] = 1000 * statistics.median(values)
            low, high = 1000 * min(values), 1000 * max(values)
            row[f"{name}, range"] = f"{low:.1f} to {high:.1f}"
        for name in ("accelerated", "plain"):
            ratios = [a / b for a, b in zip(times[name], times["reference"])]
            row[f"{name} / reference"] = statistics.median(ratios)
        rows.append(row)
    return rows, near


def compare_memory(
    work: Workload, large_output: Sequence[int] | None, repeats: int
) -> list[dict[str, Any]]:
    """A row for each kind of work: peaks in MB, and their ratio.

    Large results are for ours alone: the reference would need some 20 GB for 12 megapixels.
    """
    peaks = []
    for side in (Ours, Reference):
        # a fresh interpreter, so that neither the other side nor this program counts
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            large = large_output if side is Ours else None
            threads = torch.get_num_threads()
            peaks.append(pool.submit(memory_of, side, work, large, repeats, threads).result())
    ours, reference = peaks
    return [
        {"": f"memory of {name}", "ours, MB": peak, "reference, MB": reference.get(name),
         "ours / reference": peak / reference[name] if name in reference else None}
        for name, peak in ours.items()
    ]  # fmt: skip


def memory_of(
    side: type[Ours], work: Workload, large_output: Sequence[int] | None, repeats: int, threads: int
) -> dict[str, float]:
    """MB above the loaded model, by what is done.

    Every figure is the median of some calls, after one that does not count: it fills caches of
    the libraries, and creates the optimiser's state. What a stage is given, such as the features
    in training, is there before and not counted.
    """
    torch.set_num_threads(threads)
    runner = Reference(work) if side is Reference else Ours(work, accelerated=True)
    runs = {IMAGE: runner.stages[IMAGE], STEP: runner.step}
    if large_output is not None:
        runs = {f"{IMAGE}, large output": lambda: runner.image(large_output), **runs}
    found = {}
    for name, run in runs.items():
        run()
        found[name] = statistics.median(peak_memory(run, "cpu") for _ in range(repeats)) / 1e6
    return found
