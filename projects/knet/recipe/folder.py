"""`knet train --data FOLDER`: from a folder to a trained model."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from knet.checkpoint.newest import holds_training
from knet.config import get_cfg_from_file
from knet.config_file import check_pairs
from knet.errors import UserError
from knet.files import read_text, write_text
from knet.predictor import KNetPredictor
from knet.recipe.derive import Wishes, derive
from knet.training.curves import read_curves
from knet.training.run import train

logger = logging.getLogger(__name__)

_CONFIG, _MODEL, _BEST = "config.yaml", "model", "model_best.pth"


def train_folder(
    data: str | os.PathLike[str],
    opts: Sequence[Any] = (),
    *,
    val: str | os.PathLike[str] | None = None,
    model: str | None = None,
    task: str | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    output: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    num_gpus: int = 1,
    resume: bool = False,
) -> Path:
    """Recognise and check the data of a folder, choose settings, train; say all of it.

    The complete config is written to `config.yaml` in the output folder: `train_net.py
    --config-file` repeats the training with it bit by bit.

    Args:
        data: the folder, see `knet.data.formats.recognise`.
        opts: config keys and values, which win over what is chosen.
        val: another folder whose pictures are scored; None: a part of the first one.
        model: a name of the zoo or a saved folder to start from; None: EfficientNet-Lite0.
        task: "instance", "panoptic" or "semantic"; None: what the data are for.
        epochs: how often every picture is seen.
        minutes: that the command may take. With neither of them 20 on a CPU.
        batch: pictures of a step; None: as the recipe says. They pass in parts that fit into the
            memory.
        output: folder of config, checkpoints, pictures and scores; None: below `output`, named
            as the data.
        seed: of the split, the weights and the order; None: 1.
        num_gpus: processes that train, on a CPU too.
        resume: go on with the training in `output`, by its config and `opts`.

    Returns:
        the folder of the trained model, for `KNetPredictor.from_pretrained`.

    Raises:
        UserError, DataError, ValueError: naming what is wrong with the folder, its data or a
            setting.
    """
    wishes = Wishes(data, tuple(opts), val, model, task, epochs, minutes, batch, seed, num_gpus)
    folder = Path(output or Path("output") / Path(os.path.abspath(data)).name)
    config = folder / _CONFIG
    if resume:
        if not config.is_file():
            raise UserError(f"{config}: there is no training to resume; leave out --resume")
        if wishes.settled:
            raise UserError(
                f"--{wishes.settled[0]} cannot change with --resume: leave it out, or give config "
                "keys and values"
            )
        check_pairs(wishes.opts)
    else:
        if holds_training(folder, trust=False):
            raise UserError(
                f"{folder} holds a training: --resume goes on with it, --output names another one"
            )
        cfg = derive(wishes, folder)
        write_text(config, cfg.dump())
    later = wishes.opts if resume else ()
    train(str(config), later, num_gpus=num_gpus, resume=resume)
    return save_model(get_cfg_from_file(config, later))


def save_model(cfg: CfgNode) -> Path:
    """Write the best weights of a training as a folder for `KNetPredictor.from_pretrained`.

    Args:
        cfg: of the training, which has ended.
    """
    output = Path(cfg.OUTPUT_DIR)
    cfg = cfg.clone()
    cfg.defrost()
    began, best = cfg.MODEL.WEIGHTS, output / _BEST
    cfg.MODEL.WEIGHTS = str(best if best.is_file() else output / "model_final.pth")
    folder = output / _MODEL
    scores = _scores(output) if best.is_file() else None
    KNetPredictor.from_config(cfg).save_pretrained(folder, scores=scores, base=began)
    logger.info("the model: %s\n  knet predict --model %s PICTURE", folder, folder)
    return folder


def _scores(output: Path) -> dict[str, float]:
    """The scores of the best weights of a training, as its `metrics.json` has them."""
    best = torch.load(output / _BEST, map_location="cpu", weights_only=True)["best"]
    curves = read_curves(read_text(output / "metrics.json").splitlines())
    # the last evaluation is written behind the last step, others with theirs
    steps = [
        step for step in curves.get(best["metric"], {}) if step in (best["step"] - 1, best["step"])
    ]
    return {
        name: curve[steps[-1]] for name, curve in curves.items() if steps and steps[-1] in curve
    }
