"""The flags that name a model, and the model that they name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from knet.config import get_cfg_from_file, get_cfg_of_model
from knet.errors import UserError, one_line
from knet.model_folder import CONFIG, find_folder
from knet.predictor import KNetPredictor
from knet.zoo import MODELS


def add_model_arguments(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """Add ``--config-file`` and ``--model``, of which one must be given, and ``--weights``.

    Args:
        parser: gets them.
        aliases: other flags for ``--model``.
    """
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--config-file", metavar="FILE", help="a config; its weights are --weights or MODEL.WEIGHTS"
    )
    which.add_argument(
        "--model",
        *aliases,
        metavar="NAME",
        help="a published model such as panoptic_r50_3x, a folder that "
        "KNetPredictor.save_pretrained wrote, or owner/name on the Hugging Face Hub",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="a checkpoint, as MODEL.WEIGHTS FILE is one"
    )


def model_opts(args: argparse.Namespace) -> list[Any]:
    """The config keys and values of the arguments, `--weights` among them."""
    return [*(("MODEL.WEIGHTS", args.weights) if args.weights else ()), *args.opts]


def load_config(args: argparse.Namespace) -> CfgNode | None:
    """The config of `--config-file` or a published model with keys and values, and no weights yet.

    For work that may need none, such as a report on results that are there. None for a folder.
    """
    if args.config_file:
        return get_cfg_from_file(args.config_file, model_opts(args))
    return get_cfg_of_model(args.model, model_opts(args)) if args.model in MODELS else None


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config of the arguments, of any of them; the weights are not read."""
    cfg = load_config(args)
    if cfg is None:
        file = find_folder(args.model, None) / CONFIG
        cfg = get_cfg_from_file(file, model_opts(args), allow_base=False)
    return cfg


def load_predictor(args: argparse.Namespace, opts: Sequence[Any] | None = None) -> KNetPredictor:
    """The model of the arguments.

    Args:
        args: with ``config_file`` and ``model``, one of them None.
        opts: config keys and values; `model_opts` by default.

    Raises:
        UserError: there is no such model, or keys or weights do not fit it.
    """
    opts = model_opts(args) if opts is None else opts
    try:
        if args.config_file is None:
            return KNetPredictor.from_pretrained(args.model, opts=tuple(opts))
        return KNetPredictor.from_config(get_cfg_from_file(args.config_file, opts))
    except (OSError, ValueError, KeyError, ImportError) as error:
        name, text = args.config_file or args.model, one_line(error)
        raise UserError(text if name in text else f"{name}: {text}") from error
