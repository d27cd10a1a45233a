"""Speed, memory and operations of a model on this machine.

    numbers = benchmark(predictor, ["photo.jpg"])
    print(format_benchmark(numbers))

Network, results and the whole way from picture to results are timed apart, each after a warm-up and
with the device waited for. What the model computes is counted as `knet.analysis` says.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from fvcore.nn import flop_count_table, parameter_count

from knet.analysis import Count, activation_analysis, flop_analysis
from knet.data.custom import register_data_sets
from knet.data.images import read_picture
from knet.errors import UserError
from knet.free_memory import peak_memory
from knet.modeling.knet import KNet
from knet.predictor import KNetPredictor

__all__ = ["benchmark"]

# of pictures where none are given: those of COCO, mostly
SIZE = (480, 640)
_STAGES = {
    "prepare": "resize the picture",
    "network": "network",
    "results": "results at the picture's size",
    "whole": "end to end, one picture",
}


def random_predictor(cfg: CfgNode) -> KNetPredictor:
    """The model of a config with random weights, which is as fast as one with others."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.PRETRAINED = "", False
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    register_data_sets(cfg)
    metadata = MetadataCatalog.get(names[0] if names else "benchmark")
    return KNetPredictor(cfg, build_model(cfg), metadata)


def benchmark(
    predictor: KNetPredictor,
    pictures: Sequence[str] = (),
    *,
    size: Sequence[int] = SIZE,
    batch: int = 1,
    repeats: int = 20,
    warmup: int = 3,
    operations: bool = True,
) -> dict[str, Any]:
    """Measure a model.

    Args:
        predictor: the model.
        pictures: files, taken in turn; without any a random picture of `size`, in which an
            untrained or a trained model finds other things than in a photograph.
        size: height and width in pixels.
        batch: pictures that go through the network at once, all of one size; the whole way is of
            one picture.
        repeats, warmup: times that are measured, and before them.
        operations: whether to count operations and activations, which takes some seconds.

    Returns:
        Numbers and names that JSON can hold: `device`, `torch`, `dtype`, `threads`, `picture` and
        `input` (H, W), `batch`, `milliseconds` ({stage: {median, low, high}}, of a batch, with the
        10th and 90th percentile), `images_a_second` of network and results, `peak_memory` in
        bytes, `parameters`, `weights`, `results`, and `operations` and `activations` ({total,
        by_operator, uncounted}) of one picture.

    Raises:
        UserError: the model looks at a picture in several views (TEST.AUG), or a number is below 1.
        DataError: a picture cannot be read.
    """
    model = predictor.model
    if not isinstance(model, KNet):
        raise UserError("a model with views of its own is not timed: set TEST.AUG.ENABLED False")
    if min(*size, batch, repeats) < 1 or warmup < 0:
        raise UserError("sizes, batch and repeats must be at least 1")
    limit = predictor.cfg.INPUT.MAX_PIXELS
    images = [
        read_picture({"file_name": name}, image_format="RGB", max_pixels=limit)
        for name in map(str, pictures)
    ] or [np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)]
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    seconds: dict[str, list[float]] = {stage: [] for stage in _STAGES}

    def timed(stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
        begun = time.perf_counter()
        result = work(*arguments)
        if on_gpu:
            torch.cuda.synchronize(model.device)
        seconds[stage].append(time.perf_counter() - begun)
        return result

    def finish(found: Sequence[Any], size: tuple[int, int]) -> list[Any]:
        return [model.task.results(each, size) for each in found]

    with torch.no_grad():
        for image in itertools.islice(itertools.cycle(images), warmup + repeats):
            record = timed("prepare", predictor.prepare, image)
            found = timed("network", model.predict, [record] * batch)
            timed("results", finish, found, (record["height"], record["width"]))
            timed("whole", predictor, image)
    milliseconds = {
        stage: dict(zip(("low", "median", "high"), _quantiles(values[warmup:])))
        for stage, values in seconds.items()
    }
    step = milliseconds["network"]["median"] + milliseconds["results"]["median"]
    record = predictor.prepare(images[0])
    test = predictor.cfg.MODEL.KNET.TEST
    numbers: dict[str, Any] = {
        "device": torch.cuda.get_device_name(model.device) if on_gpu else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": predictor.cfg.MODEL.KNET.ACCEL.DTYPE,
        "backbone": predictor.cfg.MODEL.BACKBONE.NAME,
        "weights": predictor.cfg.MODEL.WEIGHTS or "random",
        "results": [t for t in ("panoptic", "instance", "semantic") if test[f"{t.upper()}_ON"]],
        "pictures": len(pictures),
        "picture": list(images[0].shape[:2]),
        "input": list(record["image"].shape[-2:]),
        "batch": batch,
        "repeats": repeats,
        "milliseconds": milliseconds,
        "images_a_second": 1000 * batch / step,
        # of tensors on a GPU, else of the process since it began
        "peak_memory": torch.cuda.max_memory_allocated(model.device) if on_gpu else peak_memory(),
    }
    plain = _plain_model(predictor.cfg)
    numbers["parameters"] = parameter_count(plain)[""]
    if operations:
        counts = flop_analysis(plain, record), activation_analysis(plain, record)
        numbers["operations"], numbers["activations"] = map(_as_dict, counts)
        numbers["operations"]["products"] = counts[0].products
        numbers["table"] = flop_count_table(counts[0].analysis, max_depth=4)
    return numbers


def format_benchmark(numbers: Mapping[str, Any], *, by_operator: bool = False) -> str:
    """What `benchmark` measured, as text.

    Args:
        numbers: of `benchmark`.
        by_operator: with the operations of each module and operator.
    """
    device = numbers["device"]
    if device == "CPU":
        device += f" ({numbers['threads']} thread{'s' * (numbers['threads'] > 1)})"
    picture, given = ("x".join(map(str, numbers[key])) for key in ("picture", "input"))
    what = f"the first of {numbers['pictures']}," if numbers["pictures"] else "random,"
    lines = [
        f"model        {numbers['backbone']}, {', '.join(numbers['results'])}; "
        f"{numbers['parameters']:,} parameters; weights: {numbers['weights']}",
        f"machine      {device}, torch {numbers['torch']}, {numbers['dtype']}",
        f"picture      {what} {picture} (height x width), {given} in the network, "
        f"{numbers['batch']} at once",
        f"{'':36}ms (median of {numbers['repeats']})   10 to 90 %",
    ]
    for stage, text in _STAGES.items():
        low, median, high = (numbers["milliseconds"][stage][k] for k in ("low", "median", "high"))
        lines.append(f"  {text:36}{median:12.1f}   {low:14.1f} to {high:.1f}")
    lines += [
        f"images/s     {numbers['images_a_second']:.3g} (network and results)",
        f"peak memory  {numbers['peak_memory'] / 2**30:.2f} GB"
        + (" of the process" if numbers["device"] == "CPU" else " of tensors"),
    ]
    if "operations" in numbers:
        operations, activations = numbers["operations"], numbers["activations"]
        lines += [
            f"operations   {operations['total'] / 1e9:.4g} G, of them convolutions and matrix "
            f"products {operations['products'] / 1e9:.4g} G multiplications with additions "
            f"({2 * operations['products'] / 1e9:.4g} G single operations)",
            f"activations  {activations['total'] / 1e6:.4g} M",
            _completeness(operations),
        ]
        if by_operator:
            lines += ["", numbers["table"], "", "operations by operator, in G:"]
            lines += [f"  {k:30} {n / 1e9:12.6f}" for k, n in operations["by_operator"].items()]
    return "\n".join(lines)


def _plain_model(cfg: CfgNode) -> KNet:
    """The model as it is built, with random weights: what is made faster cannot be counted."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.TIMM.PRETRAINED = "cpu", False
    cfg.MODEL.KNET.TEST.CLASSES = []  # by names that only a data set knows
    return build_model(cfg).eval()


def _as_dict(count: Count) -> dict[str, Any]:
    by_operator = dict(sorted(count.by_operator.items(), key=lambda item: -item[1]))
    return {"total": count.total, "by_operator": by_operator, "uncounted": dict(count.uncounted)}


def _completeness(found: Mapping[str, Any]) -> str:
    if not found["uncounted"]:
        return "             complete: every operator is counted, but for free ones (knet.analysis)"
    names = ", ".join(f"{name} ({times})" for name, times in sorted(found["uncounted"].items()))
    return f"             incomplete: not counted are {names}"


def _quantiles(seconds: Sequence[float]) -> list[float]:
    """The 10th, 50th and 90th percentile in milliseconds."""
    if len(seconds) == 1:
        return [1000 * seconds[0]] * 3
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return [1000 * value for value in (tenths[0], statistics.median(seconds), tenths[-1])]
