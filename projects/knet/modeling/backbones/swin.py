"""Swin Transformer (Liu et al., 2021) for images of any size, composed of timm's layers.

Parameters are named as timm names them, with a norm of every output beside: norm0 … norm3.

Where a map is no multiple of the window, this pads and then shifts, as the original detection and
segmentation code and the published K-Net models do. timm's own model shifts and then pads, which
gives other windows; and it drops the shift where a map is one window, which these do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from knet.modeling.backbones.common import FEATURES, add_fpn, check_features, import_timm

_PATCH = 4


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C), whole windows -> (B * windows, window ** 2, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def join_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `split_windows`."""
    channels = windows.shape[-1]
    x = windows.reshape(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def shift_mask(height: int, width: int, *, window: int, shift: int, like: Tensor) -> Tensor:
    """What keeps pixels from opposite borders apart, which a shift brings into one window.

    Args:
        height, width: of the map, in whole windows.
        window, shift: in pixels.
        like: gives type and device.

    Returns:
        (windows, window ** 2, window ** 2), 0 for pairs that attend to each other, else -100.
    """

    def regions(size: int) -> Tensor:
        at = torch.arange(size, device=like.device)
        return (at >= size - window).long() + (at >= size - shift).long()

    region = 3 * regions(height)[:, None] + regions(width)
    region = split_windows(region[None, :, :, None], window)
    return (region != region.transpose(1, 2)).to(like.dtype) * -100.0


class SwinBlock(nn.Module):
    """Attention within windows and an MLP, both residual.

    Args:
        dim, num_heads: widths.
        window: side of a window.
        shift: by how much windows are shifted up and left; 0 for not.
        drop_path: probability to leave out a branch of an image in training.
    """

    def __init__(
        self, dim: int, num_heads: int, *, window: int, shift: int, drop_path: float
    ) -> None:
        super().__init__()
        layers = import_timm("timm.layers", "Swin")
        models = import_timm("timm.models.swin_transformer", "Swin")
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = models.WindowAttention(dim, num_heads, window_size=window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = layers.Mlp(dim, 4 * dim)
        self.drop_path = layers.DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, H, W, C) -> the same; `mask` is that of `shift_mask` for the padded map."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        # zeros after the norm; they take part in the attention, as published
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded_height, padded_width = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = split_windows(x, self.window)
        windows = self.attn(windows, mask=mask.to(x.dtype) if self.shift else None)
        x = join_windows(windows, self.window, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class SwinStage(nn.Module):
    """A merging of 2x2 patches, except in the first stage, and blocks with and without shift.

    Args:
        dim_in, dim, num_heads, window: widths before and after the merging, and of the blocks.
        drop_path: a probability a block.
        gradient_checkpointing: compute blocks again in the backward pass, for less memory.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        num_heads: int,
        *,
        window: int,
        drop_path: Sequence[float],
        gradient_checkpointing: bool,
    ) -> None:
        super().__init__()
        models = import_timm("timm.models.swin_transformer", "Swin")
        self.window = window
        self.gradient_checkpointing = gradient_checkpointing
        self.downsample = nn.Identity() if dim_in == dim else models.PatchMerging(dim_in, dim)
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window=window, shift=i % 2 * (window // 2), drop_path=rate)
            for i, rate in enumerate(drop_path)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in) -> (B, ceil(H / 2), ceil(W / 2), out), the first stage (B, H, W, out)."""
        x = self.downsample(x)
        window = self.window
        height, width = (size + -size % window for size in x.shape[1:3])
        mask = shift_mask(height, width, window=window, shift=window // 2, like=x)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x


class Swin(Backbone):
    """Swin Transformer with outputs res2 … res5 of strides 4 … 32, each under a LayerNorm.

    Args:
        embed_dim: width of the first stage; it doubles with every stage.
        depths, num_heads: a number a stage.
        window_size: side of a window.
        drop_path_rate: of the last block; it grows from 0 at the first one.
        out_features: which outputs; stages after the last one are left out.
        gradient_checkpointing: less memory, more time in training.
        freeze_at: 0 nothing, 1 the patch embedding, 2 … 5 also stages up to res2 … res5.
        in_channels: of the image.

    Raises:
        ValueError: heads do not divide widths, or counts differ.
        ImportError: timm is not installed.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path_rate: float = 0.0,
        out_features: Sequence[str] = FEATURES,
        gradient_checkpointing: bool = False,
        freeze_at: int = 0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        dims = [embed_dim * 2**i for i in range(len(depths))]
        if len(depths) != 4 or len(num_heads) != 4 or any(d % n for d, n in zip(dims, num_heads)):
            raise ValueError(
                f"MODEL.SWIN.DEPTHS {list(depths)} and MODEL.SWIN.NUM_HEADS {list(num_heads)} "
                f"must be four numbers, and heads must divide the widths {dims} that follow from "
                "MODEL.SWIN.EMBED_DIM"
            )
        layers = import_timm("timm.layers", "Swin")
        self._out_features = check_features("MODEL.SWIN.OUT_FEATURES", out_features)
        self._out_feature_strides = {name: _PATCH * 2**i for i, name in enumerate(FEATURES)}
        self._out_feature_channels = dict(zip(FEATURES, dims))
        self.patch_embed = layers.PatchEmbed(
            img_size=None,
            patch_size=_PATCH,
            in_chans=in_channels,
            embed_dim=embed_dim,
            norm_layer=nn.LayerNorm,
            flatten=False,
            output_fmt="NHWC",
            dynamic_img_pad=True,
        )
        total = sum(depths)
        rates = [drop_path_rate * i / max(total - 1, 1) for i in range(total)]
        used = 1 + max(FEATURES.index(name) for name in out_features)
        self.layers = nn.ModuleList(
            SwinStage(
                dims[max(i - 1, 0)],
                dims[i],
                num_heads[i],
                window=window_size,
                drop_path=rates[sum(depths[:i]) : sum(depths[: i + 1])],
                gradient_checkpointing=gradient_checkpointing,
            )
            for i in range(used)
        )
        for i in range(used):
            if FEATURES[i] in out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(dims[i]))
        self._initialise()
        self._frozen = self._freeze(freeze_at)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in, H, W) -> names and maps (B, C, ceil(H / stride), ceil(W / stride))."""
        x = self.patch_embed(images)
        outputs = {}
        for i, (name, stage) in enumerate(zip(FEATURES, self.layers)):
            x = stage(x)
            if name in self._out_features:
                # NCHW that lies channels last in memory
                outputs[name] = getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2)
        return outputs

    def train(self, mode: bool = True) -> Swin:
        """As `nn.Module.train`, but frozen stages drop no paths."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _freeze(self, freeze_at: int) -> list[nn.Module]:
        frozen: list[nn.Module] = [self.patch_embed] if freeze_at >= 1 else []
        for i in range(min(max(freeze_at - 1, 0), len(self.layers))):
            frozen.append(self.layers[i])
            if hasattr(self, f"norm{i}"):
                frozen.append(getattr(self, f"norm{i}"))
        for module in frozen:
            module.requires_grad_(False)
        return frozen


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Swin:
    """The Swin Transformer of MODEL.SWIN; MODEL.BACKBONE.FREEZE_AT holds as for a ResNet."""
    swin = cfg.MODEL.SWIN
    return Swin(
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=swin.DROP_PATH_RATE,
        out_features=swin.OUT_FEATURES,
        gradient_checkpointing=swin.GRADIENT_CHECKPOINTING,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels,
    )


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same under an FPN."""
    return add_fpn(build_swin_backbone(cfg, input_shape), cfg)
