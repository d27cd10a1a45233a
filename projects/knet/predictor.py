"""Images in, results out: the door for people who want to use a model, not to train one.

    predictor = KNetPredictor.from_pretrained("folder")
    results = predictor("photo.jpg")
    id_map, segments = results["panoptic_seg"]

A folder holds `model.safetensors`, `config.yaml` and `classes.json`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.class_names import ClassNames
from knet.checkpoint.write_file import write_weights
from knet.config import get_cfg_from_file
from knet.data import register_custom
from knet.data.augmentation import build_knet_augmentation
from knet.data.registration.builtin import register_builtin
from knet.files import write_text
from knet.modeling.build import is_semantic
from knet.modeling.class_choice import find_classes
from knet.modeling.classes import class_ids_from_config, class_names
from knet.modeling.test_time_augmentation import KNetWithTTA
from knet.saved_classes import read_classes, write_classes

Picture = Union[str, "os.PathLike[str]", np.ndarray, Image.Image]

_WEIGHTS, _CONFIG, _CLASSES = "model.safetensors", "config.yaml", "classes.json"


class KNetPredictor:
    """A model with its config and class names.

    Args:
        cfg: the config; its device is the model's.
        model: built from it, with weights.
        metadata: class names, as Detectron2's data sets have them.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, metadata: Metadata) -> None:
        self.cfg = cfg
        self.metadata = metadata
        self._plain = model.eval()
        self.model = KNetWithTTA(cfg, model).eval() if cfg.TEST.AUG.ENABLED else self._plain
        self._resize = T.AugmentationList(
            [] if cfg.TEST.AUG.ENABLED else build_knet_augmentation(cfg, is_train=False)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> KNetPredictor:
        """The model of a config (see `knet.config.get_cfg_from_file`) with its MODEL.WEIGHTS.

        Class names are those of the first data set in DATASETS.TEST or TRAIN.
        """
        register_builtin([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        register_custom(cfg)
        names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        if not names:
            raise ValueError("DATASETS names no data set, whose class names a predictor needs")
        model = build_model(cfg)
        KNetCheckpointer.from_config(cfg, model, strict=True).load(cfg.MODEL.WEIGHTS)
        return cls(cfg, model, MetadataCatalog.get(names[0]))

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        device: str | None = None,
        revision: str | None = None,
        opts: tuple[Any, ...] = (),
    ) -> KNetPredictor:
        """Load what `save_pretrained` wrote.

        Args:
            path_or_hub_id: a folder, or `owner/name` of a model on the Hugging Face Hub, which is
                downloaded once (needs `pip install huggingface_hub`).
            device: where to run; a GPU if there is one by default.
            revision: of a model on the Hub.
            opts: config keys and values, `("MODEL.KNET.TEST.CLASSES", ["person"])`.

        Raises:
            FileNotFoundError: no such folder, or a file is missing in it.
            ValueError: the weights do not fit the config, or classes.json is broken.
        """
        folder = _folder(path_or_hub_id, revision)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        cfg = get_cfg_from_file(
            str(folder / _CONFIG),
            [
                *("MODEL.DEVICE", device, "MODEL.WEIGHTS", str(folder / _WEIGHTS)),
                # what a downloaded config may not decide
                *("MODEL.KNET.UNSAFE_WEIGHTS", False, "MODEL.TIMM.PRETRAINED", False),
                *opts,
            ],
        )
        metadata = read_classes(folder / _CLASSES, name=str(path_or_hub_id))
        model = build_model(_with_labels(cfg, metadata))
        KNetCheckpointer.from_config(cfg, model, strict=True).load(cfg.MODEL.WEIGHTS)
        return cls(cfg, model, metadata)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write weights, config and class names into a folder, which is made if need be.

        `huggingface_hub.upload_folder` puts it on the Hub.
        """
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        ids = class_ids_from_config(self.cfg, semantic=is_semantic(self.cfg))
        classes = ClassNames.from_metadata(self.metadata, ids)
        write_weights(out / _WEIGHTS, self._plain.state_dict(), classes=classes)
        cfg = self.cfg.clone()
        cfg.defrost()
        # the folder stands by itself: no data set, no path
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
        cfg.DATASETS.CUSTOM = []
        cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", "output"
        cfg.MODEL.KNET.UNSAFE_WEIGHTS = cfg.MODEL.TIMM.PRETRAINED = False
        cfg.MODEL.KNET.NUM_THING_CLASSES = len(ids.things)
        cfg.MODEL.KNET.NUM_STUFF_CLASSES = len(ids.stuff)
        cfg.MODEL.KNET.THING_IDS = list(ids.things)
        write_text(out / _CONFIG, cfg.dump())
        write_classes(out / _CLASSES, self.metadata)

    @torch.no_grad()
    def __call__(self, image: Picture) -> dict[str, Any]:
        """Results of one image at its own size.

        Args:
            image: a file, an (H, W, 3) uint8 array in RGB order, or a PIL image. Files and PIL
                images are turned upright as their EXIF data say.

        Returns:
            `instances`, `panoptic_seg` and `sem_seg` of Detectron2, those that the model gives
            (see `KNet.forward`).

        Raises:
            FileNotFoundError, ValueError: naming what is not a picture.
        """
        return self.model([self.prepare(image)])[0]

    def prepare(self, image: Picture) -> dict[str, Any]:
        """The model's input of one image (see `KNet.forward`); arguments and errors as above."""
        pixels = _read(image)
        height, width = pixels.shape[:2]
        if self.cfg.INPUT.FORMAT == "BGR":
            pixels = pixels[..., ::-1]
        augmented = T.AugInput(np.ascontiguousarray(pixels))
        self._resize(augmented)
        tensor = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}


def _with_labels(cfg: CfgNode, metadata: Metadata) -> CfgNode:
    """The config with labels for the names of classes that it chooses, as no data set has them."""
    ids = class_ids_from_config(cfg, semantic=is_semantic(cfg))
    chosen = find_classes(cfg.MODEL.KNET.TEST.CLASSES, ids, class_names(metadata, ids)) or ()
    cfg = cfg.clone()
    cfg.MODEL.KNET.TEST.CLASSES = [[*ids.things, *ids.stuff][row] for row in chosen]
    return cfg


def _folder(path_or_hub_id: str | os.PathLike[str], revision: str | None) -> Path:
    folder = Path(path_or_hub_id)
    if not folder.is_dir():
        name = str(path_or_hub_id)
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise FileNotFoundError(f"{name} is no folder, and no `owner/name` of a model")
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise ImportError(
                f"{name} is no folder; to download it from the Hugging Face Hub: "
                "pip install huggingface_hub"
            ) from error
        try:
            files = [_WEIGHTS, _CONFIG, _CLASSES]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
        except Exception as error:  # the library has many kinds; each is passed on
            raise FileNotFoundError(
                f"{name} is no folder here, and could not be fetched from the Hugging Face Hub: "
                f"{error}"
            ) from error
    missing = [file for file in (_WEIGHTS, _CONFIG, _CLASSES) if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: no {', '.join(missing)}; KNetPredictor.save_pretrained writes them"
        )
    return folder


def _read(image: Picture) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"an image must be an (H, W, 3) uint8 array, not {image.shape} {image.dtype}"
            )
        return image
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if "://" in os.fspath(image):
        raise ValueError(f"{image}: an image is a local file; download it first")
    try:
        with Image.open(image) as opened:
            return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(f"{image} cannot be read as a picture") from error
