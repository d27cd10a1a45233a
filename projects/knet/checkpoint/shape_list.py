"""Comparing a model with a published list of names and shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Comparison:
    """A published list beside a model.

    Attributes:
        missing: published names that the model lacks.
        unexpected: our names that the list lacks.
        mismatched: name, published shape and ours, where these differ.
        theirs, ours: total parameters.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    theirs: int
    ours: int

    @property
    def equal(self) -> bool:
        """Nothing differs."""
        return not (self.missing or self.unexpected or self.mismatched) and self.theirs == self.ours

    def __str__(self) -> str:
        lines = []
        for kind, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            lines.append(f"{kind}: {len(names)}")
            lines += [f"  {name}" for name in names[:20]]
            lines += [f"  … and {len(names) - 20} more"] if len(names) > 20 else []
        lines.append(f"mismatched: {len(self.mismatched)}")
        lines += [f"  {n}: published {a}, ours {b}" for n, a, b in self.mismatched[:20]]
        lines.append(f"parameters: published {self.theirs:,}, ours {self.ours:,}")
        return "\n".join(lines)


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


def compare(model: nn.Module, shapes: Shapes) -> Comparison:
    """Set the parameters of a model against a published list.

    A round's feature transform may be (C, C) here and (C, C, 1, 1) there. Scale and shift of
    frozen batch norms are parameters there and may be buffers here; they count.
    """
    semantic = any(name.startswith("decode_head.") for name in shapes)
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    counters = (".running_mean", ".running_var", ".num_batches_tracked")
    ours = {name: shape for name, shape in state.items() if not name.endswith(counters)}
    missing, mismatched, seen = [], [], set()
    for published, listed in shapes.items():
        name = to_our_name(published, semantic=semantic)
        if name is None or name not in ours:
            missing.append(published)
            continue
        seen.add(name)
        theirs = tuple(listed)
        if theirs[2:] == (1, 1) and published.endswith("feat_transform.conv.weight"):
            theirs = theirs[:2]
        if theirs != ours[name]:
            mismatched.append((published, tuple(listed), ours[name]))
    return Comparison(
        missing,
        sorted(set(ours) - seen),
        mismatched,
        sum(math.prod(shape) for shape in shapes.values()),
        sum(math.prod(shape) for shape in ours.values()),
    )
