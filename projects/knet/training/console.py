"""What of the log a user sees in the terminal, and what goes to the log file only.

`log.txt` in the output folder gets everything. The terminal gets this package's own news and the
warnings of all libraries.
"""

from __future__ import annotations

import argparse
import logging
import sys

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from knet.errors import is_shown

__all__ = ["set_up"]

# lines of libraries that are news all the same: the logger and how the line begins
_NEWS = {
    "fvcore.common.checkpoint": "Saving checkpoint",
    "detectron2.evaluation.evaluator": "Inference done",
    "detectron2.evaluation.testing": "Results verification",
}


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's `default_setup`, with a terminal that shows little."""
    output, rank = cfg.OUTPUT_DIR, comm.get_rank()
    # as `default_setup` calls it, which then gets these loggers as they are
    loggers = [
        setup_logger(output, distributed_rank=rank, name="fvcore"),
        setup_logger(output, distributed_rank=rank),
        setup_logger(output, distributed_rank=rank, name="knet"),
    ]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if getattr(handler, "stream", None) is sys.stdout:
            handler.addFilter(_is_news)
            handler.setFormatter(_ShortLines("[%(asctime)s] %(message)s", datefmt="%H:%M:%S"))
    # at each start it says that a PyTorch for GPUs has found none
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    default_setup(cfg, args)


def _is_news(record: logging.LogRecord) -> bool:
    if not is_shown(record):
        return False
    if record.levelno > logging.INFO:
        return True
    if record.name.startswith("knet."):
        return record.levelno == logging.INFO
    start = _NEWS.get(record.name)
    return start is not None and record.getMessage().startswith(start)


class _ShortLines(logging.Formatter):
    """Time and message; a warning or an error says that it is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = super().formatMessage(record)
        if record.levelno > logging.INFO:
            line = line.replace(record.message, f"{record.levelname}: {record.message}", 1)
        return line
