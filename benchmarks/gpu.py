"""What matters on a GPU, in one command of some minutes: inference, training, the real loop.

Every function takes the device from the workload, so that all of it runs on a CPU, too.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import torch
from detectron2.engine import HookBase
from torch.profiler import ProfilerActivity, profile
from workload import (
    Workload,
    loaded,
    make_config,
    make_inputs,
    make_model,
    make_step,
    peak_memory,
    table,
    write_data_set,
)

from knet.classes import class_ids_from_config
from knet.errors import UserError
from knet.files import write_json
from knet.training.trainer import Trainer

PRECISIONS = ("bfloat16", "float16", "TF32", "float32")
POINTS = ("MODEL.KNET.LOSS.NUM_POINTS", 12544)
# a measurement ends before its last repeat when it has taken so many seconds
_LONG_ENOUGH = 4.0
Row = dict[str, Any]


class Job(NamedTuple):
    """A row of a table, how many seconds it should take on a large card, and what measures it."""

    table: str
    name: str
    expected: float
    run: Callable[[], Row]


def measure_gpu(
    work: Workload,
    result: Row,
    *,
    repeats: int,
    path: Path | None = None,
    precisions: Sequence[str] = PRECISIONS,
    batches: Sequence[int] = (1, 8),
    seconds: float = 60.0,
    minutes: float = 6.0,
) -> None:
    """Measure everything, print tables, add their rows to `result` and write that to `path`.

    What does not fit into the time, or fails, has a note in its row.

    Args:
        work: `batch` is the number of images of a training step.
        result: of the command so far.
        repeats: that count, of everything.
        path: of a JSON file, which is written after every measurement.
        precisions: of inference; the first one of training.
        batches: numbers of images in inference.
        seconds: of the real loop.
        minutes: for all of it.

    Raises:
        UserError: at the end, if a measurement failed.
    """
    start, failed = time.perf_counter(), 0
    jobs = plan(work, repeats, precisions, batches, seconds)
    for index, job in enumerate(jobs):
        elapsed = time.perf_counter() - start
        left = min(sum(j.expected for j in jobs[index:]), 60 * minutes - elapsed)
        print(f"[{elapsed:3.0f} s, {left:3.0f} s left] {job.table}: {job.name}", flush=True)
        row = {"": job.name}
        result.setdefault(job.table, []).append(row)
        try:
            if elapsed + job.expected > 60 * minutes:
                row["note"] = "left out: no time"
            else:
                row.update(job.run())
        except Exception as error:  # the others are worth having: it is told, here and at the end
            traceback.print_exc()
            row["note"] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            failed += 1
        gc.collect()
        if path:
            write_json(path, result, indent=1)
    for name in dict.fromkeys(job.table for job in jobs):
        print(f"\n{name}\n\n{table(result[name])}")
    if failed:
        raise UserError(f"{failed} of {len(jobs)} measurements failed; see the notes")


def plan(
    work: Workload, repeats: int, precisions: Sequence[str], batches: Sequence[int], seconds: float
) -> list[Job]:
    """The measurements, the more important ones first."""
    _, model = make_model(work, accelerated=False)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    classes = len(model.task.class_ids.things) + len(model.task.class_ids.stuff)

    def infer(accelerated: bool) -> list[Job]:
        kind = "accelerated" if accelerated else "plain"
        return [
            Job("inference", f"{precision}, batch {batch}, {kind}", 4 + batch,
                partial(infer_images, replace(work, batch=batch), precision, repeats,
                        accelerated=accelerated, weights=weights))
            for precision in precisions for batch in batches
        ]  # fmt: skip

    def train(precision: str, *opts: Any, accelerated: bool = True) -> Job:
        points = f", {opts[1]:,} points" if opts else ""
        kind = "accelerated" if accelerated else "plain"
        run = partial(train_steps, work, precision, min(repeats, 8), *opts, accelerated=accelerated)
        return Job("training", f"{precision}, batch {work.batch}{points}, {kind}", 15, run)

    others = [
        Job("inference", f"{precision}, batch {batch}, Mask2Former", 6,
            partial(infer_mask2former, replace(work, batch=batch), precision, repeats, classes))
        for precision in precisions[:: max(1, len(precisions) - 1)] for batch in batches
    ]  # fmt: skip
    if importlib.util.find_spec("transformers") is None:
        print("no Mask2Former to compare with: transformers is not installed")
        others = []
    first = precisions[0]
    return [
        *infer(True), *others, train(first), train(first, *POINTS),
        Job("real loop", f"{first}, batch {work.batch}", seconds + 25,
            partial(train_loop, work, first, seconds)),
        *infer(False), train(first, accelerated=False), train(first, *POINTS, accelerated=False),
        *(train(p) for p in precisions[1:]),
    ]  # fmt: skip


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Of "bfloat16" and "float16"."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)


@contextlib.contextmanager
def computing_in(precision: str, device: str, *, autocast: bool = True) -> Iterator[None]:
    """Autocast for the half types; TensorFloat-32 on or off for the others."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    dtype = autocast_dtype(precision)
    if dtype is None:
        for backend in backends:
            backend.allow_tf32 = precision == "TF32"
    try:
        with torch.autocast(device, dtype=dtype, enabled=autocast and dtype is not None):
            yield
    finally:
        for backend, value in zip(backends, before):
            backend.allow_tf32 = value


def now(device: str) -> float:
    """Seconds, when the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def milliseconds(run: Callable[[], Any], repeats: int, device: str) -> float:
    """Median of some calls, after two that do not count."""
    taken: list[float] = []
    for _ in range(repeats + 2):
        start = now(device)
        run()
        taken.append(1000 * (now(device) - start))
        if len(taken) > 3 and sum(taken) > 1000 * _LONG_ENOUGH:
            break
    return statistics.median(taken[2:])


def launches(run: Callable[[], Any], device: str) -> Row:
    """What the device is given to do in a call, and the time that it takes for it."""
    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiled:
        run()
        now(device)
    wanted = getattr(torch.autograd.DeviceType, kind.name)
    events = [e for e in profiled.events() if e.device_type == wanted]
    copies = sum("memcpy" in e.name.lower() or "copy" in e.name for e in events)
    busy = sum(e.time_range.elapsed_us() for e in events) / 1000
    return {"kernels": len(events) - copies, "copies": copies, "computing, ms": busy}


def three_times(
    work: Workload,
    repeats: int,
    forward: Callable[[], Any],
    results: Callable[[Any], Any],
    whole: Callable[[], Any],
) -> Row:
    """A row of inference; `results` is given what `forward` gives, `whole` does both."""
    device = work.device
    start = now(device)
    whole()
    row = {"first, s": now(device) - start, "whole, ms": milliseconds(whole, repeats, device)}
    row["forward, ms"] = milliseconds(forward, repeats, device)
    predictions = forward()
    row["post-processing, ms"] = milliseconds(lambda: results(predictions), repeats, device)
    row["images/s"] = 1000 * work.batch / row["whole, ms"]
    row["peak, GB"] = peak_memory(whole, device) / 1e9
    return {**row, **launches(whole, device)}


@torch.no_grad()
def infer_images(
    work: Workload, precision: str, repeats: int, *, accelerated: bool, weights: Row
) -> Row:
    """K-Net, from pixels on the CPU to results on the device.

    Accelerated, the weights are kept in a half type; the plain model computes under autocast.
    """
    half = autocast_dtype(precision) is not None
    opts = ("MODEL.KNET.ACCEL.DTYPE", precision) if half and accelerated else ()
    _, model = make_model(work, *opts, accelerated=accelerated, weights=weights)
    inputs = make_inputs(replace(work, objects=1), model.task.class_ids, work.batch)

    def results(found: Any) -> Any:
        return [model.task.results(p, work.output_size) for p in found]

    with computing_in(precision, work.device, autocast=not accelerated):
        forward, whole = (partial(f, inputs) for f in (model.predict, model))
        return three_times(work, repeats, forward, results, whole)


@torch.no_grad()
def infer_mask2former(
    work: Workload, precision: str, repeats: int, classes: int, **sizes: Any
) -> Row:
    """Mask2Former R50 of `transformers`, random but for about 30 confident queries an image.

    Args:
        sizes: more of `Mask2FormerConfig`.
    """
    from mask2former import import_transformers, make_mask2former

    torch.manual_seed(0)
    model = make_mask2former(classes, **sizes).eval().to(work.device)
    images = torch.randint(256, (work.batch, 3, *work.size), dtype=torch.uint8)
    processor = import_transformers().Mask2FormerImageProcessor()
    wanted = [work.output_size] * work.batch

    def forward() -> Any:
        return model(images.to(work.device, non_blocking=True).float().sub_(120).div_(58))

    def results(found: Any) -> Any:
        return processor.post_process_panoptic_segmentation(found, target_sizes=wanted)

    with computing_in(precision, work.device):
        head = model.class_predictor  # the last class is that of no object
        head.weight.mul_(8 / forward().class_queries_logits.float().std(1).mean())
        head.bias.zero_()
        logits = forward().class_queries_logits.float()
        margin = (logits[..., :-1].amax(-1) - logits[..., -1]).flatten()
        head.bias[-1] = margin.quantile(1 - 30 / model.config.num_queries)
        row = three_times(work, repeats, forward, results, lambda: results(forward()))
        scores, labels = forward().class_queries_logits.float().softmax(-1).max(-1)
    row["confident queries"] = int(((labels < classes) & (scores > 0.5)).sum()) // work.batch
    return row


def train_steps(work: Workload, precision: str, repeats: int, *opts: Any, accelerated: bool) -> Row:
    """Whole steps on one batch: forward, losses, backward, clipping and AdamW."""
    cfg, model = make_model(work, *opts, accelerated=accelerated)
    batch = loaded(model, make_inputs(work, model.task.class_ids, work.batch))
    trainer = make_step(cfg, model, batch, autocast_dtype=autocast_dtype(precision))
    step = trainer.run_step
    marks: list[float] = []
    with computing_in(precision, work.device, autocast=False):
        peak = peak_memory(lambda: [step() for _ in range(2)], work.device)
        row = {"step, ms": milliseconds(step, repeats, work.device)}
        row["images/s"] = 1000 * work.batch / row["step, ms"]
        with model.register_forward_hook(lambda *_: marks.append(now(work.device))):
            start = now(work.device)
            step()
            end = now(work.device)
        row["forward and losses, ms"] = 1000 * (marks[0] - start)
        row["backward and AdamW, ms"] = 1000 * (end - marks[0])
        row.update({"peak, GB": peak / 1e9, **launches(step, work.device)})
    trainer.require_finite()
    return row


class TimeIsUp(BaseException):
    """Ends a training that has been measured, and is no error."""


class Clock(HookBase):
    """Notes the end of every step; ends the training after some seconds, with all its metrics."""

    def __init__(self, seconds: float, warm_up: int = 5) -> None:
        self.seconds, self.warm_up = seconds, warm_up
        self.ends: list[float] = []
        self.waits: list[float] = []

    def after_step(self) -> None:
        self.ends.append(time.perf_counter())
        measured = self.ends[self.warm_up :]
        if len(measured) > 1 and measured[-1] - measured[0] > self.seconds:
            self.trainer._trainer.flush_metrics()  # waits for the device
            self.ends[-1] = time.perf_counter()
            values = self.trainer.storage.history("data_time").values()
            self.waits = [seconds for seconds, step in values if step > self.warm_up]
            raise TimeIsUp


def train_loop(
    work: Workload, precision: str, seconds: float, *opts: Any, pictures: int = 32
) -> Row:
    """The loop of `train_net.py` on JPEGs of its own, with its loader, hooks and checkpoints."""
    workers = min(12, max(2, (os.cpu_count() or 1) - 2))
    amp = autocast_dtype(precision) is not None
    ids = class_ids_from_config(make_config(work))
    with tempfile.TemporaryDirectory() as folder:
        scenes = make_inputs(work, ids, pictures)
        write_data_set(Path(folder), "benchmark_pictures", scenes, ids, pictures)
        cfg = make_config(
            work, "DATASETS.TRAIN", ("benchmark_pictures",), "DATASETS.TEST", (),
            "OUTPUT_DIR", f"{folder}/output", "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 10**6,
            "SOLVER.IMS_PER_BATCH", work.batch, "DATALOADER.NUM_WORKERS", workers,
            "SOLVER.AMP.ENABLED", amp, *(("SOLVER.AMP.DTYPE", precision) if amp else ()), *opts,
        )  # fmt: skip
        clock = Clock(seconds)
        trainer = Trainer(cfg)
        trainer.register_hooks([clock])
        with contextlib.suppress(TimeIsUp):
            trainer.train()
    waits, taken = clock.waits, clock.ends[-1] - clock.ends[clock.warm_up]
    return {"steps": len(waits), "step, ms": 1000 * taken / len(waits), "workers": workers,
            "images/s": work.batch * len(waits) / taken,
            "waiting for data, %": 100 * sum(waits) / taken}  # fmt: skip
