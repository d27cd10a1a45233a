"""What a benchmark runs on: a model with random but not degenerate weights, a picture, objects."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import knet  # noqa: F401  (registers the model; has to come before detectron2)

# isort: split
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from knet.accel import accelerate
from knet.classes import class_ids_from_config
from knet.config import get_cfg_from_file
from knet.data.registration.builtin import register_builtin
from knet.data.registration.custom import register_custom


@dataclass(frozen=True)
class Workload:
    """All that is chosen on the command line; the same in every process.

    Attributes:
        config_file, opts: the model.
        device: "cpu" or "cuda".
        dtype: "float32", or the type of autocast.
        size: (height, width) of the picture.
        output_size: (height, width) of the results.
        batch, objects: images of a training step and objects in each.
        seed: of weights and pictures.
    """

    config_file: str
    opts: Sequence[str] = ()
    device: str = "cpu"
    dtype: str = "float32"
    size: tuple[int, int] = (800, 1216)
    output_size: tuple[int, int] = (421, 640)
    batch: int = 2
    objects: int = 15
    seed: int = 0


@dataclass
class Material:
    """A model and what it is fed.

    Attributes:
        cfg: the config.
        model: as `build_model` makes it, with weights from `spread`.
        panoptic: whether panoptic segments or instances are the result.
        batched_inputs: one dict an image, with annotations.
    """

    cfg: Any
    model: nn.Module
    panoptic: bool
    batched_inputs: list[dict[str, Any]] = field(default_factory=list)


def load_reference(name: str) -> ModuleType:
    """A module of the plain implementation beside the tests.

    Raises:
        FileNotFoundError: outside a checkout.
    """
    path = Path(__file__).parents[1] / "tests" / f"{name}.py"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the benchmark compares with it; run it in a checkout")
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_material(work: Workload, *, accelerated: bool = True) -> Material:
    """The model of a workload and its inputs; the same from the same workload.

    Args:
        work: what is measured.
        accelerated: with `knet.accel.accelerate`.

    Raises:
        ValueError: a semantic model, whose decoder the reference does not have.
    """
    torch.manual_seed(work.seed)
    cfg = get_cfg_from_file(work.config_file, ["MODEL.DEVICE", work.device, *work.opts])
    register_builtin([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    register_custom(cfg)
    if cfg.MODEL.KNET.KERNEL_HEAD != "learned":
        raise ValueError(
            f"{work.config_file}: a semantic model; the benchmark measures instance and panoptic "
            "ones"
        )
    ids = class_ids_from_config(cfg)
    test = cfg.MODEL.KNET.TEST
    # one kind of results: panoptic segments, or instances where there is no stuff
    test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON = bool(ids.stuff), not ids.stuff, False
    model = build_model(cfg).eval()
    if accelerated:
        accelerate(model)
    inputs = [
        make_input(work, things=list(ids.things), stuff=list(ids.stuff)) for _ in range(work.batch)
    ]
    with torch.no_grad():
        features = model.backbone(model._images(inputs[:1]))
        spread(model.heads, [features[name] for name in model.in_features])
    return Material(cfg, model, bool(ids.stuff), inputs)


def compiled_material(material: Material) -> Material:
    """The same model with MODEL.KNET.COMPILE."""
    cfg = material.cfg.clone()
    cfg.MODEL.KNET.COMPILE = True
    model = accelerate(build_model(cfg))
    model.load_state_dict(material.model.state_dict())
    return Material(cfg, model.eval(), material.panoptic, material.batched_inputs)


def smooth_noise(channels: int, size: Sequence[int], cells: int) -> Tensor:
    """(channels, H, W) in [0, 1]: random values on a coarse grid, bilinear between."""
    coarse = torch.rand(1, channels, cells, cells * 3 // 2)
    return F.interpolate(coarse, size=tuple(size), mode="bilinear", align_corners=False)[0]


def make_input(work: Workload, *, things: Sequence[int], stuff: Sequence[int]) -> dict[str, Any]:
    """A picture of soft patches under fine noise, ellipses as objects, four kinds of stuff."""
    height, width = work.size
    image = 200 * smooth_noise(3, work.size, 12) + 55 * smooth_noise(3, work.size, 60)
    y = torch.arange(height)[:, None] / height
    x = torch.arange(width)[None] / width
    centres = torch.rand(work.objects, 2)
    radii = 0.04 + 0.16 * torch.rand(work.objects, 2)
    masks = torch.stack(
        [((y - c[0]) / r[0]) ** 2 + ((x - c[1]) / r[1]) ** 2 < 1 for c, r in zip(centres, radii)]
    )
    out: dict[str, Any] = {
        "image": image.round().to(torch.uint8),
        "height": work.output_size[0],
        "width": work.output_size[1],
    }
    instances = Instances(work.size)
    instances.gt_masks = BitMasks(masks)
    instances.gt_classes = torch.tensor(things)[torch.randint(len(things), (work.objects,))]
    out["instances"] = instances
    if stuff:
        kinds = torch.tensor(stuff)[torch.randperm(len(stuff))[:4]]
        areas = smooth_noise(len(kinds), work.size, 4).argmax(0)
        out["sem_seg"] = torch.where(masks.any(0), 255, kinds[areas])
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
    for layer in heads.rounds:
        transform, predictor = layer.feature_transform, layer.mask_predictor
        # all kernels share this direction, along which the features' bias can shift all masks
        common = torch.full_like(predictor.bias, len(predictor.bias) ** -0.5)
        transform.bias.copy_(-(transform.weight @ x.mean((0, 2, 3))))
        predictor.bias.zero_()
        logits = layer(x, kernels, masks).masks
        predictor.weight.mul_(4 / logits.std())
        predictor.bias.copy_(20 * common)
        logits = layer(x, kernels, masks).masks.flatten()
        threshold = logits[:: max(1, len(logits) // 100_000)].quantile(1 - coverage)
        transform.bias.sub_(threshold / 20 * common)

        best = layer(x, kernels, masks).class_logits[0, :things, :classes].amax(1)
        layer.class_predictor.weight.mul_(1.5 / best.std())
        best = layer(x, kernels, masks).class_logits[0, :things, :classes].amax(1)
        layer.class_predictor.bias.sub_(best.quantile(0.67) - torch.tensor(0.3).logit())
        _, masks, kernels = layer(x, kernels, masks)
