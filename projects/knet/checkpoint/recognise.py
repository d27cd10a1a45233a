"""What kind of weights a file holds, seen from its content, and the weights in our names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor

from knet.checkpoint.backbone_names import (
    DEFORM_RULES,
    RESNET_V1C_RULES,
    TORCHVISION_RULES,
    import_efficientnet,
    import_swin,
    rename,
)
from knet.checkpoint.class_names import ClassNames
from knet.checkpoint.published_names import import_published, is_derived
from knet.checkpoint.vit_patches import fit_patches

# entries of a saved dict that hold names and values, the likeliest first
_STATES = ("model", "state_dict", "model_state", "blobs")
# ImageNet models of Caffe2 have no entry of their own
_CAFFE2 = re.compile(r"conv1_[wb]$|res\d_\d+_branch")
_PREFIXES = ("module.", "_orig_mod.")  # of models wrapped for several GPUs, or compiled
_NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool}
_NUMBERS |= {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_PUBLISHED = ("decode_head.", "auxiliary_head.", "rpn_head.", "roi_head.", "neck.")
_CLASSIFIERS = ("fc.", "head.", "head_dist.", "classifier.", "last_linear.")
# what EfficientNet-PyTorch puts behind the last block
_EFFICIENTNET_CLASSIFIERS = ("_conv_head.", "_bn1.", "_fc.")


@dataclass
class Weights:
    """Weights of a file.

    Attributes:
        state: names and values, ours.
        kind: of file and model, in words.
        classes: names of the classes, if the file has them.
        left_out: how many values were not taken, by the reason.
        rest: what else a checkpoint of ours holds, such as the state of a training.
        heuristics: names were Detectron2's of some version or Caffe2's, and are ours as far as a
            model was given, with which Detectron2's heuristics match them.
    """

    state: dict[str, Tensor]
    kind: str = "Detectron2 weights"
    classes: ClassNames | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    rest: dict[str, Any] = field(default_factory=dict)
    heuristics: bool = False

    def leave_out(self, reason: str, fits: Callable[[str], bool]) -> None:
        """Drop values by their names, and count them."""
        for name in list(filter(fits, self.state)):
            del self.state[name]
            self.left_out[reason] += 1


def recognise(saved: Any, model_state: Mapping[str, Tensor], *, name: str) -> Weights:
    """The weights of what `read_file` gave.

    Args:
        saved: a checkpoint or a state dict, in any of the layouts that docs/MODEL_ZOO.md names.
        model_state: names and values of the model that the weights are for; a backbone's own names
            depend on it. Empty, if there is no model: then a backbone goes under an FPN.
        name: of the file, for messages.

    Raises:
        ValueError: no weights are found, some are no plain tensors of finite numbers, or some of
            an OpenMMLab checkpoint are none of K-Net's.
    """
    try:
        weights = _recognise(saved, model_state)
        _require_finite(weights.state)
        _require_same_types(weights.state, model_state)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return weights


def _recognise(saved: Any, model_state: Mapping[str, Tensor]) -> Weights:
    entry, values = _find_state(saved)
    weights = Weights(_strip({_name(k): _tensor(k, value) for k, value in values.items()}))
    weights.leave_out("attention masks and indices", is_derived)
    # Caffe2 keeps the optimiser's state beside the weights
    weights.leave_out("momentum", lambda name: name.endswith("_momentum"))
    rest = {} if entry is None else {k: v for k, v in saved.items() if k != entry}
    _use_our_names(weights, entry, rest, model_state)
    if model_state:  # a batch norm that the model froze has no counter
        counter = ".num_batches_tracked"
        weights.leave_out(
            counter[1:], lambda name: name.endswith(counter) and name not in model_state
        )
    return weights


def _use_our_names(
    weights: Weights, entry: str | None, rest: dict[str, Any], model_state: Mapping[str, Tensor]
) -> None:
    state = weights.state
    bare_caffe2 = entry is None and any(_CAFFE2.match(name) for name in state)
    # OpenMMLab's backbones share some of our names, but less than half
    known = [n for n in state if n in model_state or n.startswith("backbone.bottom_up.")]
    if any(name.startswith(_PUBLISHED) for name in state):
        semantic = any(name.startswith("decode_head.") for name in state)
        task = "semantic" if semantic else "instance or panoptic"
        weights.kind = f"OpenMMLab {task} K-Net checkpoint"
        weights.state = _import_published(state)
        weights.classes = ClassNames.from_openmmlab(rest.get("meta"))
    elif (
        rest.get("matching_heuristics") is True or entry in ("blobs", "model_state") or bare_caffe2
    ):
        author = rest.get("__author__")
        caffe2 = bare_caffe2 or entry == "blobs" or (isinstance(author, str) and author == "Caffe2")
        weights.kind = "Caffe2 weights" if caffe2 else "Detectron2 weights"
        weights.heuristics = True
        _align(weights, model_state, caffe2)
    elif any(name.startswith("heads.") for name in state):
        weights.kind = "K-Net checkpoint" if "trainer" in rest else "K-Net weights"
        weights.classes = ClassNames.from_dict(rest.get("classes"))
        weights.rest = rest
    elif 2 * len(known) <= len(state):
        weights.kind, weights.state = import_backbone(state, model_state, weights.left_out)


def _find_state(saved: Any) -> tuple[str | None, Mapping[str, Any]]:
    if isinstance(saved, Mapping):
        for entry in _STATES:
            if isinstance(saved.get(entry), Mapping) and saved[entry]:
                return entry, saved[entry]
        if saved and all(isinstance(value, (Tensor, np.ndarray)) for value in saved.values()):
            return None, saved
        keys = ", ".join(repr(key)[:60] for key in list(saved)[:5])
        found = f"a dict of {keys}" if saved else "an empty dict"
    else:
        found = f"a {type(saved).__name__}"
    raise ValueError(f"no weights found: the file holds {found}, not names and tensors")


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(
            f"no weights found: the name {repr(name)[:60]} of one is a {type(name).__name__}, not "
            "text: save the model's state_dict"
        )
    return name


def _tensor(name: str, value: Any) -> Tensor:
    """A dense tensor of numbers on the CPU."""
    odd = ""
    if isinstance(value, np.ndarray):
        try:
            # native byte order, and no memory that cannot be written
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
        except TypeError:
            odd = f"an array of {value.dtype}"
    elif not isinstance(value, Tensor):
        raise ValueError(f"no weights found: {name} is a {type(value).__name__}, not a tensor")
    elif value.is_meta:
        odd = "a tensor without values (on the device meta)"
    elif value.layout is not torch.strided or value.is_nested:
        odd = f"a sparse or nested tensor ({value.layout})"
    if not odd and (value.is_quantized or value.dtype not in _NUMBERS):
        odd = f"of type {value.dtype}"
    if odd:
        raise ValueError(
            f"the weight {name} is {odd}: weights are dense tensors of real numbers. Save the "
            "model's state_dict as float32"
        )
    return value


def _require_finite(state: Mapping[str, Tensor]) -> None:
    broken = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(state)} weights are not finite (NaN or infinite), the first is "
            f"{broken[0]}: the training diverged or the file is damaged; take an earlier checkpoint"
        )


def _require_same_types(state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Whole numbers in place of others are quantised, or another weight's."""
    for name, ours in model_state.items():
        theirs = state.get(name, ours)
        if theirs.is_floating_point() != ours.is_floating_point():
            raise ValueError(
                f"the weight {name} is of type {theirs.dtype}, here it is {ours.dtype}: save the "
                "model's state_dict as float32"
            )


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return state


def _import_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        return import_published(state)
    except KeyError as error:
        names = error.args[0].rpartition("parameters ")[2].split(", ")
        raise ValueError(
            f"an OpenMMLab checkpoint, but not of K-Net: {len(names)} of {len(state)} weights "
            f"have no counterpart here, such as {', '.join(names[:3])}. Published K-Net models, "
            "and backbones alone, can be loaded"
        ) from error


def _align(weights: Weights, model_state: Mapping[str, Tensor], caffe2: bool) -> None:
    """Match names with a model's, if there is one."""
    if not model_state:
        return
    try:
        weights.state = align_and_update_state_dicts(
            dict(model_state), weights.state, c2_conversion=caffe2
        )
    except Exception as error:  # the heuristics take odd names and shapes for granted
        raise ValueError(
            f"{weights.kind} that cannot be matched with the model ({error}): copy or download "
            "the file again"
        ) from error


def import_backbone(
    state: Mapping[str, Tensor], model_state: Mapping[str, Tensor], left_out: Counter[str]
) -> tuple[str, dict[str, Tensor]]:
    """Rename a backbone's weights, as torchvision, OpenMMLab, the Swin authors, timm or
    EfficientNet-PyTorch name them.

    Args:
        state: names and values, perhaps with OpenMMLab's prefix `backbone.` and a classifier.
        model_state: of the model, see `recognise`.
        left_out: counts the values that are not taken; changed in place.

    Returns:
        The kind in words, our names and values.

    Raises:
        ValueError: no kind of backbone that is known here, or of another EfficientNet than the
            model's.
    """
    renamed: dict[str, Tensor] | None
    theirs = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    efficientnet = "_conv_stem.weight" in state
    classifiers = _EFFICIENTNET_CLASSIFIERS if efficientnet else _CLASSIFIERS
    body = {
        name[len(theirs) :]: value
        for name, value in state.items()
        if name.startswith(theirs) and not name.startswith(classifiers)
    }
    left_out["classifier"] += len(state) - len(body)
    under_fpn = not model_state or any(n.startswith("backbone.bottom_up.") for n in model_state)
    prefix = "backbone.bottom_up." if under_fpn else "backbone."
    in_timm = {n: v for n, v in model_state.items() if n.startswith(f"{prefix}model.")}
    if efficientnet:
        renamed = import_efficientnet(body, in_timm)
        left_out["layers behind the last map"] += len(body) - len(renamed)
        return "EfficientNet weights", renamed
    if in_timm:
        renamed, resampled = fit_patches(_import_timm(body, in_timm, f"{prefix}model."), in_timm)
        # a vision transformer's, of one pooled token
        pooled = tuple(f"{prefix}model.{part}." for part in ("fc_norm", "attn_pool"))
        for name in [n for n in renamed if n.startswith(pooled) and n not in in_timm]:
            del renamed[name]
            left_out["layers behind the last map"] += 1
        how = f", resampled: {resampled}" if resampled else ""
        return f"weights for a timm backbone{how}", renamed
    try:
        if "stem.0.weight" in body:
            kind, renamed = "ResNet-V1c weights", rename(body, RESNET_V1C_RULES)
        elif "stem.conv1.weight" in body and "res2.0.conv1.weight" in body:
            kind, renamed = "Detectron2 backbone weights", body
        elif "conv1.weight" in body and "layer1.0.conv1.weight" in body:
            kind = "torchvision ResNet weights"
            renamed = rename(body, {**DEFORM_RULES, **TORCHVISION_RULES})
        else:
            kind, renamed = "Swin weights", import_swin(body)
            if renamed is not None:  # the classifier's norm, which no map of ours uses
                left_out["classifier"] += len({"norm.weight", "norm.bias"} & set(body))
    except KeyError as error:
        raise ValueError(f"a backbone, but {error.args[0][:300]}") from error
    if renamed is None:
        raise ValueError(
            f"weights of no kind that is known here, with names such as "
            f"{', '.join(list(body)[:4])}: known are K-Net models, Detectron2's models, and "
            "backbones as torchvision, OpenMMLab, the Swin authors, timm and EfficientNet-PyTorch "
            "name them"
        )
    return kind, {prefix + name: value for name, value in renamed.items()}


def _import_timm(
    state: Mapping[str, Tensor], model_names: Collection[str], prefix: str
) -> dict[str, Tensor]:
    """Names of a timm model -> those of its feature extractor within ours.

    An extractor joins some parts of a name with underscores, and one that works with hooks wraps
    the model once more. What it lacks keeps its name behind the prefix, so that it is reported.
    """
    ours = {
        name[len(prefix) :].removeprefix("model.").replace(".", "_"): name for name in model_names
    }
    return {ours.get(name.replace(".", "_"), prefix + name): v for name, v in state.items()}
