"""What kind of weights a file holds, seen from its content, and the weights in our names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knet.checkpoint.backbone_weights import import_backbone
from knet.checkpoint.class_names import ClassNames
from knet.checkpoint.published_names import import_published, is_derived

# entries of a saved dict that hold names and values, the likeliest first
_STATES = ("model", "state_dict", "model_state", "blobs")
# ImageNet models of Caffe2 have no entry of their own
_CAFFE2 = re.compile(r"conv1_[wb]$|res\d_\d+_branch")
_PREFIXES = ("module.", "_orig_mod.")  # of models wrapped for several GPUs, or compiled
_NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool}
_NUMBERS |= {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_PUBLISHED = ("decode_head.", "auxiliary_head.", "rpn_head.", "roi_head.", "neck.")


@dataclass
class Weights:
    """Weights of a file.

    Attributes:
        kind: of file and model, in words.
        state: names and values; ours, unless `heuristics`.
        classes: names of the classes, if the file has them.
        left_out: how many values were not taken, by the reason.
        rest: what else the file holds, such as the state of a training.
        heuristics: names are Detectron2's of some version, to be matched with its heuristics.
        caffe2: they are Caffe2's.
    """

    kind: str
    state: dict[str, Tensor]
    classes: ClassNames | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    rest: dict[str, Any] = field(default_factory=dict)
    heuristics: bool = False
    caffe2: bool = False


def recognise(saved: Any, model_names: Collection[str]) -> Weights:
    """The weights of what `read_file` gave.

    Args:
        saved: a checkpoint or a state dict, in any of the layouts that the README names.
        model_names: names in the state dict of the model that the weights are for; a backbone's
            own names depend on them. Empty, if there is no model: then a backbone goes under an
            FPN.

    Raises:
        ValueError: no weights are found, some are no plain tensors of numbers, or some of an
            OpenMMLab checkpoint are none of K-Net's.
    """
    entry, values = _find_state(saved)
    state = _strip({_name(name): _tensor(name, value) for name, value in values.items()})
    rest = {} if entry is None else {k: v for k, v in saved.items() if k != entry}
    left_out: Counter[str] = Counter()
    state = _without_derived(state, left_out)
    if any(name.startswith(_PUBLISHED) for name in state):
        return Weights(
            f"OpenMMLab {_published_task(state)} checkpoint",
            _import_published(state),
            ClassNames.from_openmmlab(rest.get("meta")),
            left_out,
        )
    bare_caffe2 = entry is None and any(_CAFFE2.match(name) for name in state)
    heuristics = rest.get("matching_heuristics") is True
    if heuristics or entry in ("blobs", "model_state") or bare_caffe2:
        author = rest.get("__author__")
        caffe2 = bare_caffe2 or entry == "blobs" or (isinstance(author, str) and author == "Caffe2")
        kind = "Caffe2 weights" if caffe2 else "Detectron2 weights"
        return Weights(kind, state, None, left_out, {}, heuristics=True, caffe2=caffe2)
    if any(name.startswith("heads.") for name in state):
        kind = "K-Net checkpoint" if "trainer" in rest else "K-Net weights"
        return Weights(kind, state, ClassNames.from_dict(rest.get("classes")), left_out, rest)
    # more than half: OpenMMLab's backbones share some of our names
    known = sum(name in model_names or name.startswith("backbone.bottom_up.") for name in state)
    if 2 * known > len(state):
        return Weights("Detectron2 weights", state, None, left_out)
    kind, state = import_backbone(state, model_names, left_out)
    return Weights(kind, state, None, left_out)


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


def _tensor(name: Any, value: Any) -> Tensor:
    """A dense tensor of numbers on the CPU."""
    if isinstance(value, np.ndarray):
        try:
            # native byte order, and no memory that cannot be written
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
        except TypeError as error:
            raise _odd(name, f"an array of {value.dtype}") from error
    if not isinstance(value, Tensor):
        raise ValueError(f"no weights found: {name} is a {type(value).__name__}, not a tensor")
    if value.is_meta:
        raise _odd(name, "a tensor without values (on the device meta)")
    if value.layout is not torch.strided or value.is_nested:
        raise _odd(name, f"a sparse or nested tensor ({value.layout})")
    if value.is_quantized or value.dtype not in _NUMBERS:
        raise _odd(name, f"of type {value.dtype}")
    return value


def _odd(name: str, what: str) -> ValueError:
    return ValueError(
        f"the weight {name} is {what}: weights are dense tensors of real numbers. Save the model's "
        "state_dict as float32"
    )


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return state


def leave_out_counters(weights: Weights, model_names: Collection[str]) -> None:
    """Drop the counters of batch norms that the model froze, in place: only its others have one."""
    counters = [
        name
        for name in weights.state
        if name.endswith(".num_batches_tracked") and name not in model_names
    ]
    for name in counters:
        del weights.state[name]
    weights.left_out["num_batches_tracked"] += len(counters)


def _without_derived(state: Mapping[str, Tensor], left_out: Counter[str]) -> dict[str, Tensor]:
    kept = {}
    for name, value in state.items():
        if is_derived(name):
            left_out["attention masks and indices"] += 1
        elif name.endswith("_momentum"):  # Caffe2 keeps the optimiser's state beside the weights
            left_out["momentum"] += 1
        else:
            kept[name] = value
    return kept


def _published_task(state: Mapping[str, Tensor]) -> str:
    if any(name.startswith("decode_head.") for name in state):
        return "semantic K-Net"
    return "instance or panoptic K-Net"


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
