"""The K-Net meta-architecture: any Detectron2 backbone, the K-Net heads, all results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.backbone import FPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

import knet.modeling.small_resnet  # noqa: F401  (registers the backbone)
from knet.inference.postprocess import ImageResult, InferenceOptions, postprocess
from knet.modeling.build_neck import build_neck
from knet.modeling.classes import ClassIds, class_ids_from_config
from knet.modeling.heads import KNetHeads
from knet.modeling.kernel_head import KernelHead
from knet.modeling.kernel_rounds import KernelRounds
from knet.modeling.kernel_update import UpdateRound
from knet.training.criterion import KNetCriterion, LossWeights
from knet.training.matcher import MaskMatcher
from knet.training.targets import ImageTargets, build_targets


@META_ARCH_REGISTRY.register()
class KNet(nn.Module):
    """K-Net for instance and panoptic segmentation (Zhang et al., NeurIPS 2021).

    Args:
        backbone: gives the feature maps.
        in_features: names of the maps that the heads use, finest first.
        heads: neck, kernel head and update rounds.
        criterion: matching and losses.
        class_ids: the data set's ids of K-Net's classes.
        options: which results are wanted, and their thresholds.
        mask_upsample: factor between the heads' masks and the grid of losses and results.
        loss_stride: stride of that grid.
        pixel_mean, pixel_std: of the input, a channel each, in the order of the input.
        size_divisibility: images are padded to a multiple of it.
        freeze_norm_stats: batch norms of the backbone keep their statistics.
        channels_last: memory format of images and weights.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        heads: KNetHeads,
        criterion: KNetCriterion,
        class_ids: ClassIds,
        options: InferenceOptions,
        mask_upsample: int,
        loss_stride: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        freeze_norm_stats: bool,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.in_features = list(in_features)
        self.heads = heads
        self.criterion = criterion
        self.class_ids = class_ids
        self.options = options
        self.mask_upsample = mask_upsample
        self.loss_stride = loss_stride
        self.size_divisibility = size_divisibility
        self.freeze_norm_stats = freeze_norm_stats
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        # on the CPU, where the loader's labels are
        self.thing_ids = torch.tensor(class_ids.things, dtype=torch.int64)
        self.stuff_ids = torch.tensor(class_ids.stuff, dtype=torch.int64)
        self.to(memory_format=self.memory_format)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Everything the constructor takes, out of a config."""
        knet = cfg.MODEL.KNET
        backbone = build_backbone(cfg)
        if isinstance(backbone, FPN):  # published initialisation; Detectron2's differs
            for conv in [*backbone.lateral_convs, *backbone.output_convs]:
                nn.init.xavier_uniform_(conv.weight)
        shapes = backbone.output_shape()
        neck = build_neck(cfg, shapes)
        class_ids = class_ids_from_config(cfg)
        things, stuff = len(class_ids.things), len(class_ids.stuff)
        if not things:
            raise ValueError(
                f"{cfg.DATASETS.TRAIN or cfg.DATASETS.TEST}: no thing class; K-Net's learned "
                "kernels need at least one"
            )
        stride = shapes[knet.IN_FEATURES[1]].stride
        if stride % knet.MASK_UPSAMPLE or knet.SIZE_DIVISIBILITY % stride:
            raise ValueError(
                f"MODEL.KNET.MASK_UPSAMPLE ({knet.MASK_UPSAMPLE}) must divide the masks' stride "
                f"({stride}), and that MODEL.KNET.SIZE_DIVISIBILITY ({knet.SIZE_DIVISIBILITY})"
            )
        heads = KNetHeads(
            neck=neck,
            kernel_head=KernelHead(
                hidden_dim=knet.HIDDEN_DIM,
                num_kernels=knet.NUM_KERNELS,
                num_thing_classes=things,
                num_stuff_classes=stuff,
                norm_groups=knet.NORM_GROUPS,
                conv_std=knet.CONV_INIT_STD,
                class_prior=knet.CLASS_PRIOR,
            ),
            rounds=KernelRounds(
                UpdateRound(
                    dim=knet.HIDDEN_DIM,
                    num_heads=knet.NUM_HEADS,
                    ffn_dim=knet.FFN_DIM,
                    num_classes=things + stuff,
                    class_prior=knet.CLASS_PRIOR,
                )
                for _ in range(knet.NUM_ROUNDS)
            ),
        )
        criterion = KNetCriterion(
            num_thing_classes=things,
            num_stuff_classes=stuff,
            matcher=MaskMatcher(
                class_weight=knet.COST.CLASS_WEIGHT,
                mask_weight=knet.COST.MASK_WEIGHT,
                dice_weight=knet.COST.DICE_WEIGHT,
            ),
            weights=LossWeights(
                classes=knet.LOSS.CLASS_WEIGHT,
                mask=knet.LOSS.MASK_WEIGHT,
                dice=knet.LOSS.DICE_WEIGHT,
                rank=knet.LOSS.RANK_WEIGHT,
                seg=knet.LOSS.SEG_WEIGHT,
            ),
            mask_upsample=knet.MASK_UPSAMPLE,
        )
        return {
            "backbone": backbone,
            "in_features": knet.IN_FEATURES,
            "heads": heads,
            "criterion": criterion,
            "class_ids": class_ids,
            "options": InferenceOptions(
                instance=knet.TEST.INSTANCE_ON,
                panoptic=knet.TEST.PANOPTIC_ON,
                semantic=knet.TEST.SEMANTIC_ON,
                top_k=cfg.TEST.DETECTIONS_PER_IMAGE,
                score_threshold=knet.TEST.SCORE_THRESH,
                mask_threshold=knet.TEST.MASK_THRESH,
                thing_threshold=knet.TEST.THING_THRESH,
                overlap_threshold=knet.TEST.OVERLAP_THRESH,
            ),
            "mask_upsample": knet.MASK_UPSAMPLE,
            "loss_stride": stride // knet.MASK_UPSAMPLE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": max(knet.SIZE_DIVISIBILITY, backbone.size_divisibility),
            "freeze_norm_stats": knet.FREEZE_NORM_STATS,
            "channels_last": knet.CHANNELS_LAST,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> KNet:
        """As `nn.Module.train`, but frozen batch norm statistics stay frozen."""
        super().train(mode)
        if mode and self.freeze_norm_stats:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Losses in training, results otherwise.

        Args:
            batched_inputs: one dict an image: `image` (3, H, W) of any real type, values 0..255;
                in training `instances` (`gt_masks` BitMasks (G, H, W), `gt_classes` (G,)) and,
                with stuff classes, `sem_seg` (H, W) integer labels; in inference `height` and
                `width` of the original image, to which results are resized.

        Returns:
            In training a dict of named losses, see `KNetCriterion`. Otherwise one dict an image:
            `instances` (`pred_masks`, `pred_boxes`, `scores`, `pred_classes`), `panoptic_seg`
            (id map (H, W) int32 with 0 for void, list of segment dicts), `sem_seg` (K, H, W)
            scores; those that `MODEL.KNET.TEST` asks for.
        """
        images = self._images(batched_inputs)
        padded_size = tuple(images.tensor.shape[-2:])
        # before the forward pass, so that preparing them does not wait for it
        targets = [self._targets(x, padded_size) for x in batched_inputs] if self.training else []
        features = self.backbone(images.tensor)
        initial, rounds = self.heads([features[name] for name in self.in_features])
        if self.training:
            return self.criterion(initial, rounds, targets)
        last, results = rounds[-1], []
        for b, (x, size) in enumerate(zip(batched_inputs, images.image_sizes)):
            result = postprocess(
                last.class_logits[b],
                last.masks[b],
                num_thing_classes=len(self.class_ids.things),
                num_stuff_classes=len(self.class_ids.stuff),
                padded_size=padded_size,
                image_size=size,
                output_size=(x.get("height", size[0]), x.get("width", size[1])),
                options=self.options,
                mask_upsample=self.mask_upsample,
            )
            results.append(self._to_detectron2(result))
        return results

    def _images(self, batched_inputs: Sequence[Mapping[str, Any]]) -> ImageList:
        images = []
        for x in batched_inputs:
            image = x["image"].to(self.device, non_blocking=True)
            images.append((image - self.pixel_mean) / self.pixel_std)
        batch = ImageList.from_tensors(images, self.size_divisibility)
        batch.tensor = batch.tensor.contiguous(memory_format=self.memory_format)
        return batch

    def _targets(self, x: Mapping[str, Any], padded_size: tuple[int, int]) -> ImageTargets:
        wanted = ["instances"] + (["sem_seg"] if len(self.class_ids.stuff) else [])
        for key in wanted:
            if key not in x:
                raise ValueError(
                    f"{x.get('file_name', 'an image')}: training needs {key!r}, which the data "
                    "set does not give: see INPUT.KNET_TARGETS and the annotations"
                )
        classes = x["instances"].gt_classes
        # ids of the data set -> K-Net's thing classes; ids are sorted
        labels = torch.searchsorted(self.thing_ids, classes.cpu())
        return build_targets(
            thing_labels=labels,
            thing_masks=x["instances"].gt_masks.tensor,
            sem_seg=x.get("sem_seg"),
            stuff_ids=self.stuff_ids,
            padded_size=padded_size,
            stride=self.loss_stride,
            device=self.device,
        )

    def _to_detectron2(self, result: ImageResult) -> dict[str, Any]:
        """Detectron2's output dict, with the data set's ids in place of K-Net's classes."""
        things, stuff = self.class_ids.things, self.class_ids.stuff
        labels = [*things, *stuff]
        out: dict[str, Any] = {}
        if result.instances is not None:
            found = result.instances
            instances = Instances(tuple(found.masks.shape[-2:]))
            instances.pred_masks = found.masks
            instances.pred_boxes = Boxes(found.boxes)
            instances.scores = found.scores
            instances.pred_classes = found.labels.new_tensor(things)[found.labels]
            out["instances"] = instances
        if result.panoptic is not None:
            id_map, segments = result.panoptic
            info = [
                {
                    "id": s.id,
                    "isthing": s.is_thing,
                    "category_id": labels[s.label],
                    "score": s.score,
                    "area": s.area,
                }
                for s in segments
            ]
            out["panoptic_seg"] = (id_map, info)
        if result.semantic is not None:
            out["sem_seg"] = self._reorder(result.semantic, labels)
        return out

    @staticmethod
    def _reorder(scores: Tensor, labels: Sequence[int]) -> Tensor:
        if list(labels) == list(range(len(labels))):
            return scores
        ordered = scores.new_zeros((max(labels) + 1, *scores.shape[1:]))
        ordered[list(labels)] = scores
        return ordered
