"""What the sub-commands of `knet` share: how words are read, and how errors are told."""

from __future__ import annotations

import argparse
import difflib
import importlib
import itertools
import logging
import os
from collections.abc import Sequence
from typing import NoReturn

from detectron2.config import CfgNode, get_cfg

from knet.config import add_knet_config
from knet.config_file import check_pairs
from knet.errors import TRACEBACK, is_shown, run_command


class Parser(argparse.ArgumentParser):
    """Reads flags in any order, and config keys and values behind or between them.

    Args:
        name: of the sub-command.
        text: what it does, with an example.
    """

    def __init__(self, name: str, text: str | None) -> None:
        super().__init__(
            prog=f"knet {name}",
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._inputs: tuple[str, str] | None = None

    def add_inputs(self, metavar: str, text: str) -> None:
        """Take words before the config keys, as `inputs`."""
        self._inputs = (metavar, text)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The flags' values; `opts` has the config keys and values, `inputs` other words.

        Raises:
            SystemExit: with status 2 after one line that names what is wrong.
        """
        self.add_argument("--traceback", action="store_true", help="show where an error comes from")
        keys = "config keys and values (docs/CONFIG.md), MODEL.DEVICE cpu"
        metavar, text = self._inputs or ("KEY VALUE", keys)
        text = f"{text}; config keys and values may follow" if self._inputs else text
        self.add_argument("inputs", nargs="*", metavar=metavar, help=text)
        # before it is asked for flags that are required, which a slip of the pen may be meant for
        for word in itertools.takewhile("--".__ne__, words):
            if word.startswith("--") and word.partition("=")[0] not in self._option_string_actions:
                self.error(f"there is no option {word}{self._nearest(word)}")
        args, unknown = self.parse_known_intermixed_args(words)
        for word in unknown:
            if word.startswith("-"):
                self.error(f"there is no option {word}")
        args.inputs, args.opts = split_config_keys(args.inputs)
        if not self._inputs:  # what is no key is told as such
            args.inputs, args.opts = [], args.inputs + args.opts
        for name, value in vars(args).items():
            # behind a flag that takes several values
            if name not in ("inputs", "opts") and isinstance(value, list):
                value, keys_behind = split_config_keys(value)
                setattr(args, name, value)
                args.opts = keys_behind + args.opts
        return args

    def error(self, message: str) -> NoReturn:
        """End with status 2 after one line."""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help shows the options)\n")

    def _nearest(self, word: str) -> str:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
        return f"; did you mean {near[0]}?" if near else ""


def run(name: str, words: Sequence[str], *, alone: bool = False) -> int:
    """Run a sub-command.

    Args:
        name: of the command.
        words: flags and other words.
        alone: this process does nothing else, and so may be forked.

    Returns:
        The exit status: 2 after an error that the user can mend.
    """
    command = importlib.import_module(f"knet.cli.{name.replace('-', '_')}")
    parser = Parser(name, command.__doc__)
    command.add_arguments(parser)
    args = parser.parse(words)
    args.alone = alone
    if args.traceback:
        os.environ[TRACEBACK] = "1"  # processes of a training see it, too

    def work() -> int | None:
        check_pairs(args.opts)
        return command.run(args)

    return run_command(parser.prog, work)


def show_news() -> None:
    """Show this package's own news as short lines, on the standard error: results go to the other.

    Training and scoring have a terminal of their own, `knet.training.console`.
    """
    logger = logging.getLogger("knet")
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(is_shown)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def split_config_keys(values: Sequence[object]) -> tuple[list, list]:
    """Words, and the config keys and values that stand right behind them.

    A key begins with a section of the config, as MODEL.DEVICE does, or is one by itself, as SEED;
    PHOTO.JPG and MODEL are none.
    """
    cfg = get_cfg()
    add_knet_config(cfg)
    for k, value in enumerate(values):
        name, dot, _ = str(value).partition(".")
        if name in cfg and bool(dot) == isinstance(cfg[name], CfgNode):
            return list(values[:k]), list(values[k:])
    return list(values), []
