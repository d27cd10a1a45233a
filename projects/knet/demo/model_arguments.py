"""The flags that name a model, and the model that they name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from detectron2.config import get_cfg

from knet.config import get_cfg_from_file
from knet.errors import UserError, one_line
from knet.predictor import KNetPredictor


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config-file`` and ``--model`` (or ``--predictor``), of which one must be given."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--config-file",
        metavar="FILE",
        help="a config; its weights are MODEL.WEIGHTS, see the config keys at the end of the line",
    )
    which.add_argument(
        "--model",
        "--predictor",
        metavar="NAME",
        help="a published model such as panoptic_r50_3x, a folder that "
        "KNetPredictor.save_pretrained wrote, or owner/name on the Hugging Face Hub",
    )


def load_predictor(args: argparse.Namespace, opts: Sequence[Any]) -> KNetPredictor:
    """The model of the arguments.

    Args:
        args: with ``config_file`` and ``model``, one of them None.
        opts: config keys and values.

    Raises:
        UserError: there is no such model, or keys or weights do not fit it.
    """
    try:
        if args.config_file is None:
            return KNetPredictor.from_pretrained(args.model, opts=tuple(opts))
        return KNetPredictor.from_config(get_cfg_from_file(args.config_file, opts))
    except (OSError, ValueError, KeyError, ImportError) as error:
        name, text = args.config_file or args.model, one_line(error)
        raise UserError(text if name in text else f"{name}: {text}") from error


def split_config_keys(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Values of a flag, and the config keys and values that stand right behind them.

    A key begins with a section of the config, as MODEL.DEVICE does; PHOTO.JPG is none.
    """
    sections = get_cfg().keys()
    for k, value in enumerate(values):
        section, dot, _ = value.partition(".")
        if dot and section in sections:
            return list(values[:k]), list(values[k:])
    return list(values), []
