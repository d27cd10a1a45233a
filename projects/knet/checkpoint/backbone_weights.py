"""Weights of a backbone alone, as torchvision, OpenMMLab, the Swin authors or timm name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from torch import Tensor

from knet.checkpoint.backbone_names import (
    DEFORM_RULES,
    TORCHVISION_RULES,
    import_swin,
    rename,
)
from knet.checkpoint.published_names import RESNET_V1C_RULES

_CLASSIFIERS = ("fc.", "head.", "head_dist.", "classifier.", "last_linear.")


def import_backbone(
    state: Mapping[str, Tensor], model_names: Collection[str], left_out: Counter[str]
) -> tuple[str, dict[str, Tensor]]:
    """Rename a backbone's weights to those of our model.

    Args:
        state: names and values, perhaps with OpenMMLab's prefix `backbone.`.
        model_names: names in the model's state dict, see `recognise`.
        left_out: counts the values that are not taken; changed in place.

    Returns:
        The kind in words, our names and values.

    Raises:
        ValueError: no kind of backbone that is known here.
    """
    state = _body(state, left_out)
    under_fpn = not model_names or any(n.startswith("backbone.bottom_up.") for n in model_names)
    prefix = "backbone.bottom_up." if under_fpn else "backbone."
    if any(name.startswith(f"{prefix}model.") for name in model_names):
        return "weights for a timm backbone", _import_timm(state, model_names, f"{prefix}model.")
    try:
        kind, renamed = _import_known(state, left_out)
    except KeyError as error:
        raise ValueError(f"a backbone, but {error.args[0][:300]}") from error
    if renamed is None:
        raise ValueError(
            f"weights of no kind that is known here, with names such as "
            f"{', '.join(list(state)[:4])}: known are K-Net models, Detectron2's models, and "
            "backbones as torchvision, OpenMMLab, the Swin authors and timm name them"
        )
    return kind, {prefix + name: value for name, value in renamed.items()}


def _body(state: Mapping[str, Tensor], left_out: Counter[str]) -> dict[str, Tensor]:
    """Without the classifier and the prefix of OpenMMLab's classification models."""
    prefix = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    body = {}
    for name, value in state.items():
        if name.startswith(_CLASSIFIERS) or not name.startswith(prefix):
            left_out["classifier"] += 1
        else:
            body[name[len(prefix) :]] = value
    return body


def _import_known(
    state: Mapping[str, Tensor], left_out: Counter[str]
) -> tuple[str, dict[str, Tensor] | None]:
    if "stem.0.weight" in state:
        return "ResNet-V1c weights", rename(state, RESNET_V1C_RULES)
    if "stem.conv1.weight" in state and "res2.0.conv1.weight" in state:
        return "Detectron2 backbone weights", dict(state)
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return "torchvision ResNet weights", rename(state, {**DEFORM_RULES, **TORCHVISION_RULES})
    last_norm = {"norm.weight", "norm.bias"} & set(state)
    renamed = import_swin(state)
    if renamed is not None:
        left_out["classifier"] += len(last_norm)  # its norm, which no map of ours uses
    return "Swin weights", renamed


def _flat(name: str) -> str:
    """timm's feature extractors join some parts of a name with underscores."""
    return name.replace(".", "_")


def _import_timm(
    state: Mapping[str, Tensor], model_names: Collection[str], prefix: str
) -> dict[str, Tensor]:
    """Names of a timm model -> those of its feature extractor within ours.

    What the extractor lacks keeps its name behind the prefix, so that it is reported.
    """
    ours = {}
    for name in model_names:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            # extractors that work with hooks wrap the model once more
            ours[_flat(rest[len("model.") :] if rest.startswith("model.") else rest)] = name
    return {ours.get(_flat(name), prefix + name): value for name, value in state.items()}
