"""Comparing a model with a published list of names and shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn

from knet.checkpoint.published_names import to_our_name
from knet.files import read_text
from knet.modeling.build import is_semantic

Shapes = Mapping[str, Sequence[int]]

_CLASSIFIERS = (
    "decode_head.kernel_generate_head.conv_seg.weight",
    "rpn_head.conv_seg.weight",
    "roi_head.mask_head.0.fc_cls.weight",
    "heads.kernel_head.classifier.weight",
    "heads.kernel_head.seg_predictor.weight",
)


def read_shapes(path: str | Path) -> dict[str, list[int]]:
    """Names and shapes of a JSON file: its `parameters`, or all of it.

    Raises:
        ValueError: the file is no such list.
    """
    try:
        read: Any = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    shapes = read.get("parameters", read) if isinstance(read, dict) else None
    if not isinstance(shapes, dict) or not all(isinstance(s, list) for s in shapes.values()):
        raise ValueError(f"{path}: not a list of names and shapes (JSON with `parameters`)")
    return shapes


def with_classes_of(cfg: CfgNode, shapes: Shapes) -> CfgNode:
    """A config whose model can be built without its data sets.

    Where these are registered they give the classes, and so do MODEL.KNET.NUM_THING_CLASSES and
    NUM_STUFF_CLASSES; else the list does. It does not tell things from stuff, on which no shape
    depends.

    Args:
        cfg: the config.
        shapes: published names or ours, and shapes.

    Raises:
        ValueError: the list has no classifier.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if names and all(name in DatasetCatalog for name in names):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    knet = cfg.MODEL.KNET
    if min(knet.NUM_THING_CLASSES, knet.NUM_STUFF_CLASSES) < 0:
        counts = [shapes[name][0] for name in _CLASSIFIERS if name in shapes]
        if not counts:
            raise ValueError(
                f"the list has no classifier ({', '.join(_CLASSIFIERS)}): give "
                "MODEL.KNET.NUM_THING_CLASSES and NUM_STUFF_CLASSES"
            )
        semantic = is_semantic(cfg)
        knet.NUM_THING_CLASSES = 0 if semantic else counts[0]
        knet.NUM_STUFF_CLASSES = counts[0] if semantic else 0
    return cfg


def compare(model: nn.Module, shapes: Shapes) -> tuple[bool, str]:
    """Set the parameters of a model against a published list.

    A round's feature transform may be (C, C) here and (C, C, 1, 1) there. Scale and shift of
    frozen batch norms are parameters there and may be buffers here; they count.

    Returns:
        Whether all are equal, and what differs, in lines.
    """
    semantic = any(name.startswith("decode_head.") for name in shapes)
    counters = (".running_mean", ".running_var", ".num_batches_tracked")
    state = model.state_dict().items()
    ours = {name: list(value.shape) for name, value in state if not name.endswith(counters)}
    rest, missing, mismatched = dict(ours), [], []
    for published, shape in shapes.items():
        name = to_our_name(published, semantic=semantic)
        if name not in ours:
            missing.append(published)
            continue
        rest.pop(name, None)
        matrix = published.endswith("feat_transform.conv.weight") and list(shape[2:]) == [1, 1]
        if list(shape[:2] if matrix else shape) != ours[name]:
            mismatched.append(f"{published}: published {tuple(shape)}, ours {tuple(ours[name])}")
    lines = []
    for kind, found in (("missing", missing), ("unexpected", sorted(rest))):
        lines += [f"{kind}: {len(found)}", *(f"  {name}" for name in found[:20])]
        lines += [f"  … and {len(found) - 20} more"] if len(found) > 20 else []
    lines += [f"mismatched: {len(mismatched)}", *(f"  {line}" for line in mismatched[:20])]
    totals = [sum(math.prod(shape) for shape in side.values()) for side in (shapes, ours)]
    lines.append(f"parameters: published {totals[0]:,}, ours {totals[1]:,}")
    equal = not (missing or rest or mismatched) and totals[0] == totals[1]
    return equal, "\n".join(lines)
