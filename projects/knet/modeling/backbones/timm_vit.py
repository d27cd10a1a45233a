"""A plain vision transformer of timm with a simple feature pyramid, as outputs p2 … p5.

Li, Mao, Girshick, He: *Exploring Plain Vision Transformer Backbones for Object Detection* (ViTDet),
ECCV 2022, section 3. All maps are made of the last one, of stride 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from knet.modeling.backbones.common import import_timm
from knet.modeling.backbones.timm_models import check_arguments, check_name, warn_of_other_pixels

_STRIDE = 16


class PlainViT(Backbone):
    """The map of the last block of a vision transformer, behind its last norm, named `last`.

    Images can have any size of multiples of 16: position embeddings are resampled. Attention is
    global in all blocks, so its time grows with the square of the number of pixels.

    Args:
        name: as `timm.list_models()` gives it: `vit_…`, `deit…`, `eva…` and others that take
            `dynamic_img_size`.
        pretrained: load the weights that timm offers (from the network, or its cache).
        drop_path_rate: stochastic depth; None for the model's own default.
        gradient_checkpointing: less memory, more time in training.
        frozen: nothing of the model learns or drops anything.
        in_channels: of the image.
        kwargs: further arguments of the timm model's architecture. With `patch_size` 16 models of
            another one give maps of stride 16.

    Raises:
        ImportError: timm is not installed.
        ValueError: an unknown name, no plain vision transformer, or patches of another size than
            16; the message names the config key.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        drop_path_rate: float | None = None,
        gradient_checkpointing: bool = False,
        frozen: bool = False,
        in_channels: int = 3,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_name(name)
        check_arguments(kwargs or {})
        ours: dict[str, Any] = {"in_chans": in_channels, "num_classes": 0, "dynamic_img_size": True}
        if drop_path_rate is not None:
            ours["drop_path_rate"] = drop_path_rate
        self.model = _create(name, {**(kwargs or {}), **ours, "pretrained": pretrained})
        stride = self.model.feature_info[-1]["reduction"]
        if stride != _STRIDE:
            raise ValueError(
                f"MODEL.TIMM.NAME: {name} has patches of {stride} pixels, and the pyramid is made "
                f"of patches of {_STRIDE}: set MODEL.TIMM.KWARGS.patch_size to {_STRIDE}; weights "
                "are resampled when they are loaded"
            )
        # of a pooled token: it would never see a gradient
        self.model.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        self.model.set_grad_checkpointing(gradient_checkpointing)
        self._frozen = frozen
        if frozen:
            self.requires_grad_(False)
        self._out_features = ["last"]
        self._out_feature_channels = {"last": self.model.embed_dim}
        self._out_feature_strides = {"last": _STRIDE}

    @property
    def size_divisibility(self) -> int:
        """The side of a patch."""
        return _STRIDE

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in, H, W) of multiples of 16 -> `last` (B, C, H / 16, W / 16)."""
        (last,) = self.model.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return {"last": last}

    def train(self, mode: bool = True) -> PlainViT:
        """As `nn.Module.train`, but a frozen model drops nothing."""
        super().train(mode and not self._frozen)
        return self


class ChannelNorm(nn.LayerNorm):
    """Layer norm of the channels of each pixel, (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimplePyramid(Backbone):
    """Maps p2 … p5 of strides 4 … 32 of one of stride 16.

    It is enlarged by transposed convolutions of stride 2, kept, or reduced by max-pooling; then a
    1x1 and a 3x3 convolution, each with a norm, bring it to its width.

    Args:
        bottom_up: gives a map `last` of stride 16.
        out_channels: width of all maps.
    """

    def __init__(self, bottom_up: Backbone, out_channels: int) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        dim = bottom_up.output_shape()["last"].channels
        half, quarter = dim // 2, dim // 4
        scales: dict[str, list[nn.Module]] = {
            "p2": [
                nn.ConvTranspose2d(dim, half, 2, stride=2), ChannelNorm(half, eps=1e-6), nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, stride=2),
            ],
            "p3": [nn.ConvTranspose2d(dim, half, 2, stride=2)],
            "p4": [],
            "p5": [nn.MaxPool2d(2)],
        }  # fmt: skip
        widths = {"p2": quarter, "p3": half, "p4": dim, "p5": dim}
        self.pyramid = nn.ModuleDict()
        for name, scale in scales.items():
            layers = [
                *scale,
                nn.Conv2d(widths[name], out_channels, 1, bias=False),
                ChannelNorm(out_channels, eps=1e-6),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                ChannelNorm(out_channels, eps=1e-6),
            ]
            self.pyramid[name] = nn.Sequential(*layers)
        self._out_features = list(scales)
        self._out_feature_channels = dict.fromkeys(scales, out_channels)
        self._out_feature_strides = {name: 2 ** int(name[1:]) for name in scales}

    @property
    def size_divisibility(self) -> int:
        """The largest stride."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in, H, W) of multiples of 32 -> names and maps (B, out, H / stride, W / stride)."""
        last = self.bottom_up(images)["last"]
        return {name: layers(last) for name, layers in self.pyramid.items()}


def _create(name: str, arguments: Mapping[str, Any]) -> Any:
    timm = import_timm("timm", "build_timm_vit_backbone")
    try:
        model = timm.create_model(name, **arguments)
    except TypeError as error:  # an argument that the model does not take
        raise ValueError(
            f"MODEL.TIMM.NAME: {name} is no plain vision transformer for images of any size, or "
            f"does not take one of MODEL.TIMM.KWARGS ({error})"
        ) from error
    needed = ("forward_intermediates", "prune_intermediate_layers", "embed_dim")
    if not all(hasattr(model, attribute) for attribute in needed):
        raise ValueError(
            f"MODEL.TIMM.NAME: {name} is no plain vision transformer: take one, or "
            "MODEL.BACKBONE.NAME build_timm_fpn_backbone"
        )
    return model


@BACKBONE_REGISTRY.register()
def build_timm_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimplePyramid:
    """The plain vision transformer of MODEL.TIMM under a pyramid of MODEL.FPN.OUT_CHANNELS.

    Raises:
        ValueError: MODEL.BACKBONE.FREEZE_AT counts stages, which it does not have; and as
            `PlainViT`.
    """
    keys = cfg.MODEL.TIMM
    if cfg.MODEL.BACKBONE.FREEZE_AT and not keys.FROZEN:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}, but a plain vision "
            "transformer has no stages: set it to 0, or MODEL.TIMM.FROZEN to True to freeze it all"
        )
    vit = PlainViT(
        keys.NAME,
        pretrained=keys.PRETRAINED,
        drop_path_rate=None if keys.DROP_PATH_RATE < 0 else keys.DROP_PATH_RATE,
        gradient_checkpointing=keys.GRADIENT_CHECKPOINTING,
        frozen=keys.FROZEN,
        in_channels=input_shape.channels,
        kwargs=dict(keys.KWARGS),
    )
    warn_of_other_pixels(cfg)
    return SimplePyramid(vit, cfg.MODEL.FPN.OUT_CHANNELS)
