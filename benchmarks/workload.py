"""What is measured: a model with random but not degenerate weights, and pictures with objects."""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import knet  # noqa: F401  (registers the model; has to come before detectron2)

# isort: split
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from PIL import Image

from knet.accel import accelerate_as_configured
from knet.classes import ClassIds, class_ids_from_config
from knet.config import get_cfg_from_file
from knet.data import (
    panoptic_to_instances,
    register_coco_panoptic,
    write_panoptic_png,
)
from knet.data.custom import register_data_sets
from knet.files import write_json
from knet.training.optimizer import build_optimizer
from knet.training.step import TrainStep


@dataclass(frozen=True)
class Workload:
    """What is chosen on the command line; the same in every process.

    Attributes:
        config_file, opts: the model.
        device: "cpu" or "cuda".
        size, output_size: (height, width) of the pictures and of their results.
        batch, objects: images of a training step and objects in each.
    """

    config_file: str
    opts: Sequence[Any] = ()
    device: str = "cpu"
    size: tuple[int, int] = (800, 1216)
    output_size: tuple[int, int] = (421, 640)
    batch: int = 2
    objects: int = 15


def make_config(work: Workload, *opts: Any) -> CfgNode:
    """The config of a workload, with further keys and values, for one kind of results.

    Raises:
        ValueError: a semantic model, whose decoder the reference does not have.
    """
    cfg = get_cfg_from_file(work.config_file, ["MODEL.DEVICE", work.device, *work.opts, *opts])
    register_data_sets(cfg)
    if cfg.MODEL.KNET.KERNEL_HEAD != "learned":
        raise ValueError(f"{work.config_file}: a semantic model; measured are those of objects")
    panoptic, test = bool(class_ids_from_config(cfg).stuff), cfg.MODEL.KNET.TEST
    test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON = panoptic, not panoptic, False
    return cfg


def make_model(
    work: Workload,
    *opts: Any,
    accelerated: bool,
    weights: Mapping[str, Tensor] | None = None,
) -> tuple[CfgNode, Any]:
    """A config and its model, in inference mode; the same from the same arguments.

    Args:
        work: what is measured.
        opts: more keys and values.
        accelerated: with `knet.accel.accelerate`, as MODEL.KNET.ACCEL says.
        weights: a state dict; by default random ones, see `spread`.
    """
    torch.manual_seed(0)
    cfg = make_config(work, "MODEL.KNET.ACCEL.ENABLED", accelerated, *opts)
    model = build_model(cfg).eval()
    if weights is not None:
        model.load_state_dict(weights)
    else:
        with torch.no_grad():
            picture = make_inputs(work, class_ids_from_config(cfg), 1)
            features = model.backbone(model._images(picture))
            spread(model.heads, [features[name] for name in model.in_features])
    return cfg, accelerate_as_configured(model, cfg)


def smooth_noise(channels: int, size: Sequence[int], cells: int) -> Tensor:
    """(channels, H, W) in [0, 1]: random values on a coarse grid, bilinear between."""
    coarse = torch.rand(1, channels, cells, cells * 3 // 2)
    return F.interpolate(coarse, size=tuple(size), mode="bilinear", align_corners=False)[0]


def blobs(count: int, size: Sequence[int]) -> Tensor:
    """(count, H, W): ellipses with ragged outlines, as predicted ones have."""
    axes = [torch.linspace(0, 1, length) for length in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centres, radii = torch.rand(count, 2, 1, 1), 0.05 + 0.17 * torch.rand(count, 2, 1, 1)
    distances = ((grid - centres) / radii).square().sum(dim=1)
    return distances + 0.6 * smooth_noise(count, size, 30) < 1.3


@functools.lru_cache(maxsize=4)
def make_inputs(work: Workload, ids: ClassIds, count: int) -> list[dict[str, Any]]:
    """Pictures of soft patches under fine noise, blobs as objects, four kinds of stuff.

    Drawn once; nobody may change them.
    """
    torch.manual_seed(1)
    out = []
    for _ in range(count):
        image = 200 * smooth_noise(3, work.size, 12) + 55 * smooth_noise(3, work.size, 60)
        masks = blobs(work.objects, work.size)
        instances = Instances(work.size)
        instances.gt_masks = BitMasks(masks)
        instances.gt_classes = torch.tensor(ids.things)[
            torch.randint(len(ids.things), (work.objects,))
        ]
        x = {"image": image.round().to(torch.uint8), "instances": instances}
        x.update(zip(("height", "width"), work.output_size))
        if ids.stuff:
            kinds = torch.tensor(ids.stuff)[torch.randperm(len(ids.stuff))[:4]]
            areas = smooth_noise(len(kinds), work.size, 4).argmax(0)
            x["sem_seg"] = torch.where(masks.any(0), 255, kinds[areas])
        out.append(x)
    return out


@torch.no_grad()
def spread(heads: nn.Module, pyramid: Sequence[Tensor], *, coverage: float = 0.06) -> None:
    """Change random weights so that masks and scores look like those of a trained model.

    Freshly drawn ones give masks that cover everything or nothing, and scores of 0.01, on which
    the fusion of segments has nothing to do. Here every round's masks are centred, scaled and
    shifted to cover about `coverage` of the pixels each, and its class scores are spread so that
    the better third of the thing kernels passes the published threshold of 0.3.

    Args:
        heads: `KNetHeads`.
        pyramid: features of a picture.
        coverage: share of pixels.
    """
    initial = heads.kernel_head(*heads.neck(pyramid))
    x, kernels, masks = initial.features, initial.kernels, initial.masks
    things, classes = heads.kernel_head.num_kernels, heads.kernel_head.num_thing_classes
    for s, layer in enumerate(heads.rounds):
        level = initial.levels[s % len(initial.levels)] if initial.levels else None
        transform, predictor = layer.feature_transform, layer.mask_predictor
        # all kernels share this direction, along which the features' bias can shift all masks
        common = torch.full_like(predictor.bias, len(predictor.bias) ** -0.5)
        transform.bias.copy_(-(transform.weight @ x.mean((0, 2, 3))))
        predictor.bias.zero_()
        logits = layer(x, kernels, masks, level).masks
        predictor.weight.mul_(4 / logits.std())
        predictor.bias.copy_(20 * common)
        logits = layer(x, kernels, masks, level).masks.flatten()
        threshold = logits[:: max(1, len(logits) // 100_000)].quantile(1 - coverage)
        transform.bias.sub_(threshold / 20 * common)

        best = layer(x, kernels, masks, level).class_logits[0, :things, :classes].amax(1)
        layer.class_predictor.weight.mul_(1.5 / best.std())
        best = layer(x, kernels, masks, level).class_logits[0, :things, :classes].amax(1)
        layer.class_predictor.bias.sub_(best.quantile(0.67) - torch.tensor(0.3).logit())
        _, masks, kernels = layer(x, kernels, masks, level)


def write_data_set(
    folder: Path, name: str, scenes: Sequence[dict[str, Any]], ids: ClassIds, count: int
) -> list[tuple[Tensor, list[dict[str, Any]]]]:
    """Write and register JPEGs with panoptic PNGs and instances, in COCO's format.

    Args:
        folder: to write to.
        name: of the data set.
        scenes: of `make_inputs`; they take turns.
        ids: of the classes, which become categories 1, 2, … in this order.
        count: of images.

    Returns:
        What `draw_segments` gives.
    """
    drawn = draw_segments(scenes, ids)
    content: dict[str, list] = {"images": [], "annotations": [], "categories": [
        {"id": k + 1, "name": f"class {k}", "isthing": int(k < len(ids.things))}
        for k in range(len(ids.things) + len(ids.stuff))
    ]}  # fmt: skip
    pictures, maps = folder / "pictures", folder / "panoptic"
    pictures.mkdir()
    maps.mkdir()
    for k in range(count):
        (id_map, segments), picture = drawn[k % len(drawn)], scenes[k % len(drawn)]["image"]
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(pictures / f"{k}.jpg")
        write_panoptic_png(str(maps / f"{k}.png"), id_map.numpy())
        content["images"].append({"id": k, "file_name": f"{k}.jpg", "height": id_map.shape[0],
                                  "width": id_map.shape[1]})  # fmt: skip
        content["annotations"].append(
            {"image_id": k, "file_name": f"{k}.png", "segments_info": segments}
        )
    write_json(folder / "panoptic.json", content)
    panoptic_to_instances(str(folder / "panoptic.json"), str(maps), str(folder / "instances.json"))
    register_data_set(folder, name)
    return drawn


def register_data_set(folder: Path, name: str) -> None:
    """Register what `write_data_set` has written."""
    register_coco_panoptic(
        name, image_root=folder / "pictures", panoptic_root=folder / "panoptic",
        panoptic_json=folder / "panoptic.json", instances_json=folder / "instances.json",
    )  # fmt: skip


def draw_segments(
    scenes: Sequence[dict[str, Any]], ids: ClassIds
) -> list[tuple[Tensor, list[dict[str, Any]]]]:
    """The map of segment ids (H, W) int32 of each scene of `make_inputs`, and its segments."""
    labels, drawn = [*ids.things, *ids.stuff], []
    for x in scenes:
        stuff = [s for s in x["sem_seg"].unique().tolist() if s != 255] if ids.stuff else []
        classes = [*x["instances"].gt_classes.tolist(), *stuff]
        masks = [*x["instances"].gt_masks.tensor, *(x["sem_seg"] == s for s in stuff)]
        id_map = torch.zeros(x["image"].shape[1:], dtype=torch.int32)
        for number, mask in enumerate(masks, start=1):
            id_map[mask] = number
        segments = [
            {"id": k, "category_id": labels.index(classes[k - 1]) + 1, "iscrowd": 0,
             "area": int((id_map == k).sum()), "bbox": [0, 0, *id_map.shape[::-1]]}
            for k in id_map.unique().tolist() if k
        ]  # fmt: skip
        drawn.append((id_map, segments))
    return drawn


def loaded(model: Any, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Inputs of training as loaders give them: with small targets."""
    return [model.task.prepare(x) for x in inputs]


def make_step(
    cfg: CfgNode,
    model: Any,
    batch: list[dict[str, Any]],
    *,
    autocast_dtype: torch.dtype | None = None,
) -> TrainStep:
    """Its `run_step` trains on this batch, as `train_net.py` does."""
    step = TrainStep(
        model.train(), lambda *_: itertools.repeat(batch), build_optimizer(cfg, model),
        seed=0, clip_norm=1.0, autocast_dtype=autocast_dtype,
    )  # fmt: skip
    step.iter = 0
    return step


def peak_memory(run: Callable[[], Any], device: str) -> float:
    """Bytes by which the highest use of memory during a call exceeds that before it.

    On the GPU what torch allocates; on the CPU the pages of the process that are resident, whose
    high-water mark Linux keeps and lets a process reset. Freed memory goes back to the system
    before, so that it does not hide what the call takes.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident_memory()
    run()
    return resident_memory("VmHWM") - before


def resident_memory(field: str = "VmRSS") -> float:
    """Bytes of this process that are resident, or by another field of Linux."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"{status} has no {field}: memory can be measured on Linux alone")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; columns are the keys of all rows, None is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
        return "" if value is None else str(value)

    lines = [columns, ["---"] * len(columns), *([row.get(c) for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)
