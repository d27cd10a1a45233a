"""What a program needs to know to feed an exported graph and to name its results."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata

import knet
from knet.classes import ClassIds, class_ids_from_config
from knet.modeling.build import is_semantic
from knet.visualization import with_colors

# the key in ONNX files and the file name in torch.export archives
METADATA_KEY = "knet"

_FORMAT = 1


def describe(
    cfg: CfgNode,
    metadata: Metadata,
    *,
    size_divisibility: int,
    raw: bool,
    precision: str,
    input_dtype: str,
    takes_picture: bool = False,
) -> dict[str, Any]:
    """The description that travels within an exported file, ready for JSON.

    Args:
        cfg: the model's config.
        metadata: class names and colours of its data set.
        size_divisibility: to a multiple of which the graph pads.
        raw, precision, input_dtype: what was exported.
        takes_picture: whether the graph resizes, see `knet.export.picture_graph`.
    """
    bgr = cfg.INPUT.FORMAT == "BGR"
    mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    semantic = is_semantic(cfg)
    test = cfg.MODEL.KNET.TEST
    results = {
        "panoptic": test.PANOPTIC_ON,
        "instance": test.INSTANCE_ON,
        "semantic": test.SEMANTIC_ON,
    }
    return {
        "format": _FORMAT,
        "producer": f"knet {knet.__version__}",
        "results": ["raw"] if raw else [name for name, wanted in results.items() if wanted],
        "precision": precision,
        "input": {
            "name": "picture" if takes_picture else "image",
            "dtype": input_dtype,
            "layout": "HWC" if takes_picture else "NCHW",
            # L: one channel, as Pillow's convert("L") makes it of a picture before it is resized
            "channel_order": "L" if cfg.INPUT.FORMAT == "L" and not takes_picture else "RGB",
            "range": [0, 255],
            # percent, of Pillow's autocontrast with preserve_tone, before the resize
            "contrast_cutoff": float(cfg.INPUT.CONTRAST_CUTOFF),
            "resize": {
                "method": "Pillow bilinear",
                "short_side": cfg.INPUT.MIN_SIZE_TEST,
                "max_long_side": cfg.INPUT.MAX_SIZE_TEST,
            },
            "least_size": size_divisibility + 1,
            "size_divisibility": size_divisibility,
            "pixel_mean": mean[::-1] if bgr else mean,
            "pixel_std": std[::-1] if bgr else std,
            "note": "the graph resizes, normalises and pads: feed a whole picture"
            if takes_picture
            else "the graph normalises and pads: feed pixels of 0 to 255",
        },
        "output_size": {
            "name": None if raw or takes_picture else "output_size",
            "dtype": "int64",
            "order": ["height", "width"],
            "note": "masks, maps and boxes come at the picture's size"
            if takes_picture
            else "masks, maps and boxes come at this size, usually that of the original image",
        },
        "thresholds": {}
        if semantic or raw
        else {
            "instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "instance_score": test.SCORE_THRESH,
            "mask": test.MASK_THRESH,
            "mask_scores": test.MASK_SCORES,
            "panoptic_mask_scores": float(test.PANOPTIC_MASK_SCORES),
            "panoptic_thing_score": test.THING_THRESH,
            "panoptic_stuff_score": test.STUFF_THRESH,
            "panoptic_overlap": test.OVERLAP_THRESH,
            "min_area": test.MIN_AREA,
            "classes": list(test.CLASSES),
        },
        "void_id": 0,
        "classes": _classes(metadata, class_ids_from_config(cfg, semantic=semantic)),
    }


def _classes(metadata: Metadata, ids: ClassIds) -> list[dict[str, Any]]:
    """One entry a class, in the order of the model's rows: things first."""
    colored = with_colors(metadata)
    entries = []
    for kind, labels in (("thing", ids.things), ("stuff", ids.stuff)):
        names = colored.get(f"{kind}_classes") or []
        colors = colored.get(f"{kind}_colors") or []
        mapping = colored.get(f"{kind}_dataset_id_to_contiguous_id") or {}
        dataset_ids = {contiguous: dataset for dataset, contiguous in mapping.items()}
        for label in labels:
            known = label < len(names)
            entries.append(
                {
                    "id": label,
                    "name": names[label] if known else f"class {label}",
                    "isthing": kind == "thing",
                    "color": [int(c) for c in colors[label]] if known else [128, 128, 128],
                    "dataset_id": int(dataset_ids.get(label, label)),
                }
            )
    return entries
