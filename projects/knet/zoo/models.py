"""Every model of the authors' tables by a name: its config, their score, and their weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from knet.errors import nearest
from knet.zoo.download import base_url, fetch, weights_folder

_PACKAGE = Path(__file__).parents[1]
_METRICS = {"panoptic": "PQ", "instance": "mask AP", "semantic": "mIoU"}


@dataclass(frozen=True)
class ZooModel:
    """A published model.

    Attributes:
        name: begins with the task.
        score: the authors', in percent, on the validation images of `data`; see `metric`.
        parameters: their number.
        config: path below configs/.
        file: of the authors' weights; empty where they published none.
    """

    name: str
    score: float
    parameters: int
    config: str
    file: str = ""

    @property
    def task(self) -> str:
        """ "panoptic", "instance" or "semantic"."""
        return self.name.partition("_")[0]

    @property
    def metric(self) -> str:
        """What the score is."""
        return _METRICS[self.task]

    @property
    def data(self) -> str:
        """What it was trained on."""
        return "ADE20K" if self.task == "semantic" else "COCO"

    @property
    def url(self) -> str:
        """Of the weights; the folder is the file's name before the date."""
        folder = re.sub(r"_\d{8}_\d{6}-[0-9a-f]{8}\.pth$", "", self.file)
        return f"{base_url()}/{folder}/{self.file}"

    @property
    def path(self) -> Path:
        """Where the weights are, or will be, on this machine."""
        return weights_folder() / self.file


# the figures of docs/MODEL_ZOO.md
MODELS = {
    model.name: model
    for model in (
        ZooModel(
            "panoptic_r50_1x", 44.3, 37_536_852, "coco/panoptic/knet_r50_fpn_1x.yaml",
            "knet_s3_r50_fpn_1x_coco-panoptic_20211017_151750-395fbcba.pth",
        ),
        ZooModel(
            "panoptic_r50_3x", 47.1, 37_536_852, "coco/panoptic/knet_r50_fpn_3x.yaml",
            "knet_s3_r50_fpn_ms-3x_coco-panoptic_20211017_054613-4375b8be.pth",
        ),
        ZooModel(
            "panoptic_r101_3x", 48.4, 56_528_980, "coco/panoptic/knet_r101_fpn_3x.yaml",
            "knet_s3_r101_fpn_ms-3x_coco-panoptic_20211017_054501-9c600b0c.pth",
        ),
        ZooModel(
            "panoptic_r101_dcn_3x", 49.6, 57_815_152, "coco/panoptic/knet_r101_dcn_fpn_3x.yaml",
            "knet_s3_r101_dcn-c3-c5_fpn_ms-3x_coco-panoptic_20211019_191549-6d13fab7.pth",
        ),
        ZooModel(
            "panoptic_swin_l_3x", 54.6, 208_781_224, "coco/panoptic/knet_swin_l_fpn_3x.yaml",
            "knet_s3_swin-l_fpn_ms-3x_16x2_coco-panoptic_20211020_062341-62f3bbff.pth",
        ),
        ZooModel(
            "instance_r50_1x", 34.0, 37_482_368, "coco/instance/knet_r50_fpn_1x.yaml",
            "knet_s3_r50_fpn_1x_coco_20211016_113017-8a8645d4.pth",
        ),
        ZooModel("instance_r50_3x", 37.8, 37_482_368, "coco/instance/knet_r50_fpn_3x.yaml"),
        ZooModel("instance_r101_3x", 39.2, 56_474_496, "coco/instance/knet_r101_fpn_3x.yaml"),
        ZooModel(
            "instance_r101_dcn_3x", 40.5, 57_760_668, "coco/instance/knet_r101_dcn_fpn_3x.yaml",
            "knet_s3_r101_dcn-c3-c5_fpn_ms-3x_coco_20211017_054515-163a3126.pth",
        ),
        *(
            ZooModel(f"semantic_{name}", score, parameters, f"ade20k/semantic/knet_{name}.yaml")
            for name, score, parameters in (
                ("fcn_r50", 43.3, 62_810_508),
                ("pspnet_r50", 43.9, 62_288_268),
                ("deeplabv3_r50", 44.6, 81_425_804),
                ("upernet_r50", 43.6, 45_660_300),
                ("upernet_swin_t", 45.4, 43_632_614),
                ("upernet_swin_l", 52.0, 214_722_752),
                ("upernet_swin_l_640", 52.7, 214_722_752),
            )
        ),
    )
}  # fmt: skip


def find_model(name: str) -> ZooModel:
    """The model of a name.

    Raises:
        ValueError: there is none; names what is near.
    """
    if name not in MODELS:
        raise ValueError(f"no model is named {name!r}; there are {nearest(name, MODELS)}")
    return MODELS[name]


def fetch_weights(name: str) -> Path:
    """The weights of a named model on this machine, downloaded the first time.

    Raises:
        ValueError: no such model, the authors published no weights of it, or the file is not
            theirs.
        OSError: it cannot be downloaded or written; says where to put the file by hand.
    """
    model = find_model(name)
    if not model.file:
        others = ", ".join(other for other, m in MODELS.items() if m.file and m.task == model.task)
        raise ValueError(
            f"{name}: its authors have published no weights; train it with configs/{model.config}"
            + (f", or take one of {others}" if others else "")
        )
    digits = Path(model.file).stem.rpartition("-")[2]
    return fetch(model.url, model.path, digits=digits)


def config_path(relative: str) -> Path:
    """A config of the project by its path below configs/, in a checkout and in a wheel.

    Raises:
        FileNotFoundError: there is no such config; names what is near.
    """
    root = _PACKAGE / "configs"  # setup.py puts them there
    if not root.is_dir():
        root = _PACKAGE.parents[1] / "configs"
    path = root / relative
    if not path.is_file():
        known = [file.relative_to(root).as_posix() for file in root.rglob("*.yaml")]
        raise FileNotFoundError(
            f"{path}: no such config; there are {nearest(relative, known) or 'none'}"
        )
    return path


def format_models() -> str:
    """All models as a table of text, a line each."""
    rows = [("name", "task", "data", "published", "parameters", "weights")]
    for model in MODELS.values():
        weights = "-"
        if model.file:
            weights = "in cache" if model.path.is_file() else "can be fetched"
        score = f"{model.score:.1f} {model.metric}"
        parameters = f"{model.parameters / 1e6:.1f} M"
        rows.append((model.name, model.task, model.data, score, parameters, weights))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
