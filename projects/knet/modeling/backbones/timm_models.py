"""Any model of timm with feature maps, as a backbone with outputs res2 … res5."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN
from torch import Tensor, nn

from knet.modeling.backbones.common import FEATURES, add_fpn, check_features, import_timm

logger = logging.getLogger(__name__)

_STRIDES = {name: 2 ** (i + 2) for i, name in enumerate(FEATURES)}
# an image to try a model with: not square, and no multiple of usual windows
_PROBE = (128, 192)
# arguments on the way to the model that load something, beside those in timm's signatures
_LOADING = ("checkpoint_path", "cache_dir", "pruned")
# what this backbone sets
_FIXED = ("features_only", "feature_cls", "out_indices", "in_chans", "device", "dtype")
_MISFITS = (ArithmeticError, AssertionError, LookupError, ValueError)


class TimmBackbone(Backbone):
    """Feature maps of a timm model, named res2 … res5 by their strides 4 … 32.

    Args:
        name: as `timm.list_models()` gives it, with or without a tag of pretrained weights; no
            address of a hub or folder.
        pretrained: load the weights that timm offers (from the network, or its cache).
        out_features: which maps.
        drop_path_rate: stochastic depth; None for the model's own default.
        gradient_checkpointing: less memory, more time in training.
        freeze_at: 0 nothing, 2 … 5 all that res2 … res5 depends on.
        frozen: nothing of the model learns or drops anything, whatever `freeze_at` is.
        in_channels: of the image.
        kwargs: further arguments of the timm model's architecture; none of those with which timm
            opens or fetches files.

    Raises:
        ImportError: timm is not installed.
        ValueError: an unknown name, a model without these maps, or one that does not offer what
            is asked for; the message names the config key.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        out_features: Sequence[str] = FEATURES,
        drop_path_rate: float | None = None,
        gradient_checkpointing: bool = False,
        freeze_at: int = 0,
        frozen: bool = False,
        in_channels: int = 3,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_name(name)
        check_arguments(kwargs or {})
        self._name = name
        self._frozen = False
        self._frozen_norms: list[nn.Module] = []
        self._out_features = check_features("MODEL.TIMM.OUT_FEATURES", out_features)
        arguments = {"pretrained": pretrained, "in_chans": in_channels, **(kwargs or {})}
        if drop_path_rate is not None:
            arguments["drop_path_rate"] = drop_path_rate
        self.model = _create(name, arguments)
        self._indices = self._find_maps()
        last = max(self._indices.values())
        if last < len(self.model.feature_info.channels()) - 1:
            # parameters after the last map would never see a gradient
            indices = tuple(self.model.feature_info.out_indices[: last + 1])
            self.model = _create(name, {**arguments, "out_indices": indices})
            self._indices = self._find_maps()
        channels = self.model.feature_info.channels()
        self._out_feature_channels = {k: channels[i] for k, i in self._indices.items()}
        self._out_feature_strides = {k: _STRIDES[k] for k in self._indices}
        self._channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        self._probe(in_channels)
        if gradient_checkpointing:
            self._checkpoint_gradients()
        self._frozen = frozen
        if frozen:
            self.requires_grad_(False)
        elif freeze_at:
            self._freeze(freeze_at, in_channels)

    @property
    def size_divisibility(self) -> int:
        """The largest stride: not every model rounds sizes up."""
        return max(self._out_feature_strides[name] for name in self._out_features)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in, H, W) of multiples of `size_divisibility` -> names and maps (B, C, h, w)."""
        maps = self.model(images)
        outputs = {name: maps[self._indices[name]] for name in self._out_features}
        if self._channels_last:
            outputs = {name: x.permute(0, 3, 1, 2) for name, x in outputs.items()}
        return outputs

    def train(self, mode: bool = True) -> TimmBackbone:
        """As `nn.Module.train`, but norms of frozen parts keep their statistics."""
        super().train(mode and not self._frozen)
        for norm in self._frozen_norms:
            norm.eval()
        return self

    def _find_maps(self) -> dict[str, int]:
        strides = self.model.feature_info.reduction()
        # of several maps of one stride the last is the most refined one
        found = {stride: i for i, stride in enumerate(strides)}
        missing = [name for name in self._out_features if _STRIDES[name] not in found]
        if missing:
            raise ValueError(
                f"MODEL.TIMM.NAME: {self._name} has feature maps of strides {sorted(found)}, so "
                f"none for {missing}: choose another model, or fewer MODEL.TIMM.OUT_FEATURES"
            )
        return {name: found[_STRIDES[name]] for name in self._out_features}

    def _try(self, in_channels: int) -> dict[str, Tensor]:
        parameter = next(self.model.parameters())
        was_training = self.training
        self.eval()
        try:
            return self(parameter.new_zeros(1, in_channels, *_PROBE))
        finally:
            self.train(was_training)

    def _probe(self, in_channels: int) -> None:
        try:
            with torch.no_grad():
                outputs = self._try(in_channels)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"MODEL.TIMM.NAME: {self._name} takes no image of {_PROBE}, so not of any size "
                f"({error}); some models do with MODEL.TIMM.KWARGS {{strict_img_size: False}} or "
                "{dynamic_img_size: True}"
            ) from error
        for name, x in outputs.items():
            stride = _STRIDES[name]
            expected = (1, self._out_feature_channels[name], *(n // stride for n in _PROBE))
            if tuple(x.shape) != expected:
                raise ValueError(
                    f"MODEL.TIMM.NAME: {self._name} gives {name} of shape {tuple(x.shape)} for an "
                    f"image of {_PROBE}, not {expected}: it does not pad its convolutions, choose "
                    "another model"
                )

    def _checkpoint_gradients(self) -> None:
        # a wrapped model has the switch inside
        target = self.model
        if not hasattr(target, "set_grad_checkpointing"):
            target = getattr(target, "model", target)
        try:
            target.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise ValueError(
                f"MODEL.TIMM.GRADIENT_CHECKPOINTING: {self._name} does not offer it; set it to "
                "False"
            ) from error
        for module in target.modules():
            if hasattr(module, "inplace"):  # many versions of timm hand these a leaf, which breaks
                module.inplace = False

    def _freeze(self, freeze_at: int, in_channels: int) -> None:
        name = f"res{freeze_at}"
        if name not in self._out_features:
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; for a timm model it can be 0, or one of "
                f"{[int(f[3:]) for f in self._out_features]} to freeze all that this map depends on"
            )
        # what a map depends on, whatever the model calls its parts
        parameters = list(self.model.parameters())
        total = self._try(in_channels)[name].sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients):
            if gradient is not None:
                parameter.requires_grad_(False)
        for module in self.model.modules():
            own = list(module.parameters(recurse=False))
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if is_norm and own and not any(p.requires_grad for p in own):
                self._frozen_norms.append(module)


def check_name(name: str) -> None:
    """Raise ValueError unless timm has a model of this plain name."""
    timm = import_timm("timm", "build_timm_backbone")
    base = name.split(".")[0]
    if not re.fullmatch(r"\w+(\.\w+)?", name):  # "hf-hub:…", "local-dir:…" open what they name
        raise ValueError(
            f"MODEL.TIMM.NAME: {name!r} is no plain name of a timm model; weights are those of "
            "MODEL.WEIGHTS or, with MODEL.TIMM.PRETRAINED, timm's own"
        )
    if timm.is_model(base):
        return
    close = difflib.get_close_matches(base, timm.list_models(), n=5, cutoff=0.5)
    hint = f"near to it are {', '.join(close)}" if close else "timm.list_models() gives all"
    raise ValueError(f"MODEL.TIMM.NAME: timm has no model {name!r}; {hint}")


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """A config may be a stranger's: it can shape the model, and open, fetch or run nothing."""
    timm = import_timm("timm", "build_timm_backbone")
    timms_own = {*_LOADING, *_FIXED}
    for function in (timm.create_model, timm.models.build_model_with_cfg):
        kinds = inspect.signature(function).parameters.items()
        timms_own |= {name for name, p in kinds if p.kind is not inspect.Parameter.VAR_KEYWORD}
    for name, value in arguments.items():
        if name in timms_own or name.startswith("pretrained"):
            raise ValueError(
                f"MODEL.TIMM.KWARGS.{name} is no argument of an architecture: timm itself, or "
                "another key of MODEL.TIMM, decides on it; leave it out"
            )
        if not _is_plain(value):
            raise ValueError(
                f"MODEL.TIMM.KWARGS.{name} is {value!r}; it must be a number, text, True, False "
                "or a list of them"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _create(name: str, arguments: Mapping[str, Any]) -> Any:
    timm = import_timm("timm", "build_timm_backbone")
    try:
        return timm.create_model(name, features_only=True, **arguments)
    except TypeError as error:  # an argument that the model does not take
        raise ValueError(
            f"MODEL.TIMM: {name} does not take one of {sorted(arguments)} ({error}); see "
            "MODEL.TIMM.KWARGS, and MODEL.TIMM.DROP_PATH_RATE, where -1 leaves it out"
        ) from error
    # asserts and look-ups of models that get numbers which do not fit
    except (*_MISFITS, AttributeError, RuntimeError) as error:
        if arguments.get("pretrained"):
            raise  # about the weights, and timm says what
        raise ValueError(
            f"MODEL.TIMM.NAME: timm gives no feature maps of {name} ({error!r}); choose another "
            "model, or other MODEL.TIMM.KWARGS"
        ) from error


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The model of MODEL.TIMM; MODEL.BACKBONE.FREEZE_AT holds, except 1."""
    keys = cfg.MODEL.TIMM
    backbone = TimmBackbone(
        keys.NAME,
        pretrained=keys.PRETRAINED,
        out_features=keys.OUT_FEATURES,
        drop_path_rate=None if keys.DROP_PATH_RATE < 0 else keys.DROP_PATH_RATE,
        gradient_checkpointing=keys.GRADIENT_CHECKPOINTING,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        frozen=keys.FROZEN,
        in_channels=input_shape.channels,
        kwargs=dict(keys.KWARGS),
    )
    warn_of_other_pixels(cfg)
    return backbone


def warn_of_other_pixels(cfg: CfgNode) -> None:
    """Say so if the weights that timm offers, where they are taken, saw other pixel values."""
    # weights of a package are those that timm offers, in another file
    if not cfg.MODEL.TIMM.PRETRAINED and not cfg.MODEL.WEIGHTS.startswith("package://"):
        return
    timm = import_timm("timm", "build_timm_backbone")
    known = timm.get_pretrained_cfg(cfg.MODEL.TIMM.NAME)
    if known is None:
        return
    for key, values in (("PIXEL_MEAN", known.mean), ("PIXEL_STD", known.std)):
        expected, given = [round(255 * v, 3) for v in values], list(cfg.MODEL[key])
        if len(given) != len(expected) or any(abs(a - b) > 0.5 for a, b in zip(expected, given)):
            logger.warning(
                "MODEL.%s is %s, but the weights of %s were trained with %s (RGB)",
                key, given, cfg.MODEL.TIMM.NAME, expected,
            )  # fmt: skip


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same under an FPN."""
    return add_fpn(build_timm_backbone(cfg, input_shape), cfg)
