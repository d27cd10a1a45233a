"""What the ablation compares: data sets with a recipe each, and ideas that are added or left out.

The recipe of the scenes is the published K-Net, made small. That of nuclei and photographs holds
several ideas already, without which so short a training finds next to nothing: those are left out
one by one, the others added. What training from scratch or with few steps needs anyway (a quarter
of the width, class prior, spread of initial convolutions, rates) belongs to all, see the comments
in configs/shapes and configs/lite.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from knet.data.images import open_image
from knet.data.panoptic_png import write_panoptic_png
from knet.data.register import datasets_root
from knet.files import read_text, write_json

Opts = Mapping[str, Any]

SCENES, NUCLEI, PHOTOS = "scenes", "nuclei", "photos"
SCORES = {SCENES: "panoptic_seg/PQ", NUCLEI: "segm/AP", PHOTOS: "panoptic_seg/PQ"}
# of today's recipe in a training: about six minutes on one core
STEPS = {SCENES: 1600, NUCLEI: 320, PHOTOS: 850}
_LEAST_SHARE = 0.1  # of the training photographs, which show a class that is kept


@dataclass(frozen=True)
class Variant:
    """An idea, or several, as config keys on top of a recipe.

    Attributes:
        name: of its rows.
        source: where the idea comes from.
        opts: keys and values on every data set.
        on: further ones by data set.
        data: the data sets on which it is trained.
        trained_as: the variant whose training it shares, as its keys act at test time alone.
        what: in words, what the keys do, for the page.
        configs: config files by data set that take the place of its recipe; the data set and the
            sizes of its pictures stay.
    """

    name: str
    source: str
    what: str
    opts: Opts = field(default_factory=dict)
    on: Mapping[str, Opts] = field(default_factory=dict)
    data: tuple[str, ...] = (SCENES, NUCLEI, PHOTOS)
    trained_as: str | None = None
    configs: Mapping[str, str] = field(default_factory=dict)

    def keys(self, data: str) -> dict[str, Any]:
        """All its keys on a data set."""
        return {**self.opts, **self.on.get(data, {})}


def _knet(**keys: Any) -> dict[str, Any]:
    return {f"MODEL.KNET.{key}": value for key, value in keys.items()}


def _sizes(side: int, train: tuple[int, int], longest: int) -> dict[str, Any]:
    """Crops and, at test, shorter sides of `side` pixels; in training the latter are `train`."""
    return {
        "INPUT.MIN_SIZE_TRAIN": train,
        "INPUT.MAX_SIZE_TRAIN": longest,
        "INPUT.CROP.SIZE": (side, side),
        "INPUT.MIN_SIZE_TEST": side,
        "INPUT.MAX_SIZE_TEST": longest,
    }


_PQ_ALONE = {"MODEL.KNET.TEST.INSTANCE_ON": False, "MODEL.KNET.TEST.SEMANTIC_ON": False}
_TODAY: dict[str, tuple[str, dict[str, Any]]] = {
    SCENES: ("configs/shapes/panoptic.yaml", _PQ_ALONE),
    NUCLEI: (
        "configs/lite/instance.yaml",
        # 99 in 100 pictures hold fewer objects than these kernels
        {**_knet(NUM_KERNELS=300), **_sizes(256, (224, 288), 384), "INPUT.CONTRAST_CUTOFF": 0.5},
    ),
    PHOTOS: (
        "configs/lite/panoptic.yaml",
        {**_PQ_ALONE, **_knet(NUM_KERNELS=40), **_sizes(192, (176, 224), 320)},
    ),
}
_LITE = (NUCLEI, PHOTOS)  # whose recipe holds some of the ideas already
_LEARNED = {**_knet(KERNEL_PEAKS=False), "MODEL.KNET.TEST.NUM_KERNELS": 0}
_COARSE = _knet(MASK_LEVEL=1, MASK_UPSAMPLE=2)
_NEW_MASKS = _knet(RESIDUAL_MASKS=False)
_CLASS_SCORES = {"MODEL.KNET.TEST.MASK_SCORES": False}

_CROP = {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute", "INPUT.CROP.SIZE": (96, 96)}

BASE = "today"
VARIANTS = (
    Variant(BASE, "", "the recipe of configs/shapes or configs/lite"),
    Variant(
        "published parts",
        "Zhang et al., NeurIPS 2021",
        "learned kernels, masks at the second level's stride, made anew in every round",
        {**_LEARNED, **_COARSE, **_NEW_MASKS, **_CLASS_SCORES},
        data=_LITE,
    ),
    Variant(
        "no peaks", "CenterNet, SparseInst, FastInst", "learned kernels", _LEARNED, data=_LITE
    ),
    Variant("places instead of peaks", "here", "learned kernels start on places of their own",
            {**_LEARNED, **_knet(KERNEL_PLACES=True)}, data=_LITE),
    Variant("no residual masks", "here", "rounds make masks anew", _NEW_MASKS, data=_LITE),
    Variant("coarse masks", "as published", "masks at stride 8, losses at 4", _COARSE, data=_LITE),
    Variant("class scores", "as published", "instances are ranked by their class alone",
            _CLASS_SCORES, data=(NUCLEI,), trained_as=BASE),
    Variant("peaks", "CenterNet, SparseInst, FastInst",
            "kernels start at peaks of a map of object centres", _knet(KERNEL_PEAKS=True),
            data=(SCENES,)),
    Variant("places", "here", "kernels start on places of their own", _knet(KERNEL_PLACES=True),
            data=(SCENES,)),
    Variant("residual masks", "here", "rounds add to the masks before",
            _knet(RESIDUAL_MASKS=True), data=(SCENES,)),
    Variant("fine masks", "common", "masks at stride 2, not 4",
            _knet(MASK_LEVEL=0, MASK_UPSAMPLE=1), data=(SCENES,)),
    Variant(
        "sampled points",
        "Mask2Former",
        "costs and mask losses at a quarter of the pixels, most of them where a mask is uncertain",
        on={
            SCENES: {"MODEL.KNET.LOSS.NUM_POINTS": 576},
            NUCLEI: {"MODEL.KNET.LOSS.NUM_POINTS": 1024},
            PHOTOS: {"MODEL.KNET.LOSS.NUM_POINTS": 576},
        },
    ),
    Variant("EMA", "Polyak; Mean Teacher", "averaged weights", {"SOLVER.EMA": 0.998}),
    Variant("six rounds", "Mask2Former", "six rounds, weights of their own", _knet(NUM_ROUNDS=6)),
    Variant("three rounds twice", "Mask2Former", "three rounds, gone through twice",
            _knet(ROUND_REPEATS=2)),
    Variant("levels in turn", "Mask2Former", "rounds gather from the three coarsest levels in turn",
            _knet(ROUND_LEVELS=["res5", "res4", "res3"])),
    Variant("mask pilots", "MP-Former", "noised objects are further kernels, in training alone",
            _knet(MASK_PILOTS=1)),
    Variant("one to many", "H-DETR", "further kernels, of which two find each object, in training",
            _knet(ONE_TO_MANY=2)),
    Variant("exclusive", "kMaX-DeepLab", "a pixel feeds the one kernel that claims it most",
            _knet(GROUPING="exclusive")),
    Variant("BiFPN", "EfficientDet", "a neck that fuses levels both ways",
            _knet(NECK="build_bifpn_neck")),
    Variant("quality in panoptic scores", "Panoptic SegFormer",
            "kernels compete by class score times mean probability inside the mask",
            {"MODEL.KNET.TEST.PANOPTIC_MASK_SCORES": 1.0}, data=(SCENES, PHOTOS),
            trained_as=BASE),
    Variant("the same, squared", "Panoptic SegFormer", "with the square of that probability",
            {"MODEL.KNET.TEST.PANOPTIC_MASK_SCORES": 2.0}, data=(SCENES, PHOTOS),
            trained_as=BASE),
    Variant("scale jitter", "Simple Copy-Paste", "pictures at half to twice the crop's size",
            {"INPUT.SCALE_JITTER": (0.5, 2.0)}, {SCENES: _CROP}),
    Variant("copy-paste", "Simple Copy-Paste", "half of the pictures receive objects of others",
            {"INPUT.COPY_PASTE": 0.5}),
    Variant(
        "plus",
        "",
        "the recipes of configs/plus",
        configs={
            SCENES: "configs/plus/shapes_panoptic.yaml",
            NUCLEI: "configs/plus/nuclei_instance.yaml",
            PHOTOS: "configs/plus/lite_panoptic.yaml",
        },
    ),
)  # fmt: skip


def find_variant(name: str) -> Variant:
    """The variant of this name; ValueError names those that there are."""
    for variant in VARIANTS:
        if variant.name == name:
            return variant
    raise ValueError(f"no variant {name!r}; there are {', '.join(v.name for v in VARIANTS)}")


def config_of(data: str, variant: Variant, folder: Path) -> tuple[str, list[Any]]:
    """Config file, and keys and values, of a variant on a data set, which is prepared if need be.

    Args:
        data: SCENES, NUCLEI or PHOTOS.
        variant: one of `VARIANTS`.
        folder: for data that have to be made.

    Raises:
        FileNotFoundError: the data are not below DETECTRON2_DATASETS.
    """
    config, today = _TODAY[data]
    config = variant.configs.get(data, config)
    return config, [
        part for pair in {**today, **_data_sets(data, folder), **variant.keys(data)}.items()
        for part in pair
    ]  # fmt: skip


def _data_sets(data: str, folder: Path) -> dict[str, Any]:
    if data == SCENES:
        return {}
    if data == NUCLEI:
        root = datasets_root() / "dsb2018_nuclei"
        entries = [
            {
                "NAME": f"nuclei_{part}",
                "FORMAT": "coco_instances",
                "IMAGE_ROOT": str(root / "images" / part),
                "JSON_FILE": str(root / "annotations" / f"instances_{part}.json"),
            }
            for part in ("train", "val")
        ]
    else:
        root = datasets_root() / "coco_panoptic200"
        made = frequent_classes(root / "annotations", folder / "photos")
        entries = [
            {
                "NAME": f"photographs_{part}",
                "FORMAT": "coco_panoptic",
                "IMAGE_ROOT": str(root / "images" / part),
                "PANOPTIC_ROOT": str(made / f"panoptic_{part}"),
                "PANOPTIC_JSON": str(made / f"panoptic_{part}.json"),
            }
            for part in ("train", "val")
        ]
    train, val = (entry["NAME"] for entry in entries)
    return {
        "DATASETS.CUSTOM": entries,
        "DATASETS.TRAIN": (train,),
        "DATASETS.TEST": (val,),
    }


def frequent_classes(annotations: Path, folder: Path, *, share: float = _LEAST_SHARE) -> Path:
    """COCO panoptic annotations of the classes that many training images show; the rest is void.

    Args:
        annotations: `panoptic_{train,val}.json` and folders of the same names.
        folder: gets the same files; nothing is done if it holds them.
        share: of the training images, which a class that is kept is seen in.

    Returns:
        The folder.
    """
    parts = {
        part: json.loads(read_text(annotations / f"panoptic_{part}.json"))
        for part in ("train", "val")
    }
    images = Counter(
        label
        for record in parts["train"]["annotations"]
        for label in {segment["category_id"] for segment in record["segments_info"]}
    )
    least = share * len(parts["train"]["annotations"])
    kept = {label for label, count in images.items() if count >= least}
    for part, content in parts.items():
        target = folder / f"panoptic_{part}.json"
        if target.exists():
            continue
        png = folder / f"panoptic_{part}"
        png.mkdir(parents=True, exist_ok=True)
        for record in content["annotations"]:
            segments = [s for s in record["segments_info"] if s["category_id"] in kept]
            with open_image(str(annotations / f"panoptic_{part}" / record["file_name"])) as image:
                rgb = np.asarray(image.convert("RGB"), np.uint32)
            ids = rgb[..., 0] + (rgb[..., 1] << 8) + (rgb[..., 2] << 16)
            known = np.isin(ids, [segment["id"] for segment in segments])
            write_panoptic_png(str(png / record["file_name"]), np.where(known, ids, 0))
            record["segments_info"] = segments
        # without segments an image says nothing
        content["annotations"] = [r for r in content["annotations"] if r["segments_info"]]
        shown = {record["image_id"] for record in content["annotations"]}
        content["images"] = [image for image in content["images"] if image["id"] in shown]
        content["categories"] = [c for c in content["categories"] if c["id"] in kept]
        write_json(target, content)
    return folder
