"""The K-Net meta-architecture: any Detectron2 backbone, the K-Net heads, all results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

from knet.modeling.backbones.narrow_convolutions import pick_pixels_before_narrow_convolutions
from knet.modeling.build import model_arguments
from knet.modeling.images import SlidingWindow, normalised_batch, padded_size, slide
from knet.modeling.outputs import CarriedKernels, RoundOutput
from knet.modeling.predictions import Frame, MaskPredictions, PixelPredictions
from knet.modeling.task import Task

__all__ = ["KNet"]

_MOSTLY_PADDING = (
    "pictures of %dx%d are padded to MODEL.KNET.MIN_TRAIN_SIZE %s, so that most of what is "
    "computed is padding: set it to their size, or to (0, 0)"
)


class Inference(Protocol):
    """What `knet.accel` may put in the place of backbone and heads where no gradients are wanted.

    (B, 3, H, W) -> the last round, the same up to rounding. It keeps what it made of the weights
    until `forget`.
    """

    def __call__(self, images: Tensor, carried: CarriedKernels | None = None) -> RoundOutput: ...

    def forget(self) -> None: ...


@META_ARCH_REGISTRY.register()
class KNet(nn.Module):
    """K-Net for instance, panoptic and semantic segmentation (Zhang et al., NeurIPS 2021).

    Args:
        backbone: gives the feature maps.
        in_features: names of the maps that the heads use, finest first.
        heads: `KNetHeads` or `SemanticHeads`.
        criterion: all losses of the heads' outputs and the task's targets.
        task: targets and results.
        pixel_mean, pixel_std: of the input, a channel each, in the order of the input.
        size_divisibility: images are padded to a multiple of it.
        min_train_size: training batches are padded to at least this (height, width).
        window: semantic models: predict large images in windows; None for whole images.
        freeze_norm_stats: batch norms of the backbone keep their statistics.
        channels_last: memory format of images and weights.

    Attributes:
        inference: a faster way through backbone and heads, set by `knet.accel.accelerate`; or None.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    inference: Inference | None

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        heads: nn.Module,
        criterion: Callable[..., dict[str, Tensor]],
        task: Task,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
        min_train_size: Sequence[int] = (0, 0),
        window: SlidingWindow | None = None,
        freeze_norm_stats: bool = True,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.in_features = list(in_features)
        self.heads = heads
        self.criterion = criterion
        self.task = task
        self.size_divisibility = size_divisibility
        self.min_train_size = tuple(min_train_size)
        self.window = window
        self.freeze_norm_stats = freeze_norm_stats
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.to(memory_format=self.memory_format)
        pick_pixels_before_narrow_convolutions(backbone)
        self.inference = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Everything the constructor takes, out of a config; see `knet.modeling.build`."""
        return model_arguments(cfg)

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
                with stuff classes and in semantic models, `sem_seg` (H, W) integer labels, or what
                `task.prepare` makes of them; in inference `height` and `width` of the original
                image, to which results are resized.

        Returns:
            In training a dict of named losses, see `KNetCriterion` and `SemanticCriterion`.
            Otherwise one dict an image: `instances` (`pred_masks`, `pred_boxes`, `scores`,
            `pred_classes`), `panoptic_seg` (id map (H, W) int32 with 0 for void, list of segment
            dicts), `sem_seg` (K, H, W) scores; those that `MODEL.KNET.TEST` asks for.
        """
        if self.training:
            return self._losses(batched_inputs)
        results = []
        for x, predictions in zip(batched_inputs, self.predict(batched_inputs)):
            size = predictions.frame.image_size
            output_size = (x.get("height", size[0]), x.get("width", size[1]))
            results.append(self.task.results(predictions, output_size))
        return results

    def predict(
        self,
        batched_inputs: Sequence[Mapping[str, Any]],
        carried: CarriedKernels | None = None,
    ) -> list[MaskPredictions | PixelPredictions]:
        """What the last round says of each image, before it is resized and fused.

        Args:
            batched_inputs: see `forward`.
            carried: instance and panoptic models: kernels to start from.
        """
        if self.window is not None:
            return [self._predict_in_windows(x) for x in batched_inputs]
        images = self._images(batched_inputs)
        last = self._last_round(images, carried)
        return [
            self.task.predictions(last, b, Frame(images.shape[-2:], x["image"].shape[-2:]))
            for b, x in enumerate(batched_inputs)
        ]

    def trace(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> tuple[Any, list[RoundOutput], list[Frame]]:
        """Initial kernels and every round of a batch, and the frame of each image.

        Raises:
            ValueError: the model looks at windows of an image.
        """
        if self.window is not None:
            raise ValueError(
                "kernels are followed through one look at the whole image: set "
                "MODEL.KNET.TEST.WINDOW.SIZE ()"
            )
        images = self._images(batched_inputs)
        frames = [Frame(images.shape[-2:], x["image"].shape[-2:]) for x in batched_inputs]
        return *self._rounds(images), frames

    def _losses(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        images = self._images(batched_inputs)
        height, width = images.shape[-2:]
        # before the forward pass, so that preparing them does not wait for it
        targets = self.task.targets(batched_inputs, (height, width), self.device)
        initial, rounds = self._rounds(images, targets)
        return self.criterion(initial, rounds, targets)

    def _predict_in_windows(self, x: Mapping[str, Any]) -> PixelPredictions:
        assert self.window is not None

        def predict(windows: Tensor) -> Tensor:
            height, width = windows.shape[-2:]
            padded = padded_size((height, width), self.size_divisibility)
            images = F.pad(windows, (0, padded[1] - width, 0, padded[0] - height))
            images = images.contiguous(memory_format=self.memory_format)
            logits = self._last_round(images).masks.float()
            logits = F.interpolate(
                logits, size=images.shape[-2:], mode="bilinear", align_corners=False
            )
            return logits[..., :height, :width]

        size = tuple(x["image"].shape[-2:])
        (image,) = normalised_batch([x["image"]], self.pixel_mean, self.pixel_std, size)
        return PixelPredictions(slide(image, predict, self.window), Frame(size, size))

    def _rounds(
        self, images: Tensor, targets: Any = None, carried: CarriedKernels | None = None
    ) -> tuple[Any, list[RoundOutput]]:
        if self.inference is not None and (self.training or torch.is_grad_enabled()):
            self.inference.forget()  # weights will change
        features = self.backbone(images)
        maps = [features[name] for name in self.in_features]
        if carried is not None:  # semantic heads take none
            return self.heads(maps, targets, carried=carried)
        return self.heads(maps, targets)

    def _last_round(self, images: Tensor, carried: CarriedKernels | None = None) -> RoundOutput:
        if self.inference is None or self.training or torch.is_grad_enabled():
            return self._rounds(images, carried=carried)[1][-1]
        return self.inference(images, carried)

    def _images(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Tensor:
        """(B, C, H, W), normalised and padded."""
        images = [x["image"] for x in batched_inputs]
        largest = [max(image.shape[axis] for image in images) for axis in (-2, -1)]
        height, width = padded_size(largest, self.size_divisibility)
        if self.training:
            least_height, least_width = self.min_train_size
            if 4 * height * width < least_height * least_width:
                # crops of the published recipes are never that small
                log_first_n(logging.WARNING, _MOSTLY_PADDING % (height, width, self.min_train_size))
            height, width = max(height, least_height), max(width, least_width)
        batch = normalised_batch(images, self.pixel_mean, self.pixel_std, (height, width))
        return batch.contiguous(memory_format=self.memory_format)
