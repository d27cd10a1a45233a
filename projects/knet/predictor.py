"""Images in, results out: the door for people who want to use a model, not to train one.

    predictor = KNetPredictor.from_pretrained("panoptic_r50_3x")  # or a folder
    results = predictor("photo.jpg")
    id_map, segments = results["panoptic_seg"]

The network runs once for results under several thresholds:

    prediction = predictor.predict("photo.jpg")
    results = predictor.results(prediction, score_threshold=0.5)

A folder holds `model.safetensors`, `config.yaml` and `classes.json`; its README.md is for people.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from knet.accel import accelerate_as_configured
from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.class_names import ClassNames
from knet.checkpoint.write_file import write_weights
from knet.classes import (
    Category,
    ClassIds,
    categories_of,
    class_ids_from_config,
    class_names,
    find_classes,
)
from knet.config import get_cfg_from_file, get_cfg_of_model
from knet.config_file import inference_kernels
from knet.data.augmentation import build_knet_augmentation
from knet.data.custom import register_data_sets
from knet.data.images import (
    in_format,
)
from knet.files import write_text
from knet.free_memory import free_memory
from knet.model_card import model_card
from knet.model_folder import (
    CARD,
    CLASSES,
    CONFIG,
    WEIGHTS,
    compare_files,
    file_digests,
    find_folder,
    read_classes,
    write_classes,
)
from knet.modeling.build import is_semantic
from knet.modeling.outputs import CarriedKernels
from knet.modeling.postprocess import InferenceOptions
from knet.modeling.predictions import MaskPredictions, PixelPredictions
from knet.pictures import Picture, read_any
from knet.tta import KNetWithTTA, PixelViews
from knet.zoo.models import MODELS

__all__ = ["KNetPredictor", "Prediction"]


@dataclass(frozen=True)
class Prediction:
    """What a model's network says of one image, out of which `KNetPredictor.results` makes results.

    Attributes:
        found: masks or logits on the network's grid.
        size: (H, W) of the image.
    """

    found: MaskPredictions | PixelPredictions | PixelViews
    size: tuple[int, int]


class ResultsTooLargeError(ValueError):
    """Results of a picture that the machine has no memory for."""


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
        self._plain = accelerate_as_configured(model.eval(), cfg)
        self.model = KNetWithTTA(cfg, model).eval() if cfg.TEST.AUG.ENABLED else self._plain
        prepare = build_knet_augmentation(cfg, is_train=False)
        # several views are made of the picture at its own size
        self._prepare = T.AugmentationList(prepare[:-1] if cfg.TEST.AUG.ENABLED else prepare)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> KNetPredictor:
        """The model of a config (see `knet.config.get_cfg_from_file`) with its MODEL.WEIGHTS.

        Class names are those of the first data set in DATASETS.TEST or TRAIN.
        """
        register_data_sets(cfg)
        names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        if not names:
            raise ValueError("DATASETS names no data set, whose class names a predictor needs")
        model = build_model(cfg)
        KNetCheckpointer.from_config(cfg, model, strict=True).load(cfg.MODEL.WEIGHTS)
        return cls(cfg, model, MetadataCatalog.get(names[0]))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        device: str | None = None,
        revision: str | None = None,
        opts: tuple[Any, ...] = (),
    ) -> KNetPredictor:
        """A named model, or what `save_pretrained` wrote.

        Args:
            name_or_path: a folder; or the name of a published model (`knet.zoo.models.MODELS`), or
                `owner/name` of a model on the Hugging Face Hub (needs `pip install
                huggingface_hub`), which are downloaded once.
            device: where to run; a GPU if there is one by default.
            revision: of a model on the Hub.
            opts: config keys and values, `("MODEL.KNET.TEST.CLASSES", ["person"])`.

        Raises:
            FileNotFoundError: no such folder or name, or a file is missing in the folder.
            ValueError: a file is damaged, or the weights do not fit the config, or there are none.
            OSError: weights cannot be downloaded.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if name_or_path in MODELS and not os.path.isdir(name_or_path):
            opts = ("MODEL.DEVICE", device, *opts)
            return cls.from_config(get_cfg_of_model(str(name_or_path), opts))
        folder = find_folder(name_or_path, revision)
        cfg = get_cfg_from_file(
            folder / CONFIG,
            [
                *("MODEL.DEVICE", device, "MODEL.WEIGHTS", str(folder / WEIGHTS)),
                # what a downloaded config may not decide
                *("MODEL.KNET.UNSAFE_WEIGHTS", False, "MODEL.TIMM.PRETRAINED", False),
                *opts,
            ],
            allow_base=False,
        )
        ids = _class_ids(cfg)
        metadata = read_classes(folder / CLASSES, name=str(name_or_path), ids=ids)
        # what it chooses by name, by label: there is no data set that has the names
        chosen = find_classes(cfg.MODEL.KNET.TEST.CLASSES, ids, class_names(metadata, ids)) or ()
        built = cfg.clone()
        built.MODEL.KNET.TEST.CLASSES = [[*ids.things, *ids.stuff][row] for row in chosen]
        model = build_model(built)
        checkpointer = KNetCheckpointer.from_config(cfg, model, strict=True)
        compare_files(folder, checkpointer.load(cfg.MODEL.WEIGHTS).get("files"))
        return cls(cfg, model, metadata)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        scores: Mapping[str, Any] | None = None,
        license: str = "",
        base: str = "",
    ) -> None:
        """Write weights, config, class names and a model card into a folder, made if need be.

        `huggingface_hub.upload_folder` puts it on the Hub.

        Args:
            folder: of the model.
            scores, license, base: for the card, see `knet.model_card.model_card`.

        Raises:
            OSError: a file cannot be written.
        """
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        ids = _class_ids(self.cfg)
        classes = ClassNames.from_metadata(self.metadata, ids)
        cfg = self.cfg.clone()
        cfg.defrost()
        # the folder stands by itself: no data set, no path
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
        cfg.DATASETS.CUSTOM = []
        cfg.MODEL.WEIGHTS = cfg.INPUT.REDUCED_FOLDER = ""
        cfg.OUTPUT_DIR = "output"
        cfg.MODEL.KNET.UNSAFE_WEIGHTS = cfg.MODEL.TIMM.PRETRAINED = False
        cfg.MODEL.KNET.NUM_THING_CLASSES = len(ids.things)
        cfg.MODEL.KNET.NUM_STUFF_CLASSES = len(ids.stuff)
        cfg.MODEL.KNET.THING_IDS = list(ids.things)
        write_text(out / CONFIG, cfg.dump())
        write_classes(out / CLASSES, self.metadata)
        size = sum(parameter.numel() for parameter in self._plain.parameters())
        # of the whole config, which names the training data
        card = model_card(
            self.cfg, classes, parameters=size, scores=scores, license=license, base=base
        )
        write_text(out / CARD, card)
        # last, so that weights never stand beside files that were not written with them unseen
        state = self._plain.state_dict()
        write_weights(out / WEIGHTS, state, classes=classes, files=file_digests(out))

    @torch.no_grad()
    def __call__(self, image: Picture) -> dict[str, Any]:
        """Results of one image at its own size.

        Args:
            image: a file, an (H, W, 3) uint8 array in RGB order, or a PIL image. Files and PIL
                images are turned upright as their EXIF data say; the first picture of several is
                read. All become INPUT.FORMAT here, whatever that is.

        Returns:
            `instances`, `panoptic_seg` and `sem_seg` of Detectron2, those that the model gives
            (see `KNet.forward`).

        Raises:
            ValueError: naming the file, what is wrong and the mend (a FileNotFoundError too where
                it is missing): no picture, broken, more than 8 bit a channel, no pixel, or more
                than INPUT.MAX_PIXELS, or results that the machine has no memory for.
        """
        prepared = self.prepare(image)
        # before the network's work is lost
        self._require_memory(self.options, prepared["height"], prepared["width"])
        return self.model([prepared])[0]

    @torch.no_grad()
    def predict(self, image: Picture, *, carried: CarriedKernels | None = None) -> Prediction:
        """Run the network on one image; arguments and errors as above.

        Args:
            image: see above.
            carried: kernels of another picture to start from, of an instance or panoptic model
                without TEST.AUG.
        """
        model: Any = self.model
        prepared = self.prepare(image)
        (found,) = model.predict([prepared], *(() if carried is None else (carried,)))
        return Prediction(found, (prepared["height"], prepared["width"]))

    @torch.no_grad()
    def results(
        self,
        prediction: Prediction,
        *,
        size: Sequence[int] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Results of a prediction, without the network.

        Args:
            prediction: of `predict`.
            size: (height, width) of the results; the image's by default.
            options: fields of `InferenceOptions` that differ from the model's, in this call only:
                `instance`, `panoptic`, `semantic`, `score_threshold`, …

        Raises:
            ValueError: options for a semantic model, which has none, or results that the machine
                has no memory for.
        """
        task: Any = self._plain.task
        if options:
            if self.options is None:
                raise ValueError(
                    f"a semantic model gives one result, without options: {', '.join(options)}"
                )
            task = copy.copy(task)  # others may use the model at the same time
            task.options = replace(self.options, **options)
        height, width = prediction.size if size is None else size
        self._require_memory(getattr(task, "options", None), height, width)
        return task.results(prediction.found, (height, width))

    @property
    def options(self) -> InferenceOptions | None:
        """Which results the model gives, under which thresholds; None of a semantic model."""
        task: Any = self._plain.task
        return getattr(task, "options", None)

    @property
    def categories(self) -> list[Category]:
        """The model's classes by label, things first."""
        return categories_of(self.metadata, _class_ids(self.cfg))

    def only(self, task: str) -> None:
        """From now on give one kind of result: the others take memory at the picture's size.

        Args:
            task: "panoptic", "instance" or "semantic", which the model gives.
        """
        model_task: Any = self._plain.task
        if self.options is not None:  # semantic models have no choice
            kinds: dict[str, Any] = {
                kind: kind == task for kind in ("panoptic", "instance", "semantic")
            }
            model_task.options = replace(self.options, **kinds)

    def _require_memory(self, options: InferenceOptions | None, height: int, width: int) -> None:
        """Refuse results that memory cannot hold, which would end the process."""
        if self._plain.device.type != "cpu":  # a GPU raises an error of its own
            return
        ids = _class_ids(self.cfg)
        parts = {}  # bytes a pixel, no more than there will be
        if options is None or options.semantic:
            parts["SEMANTIC_ON"] = 4 * (len(ids.things) + len(ids.stuff))
        if options is not None and options.panoptic:
            parts["PANOPTIC_ON"] = 20
        if options is not None and options.instance and options.score_threshold <= 0:
            pairs = inference_kernels(self.cfg)[1] * len(ids.things)
            parts["INSTANCE_ON"] = min(options.top_k, pairs)
        needed, there = sum(parts.values()) * height * width, free_memory()
        if needed > there:
            text = ", ".join(f"{key} {count}" for key, count in parts.items())
            raise ResultsTooLargeError(
                f"results of a picture of {width}x{height} pixels take {needed / 2**30:.1f} GB, "
                f"and {there / 2**30:.1f} GB of memory are free: scale it down or cut it, "
                f"or turn off results under MODEL.KNET.TEST (bytes a pixel: {text})"
            )

    def prepare(self, image: Picture) -> dict[str, Any]:
        """The model's input of one image (see `KNet.forward`); arguments and errors as above."""
        pixels = read_any(image, self.cfg.INPUT.MAX_PIXELS)
        height, width = pixels.shape[:2]
        pixels = in_format(pixels, self.cfg.INPUT.FORMAT)
        augmented = T.AugInput(np.ascontiguousarray(pixels))
        self._prepare(augmented)
        tensor = torch.from_numpy(augmented.image.transpose(2, 0, 1).copy())
        return {"image": tensor, "height": height, "width": width}


def _class_ids(cfg: CfgNode) -> ClassIds:
    return class_ids_from_config(cfg, semantic=is_semantic(cfg))
