#!/usr/bin/env python3
"""Mask2Former of Hugging Face transformers, trained on the nuclei in the place of K-Net.

    python benchmarks/mask2former.py [--length 1] [--seeds 1 2]

Backbone, its weights and what of it is frozen, loader, batches, time and schedule, results and
their scores are those of the trainings of ablation.py, to whose table it appends rows. Pixel
decoder, transformer, matching, losses and their weights are those of transformers, as published
(Cheng et al., CVPR 2022); so are weight decay, the backbone's share of the rate, and clipping.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from ablation import ROOT, TABLE, commit
from ablation_plan import NUCLEI, SCORES, Variant
from ablation_run import Run, run
from ablation_table import append_row, known_times, read_rows
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from knet.errors import UserError
from knet.modeling.build import model_arguments
from knet.modeling.knet import KNet
from knet.modeling.predictions import Frame, MaskPredictions
from knet.modeling.task import MaskTask

_EMBEDDINGS = ("*.queries_embedder.*", "*.queries_features.*", "*_module.level_embed.*")


@dataclass(frozen=True)
class Choices:
    """What the command line can change; the comments name what is published, for COCO.

    Attributes:
        hidden: channels; FFNs have 4 times as many in the pixel decoder, 8 times in the decoder.
        encoder_layers, decoder_layers: of the pixel decoder and of the transformer behind it.
        queries: the most objects that a picture can have.
        points: of costs and mask losses, a mask.
        rate: of AdamW.
    """

    hidden: int = 64  # 256
    encoder_layers: int = 3  # 6
    decoder_layers: int = 3  # 9
    queries: int = 300  # 100
    points: int = 1024  # 12544 of the 65,536 pixels of a mask, which has 4096 here
    rate: float = 1e-3  # 1e-4

    @property
    def name(self) -> str:
        """Of the model in Detectron2's registry."""
        return "_".join(map(str, ("Mask2Former", *astuple(self))))

    def variant(self) -> Variant:
        """Its keys on top of today's recipe, whose backbone and data it keeps."""
        return Variant(
            "mask2former",
            "Mask2Former",
            "Mask2Former of transformers in the place of K-Net, as small",
            {
                "MODEL.META_ARCHITECTURE": self.name,
                "MODEL.KNET.NUM_KERNELS": self.queries,  # which limits the detections
                "MODEL.KNET.TEST.MASK_SCORES": True,
                "SOLVER.BASE_LR": self.rate,
                "SOLVER.WEIGHT_DECAY_NORM": 0.0,
                "SOLVER.NO_DECAY": _EMBEDDINGS,
                "SOLVER.BACKBONE_MULTIPLIER": 0.1,
                "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
            },
            data=(NUCLEI,),
        )


def import_transformers() -> Any:
    """The package; UserError says how to get it."""
    if find_spec("transformers") is None:
        raise UserError("Mask2Former is that of transformers: run `pip install transformers`")
    import transformers

    transformers.logging.set_verbosity_error()  # it warns of any backbone but Swin
    return transformers


def make_mask2former(
    classes: int, *, backbone: Mapping[str, Any] | None = None, **sizes: Any
) -> Any:
    """`Mask2FormerForUniversalSegmentation` with random weights, on a ResNet.

    Args:
        classes: without that of no object.
        backbone: more of `ResNetConfig`; a ResNet-50 by default.
        sizes: more of `Mask2FormerConfig`; the published sizes by default.
    """
    transformers = import_transformers()
    stages = [f"stage{k}" for k in range(1, 5)]
    resnet = transformers.ResNetConfig(out_features=stages, **(backbone or {}))
    config = transformers.Mask2FormerConfig(backbone_config=resnet, num_labels=classes, **sizes)
    return transformers.Mask2FormerForUniversalSegmentation(config)


class _Given(nn.Module):
    """Feature maps that are there already, as transformers asks a backbone for them."""

    feature_maps: Sequence[Tensor] = ()

    def forward(self, images: Tensor) -> _Given:
        return self


class Mask2FormerHeads(nn.Module):
    """All of Mask2Former behind the backbone, as `KNet` calls its heads.

    Args:
        channels: of the maps, finest first, strides 4 to 32.
        classes: without that of no object.
        choices: sizes.
    """

    def __init__(self, channels: Sequence[int], classes: int, choices: Choices) -> None:
        super().__init__()
        # it reads the channels off a backbone, which then makes room for given maps
        self.model = make_mask2former(
            classes,
            backbone={"hidden_sizes": list(channels), "depths": [1] * 4, "layer_type": "basic"},
            **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), choices.hidden),
            encoder_feedforward_dim=4 * choices.hidden,
            dim_feedforward=8 * choices.hidden,
            encoder_layers=choices.encoder_layers,
            decoder_layers=choices.decoder_layers + 1,  # it counts the first prediction, too
            num_queries=choices.queries,
            train_num_points=choices.points,
            output_auxiliary_logits=True,
        )
        self.model.model.pixel_level_module.encoder = self.maps = _Given()

    def forward(self, features: Sequence[Tensor], targets: Any = None) -> tuple[None, list[Any]]:
        """Maps (B, C, h, w) -> nothing, and what transformers gives, as the only round.

        Targets are of no use here; `KNetHeads` may need them.
        """
        self.maps.feature_maps = tuple(features)
        try:
            return None, [self.model(pixel_values=features[0])]  # of which it takes the shape
        finally:
            self.maps.feature_maps = ()

    def losses(self, initial: None, rounds: Sequence[Any], targets: Any) -> dict[str, Tensor]:
        """Of all layers, weighted; `targets` are masks (G, H, W) and classes (G,) of each image."""
        masks, classes = zip(*targets)
        return self.model.get_loss_dict(
            masks_queries_logits=rounds[-1].masks_queries_logits,
            class_queries_logits=rounds[-1].class_queries_logits,
            mask_labels=list(masks),
            class_labels=list(classes),
            auxiliary_predictions=rounds[-1].auxiliary_logits,
        )


class Mask2FormerTask(MaskTask):
    """Targets and results of instances: K-Net's, but for the whole masks and the softmax."""

    def prepare(self, x: dict[str, Any]) -> dict[str, Any]:
        """The input dict with masks (G, H, W) and classes (G,) as `targets`."""
        rest = {key: value for key, value in x.items() if key != "instances"}
        labels = torch.searchsorted(self._thing_ids, x["instances"].gt_classes.cpu())
        return {**rest, "targets": (x["instances"].gt_masks.tensor.cpu(), labels)}

    def targets(
        self,
        batch: Sequence[Mapping[str, Any]],
        padded_size: tuple[int, int],
        device: torch.device,
    ) -> Any:
        """Float masks, padded as the images are, and classes, of each image."""
        found = []
        for x in batch:
            masks, classes = (x if "targets" in x else self.prepare({**x}))["targets"]
            padded = torch.zeros(len(masks), *padded_size, device=device)
            padded[:, : masks.shape[1], : masks.shape[2]] = masks
            found.append((padded, classes.to(device)))
        return found

    def predictions(self, last: Any, index: int, frame: Frame) -> MaskPredictions:
        """One image's; results are then as transformers ranks them, with MASK_SCORES."""
        scores = last.class_queries_logits[index].float().softmax(-1)[:, :-1]
        return MaskPredictions(scores, last.masks_queries_logits[index], frame)


def build_mask2former(cfg: CfgNode, choices: Choices) -> KNet:
    """What the config makes of K-Net, with other heads, losses and targets."""
    arguments = model_arguments(cfg)
    shapes, task = arguments["backbone"].output_shape(), arguments["task"]
    channels = [shapes[name].channels for name in arguments["in_features"]]
    heads = Mask2FormerHeads(channels, len(task.class_ids.things), choices)
    task = Mask2FormerTask(class_ids=task.class_ids, options=task.options, streaming=task.streaming)
    return KNet(**{**arguments, "heads": heads, "criterion": heads.losses, "task": task})


def register(choices: Choices) -> None:
    """Let `choices.name` be a MODEL.META_ARCHITECTURE."""
    if choices.name not in META_ARCH_REGISTRY:
        build: Any = partial(build_mask2former, choices=choices)
        build.__name__ = choices.name
        META_ARCH_REGISTRY.register(build)


def train(job: Run, choices: Choices, table: Path, folder: Path) -> dict[str, Any]:
    """A row, see `ablation_run.run`, with the choices; as long as that of a seed that is there."""
    rows = [row for row in read_rows(table) if row.get("choices") == asdict(choices)]
    times = known_times(rows, job.data, job.variant, job.length, job.threads)
    row = run(job, choices.variant(), folder, partial(register, choices), times)
    return {**row, "choices": asdict(choices)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with each seed, in a process of its own, and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--length", type=float, default=1.0, help="times STEPS of ablation_plan.py (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of a training (%(default)s)")
    parser.add_argument("--table", type=Path, default=TABLE, help="lines of JSON, appended to")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "ablation")
    for field in fields(Choices):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        parser.add_argument(flag, type=type(default), default=default, help="(%(default)s)")
    args = parser.parse_args(arguments)
    try:
        import_transformers()
    except UserError as error:
        sys.exit(str(error))
    choices = Choices(**{field.name: getattr(args, field.name) for field in fields(Choices)})
    for seed in args.seeds:
        job = Run(NUCLEI, "mask2former", seed, args.length, args.threads)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            row = {
                **pool.submit(train, job, choices, args.table, args.output).result(),
                "commit": commit(),
            }
        append_row(args.table, row)
        print(f"seed {seed}: {row['scores'][SCORES[NUCLEI]]:.1f}, {row['steps']} steps", flush=True)


if __name__ == "__main__":
    main()
