"""A training that gets signals in its second step; run by `test_stop.py`.

In a process of its own: where autograd has threads, as on machines with a GPU and after an export,
a fork of pytest's process cannot train.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

import knet  # noqa: F401  (before Detectron2)

# isort: split
from test_checkpoints import in_step, make, send

from knet.config import get_cfg_from_file
from knet.data import register_custom
from knet.training.stop import Stopped


def main(job: str, folder: str) -> None:
    """`second_interrupt` or `whole_group`, with the config in a folder, which takes checkpoints."""
    signal.alarm(120)  # ends it, whatever it waits for
    # a script's background ignores it; children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    cfg = get_cfg_from_file(str(Path(folder) / "config.yaml"))
    register_custom(cfg)
    trainer = make(cfg, folder)

    def tell_and_wait() -> None:
        print("in the step", flush=True)
        while not trainer._signals.received:
            time.sleep(0.01)

    interrupts = lambda: send(signal.SIGINT, signal.SIGINT)  # noqa: E731
    in_step(trainer, 1, interrupts if job == "second_interrupt" else tell_and_wait)
    try:
        trainer.train()
    except Stopped as stop:
        os._exit(stop.code)  # what is left behind in the group is the test's business


if __name__ == "__main__":
    main(*sys.argv[1:])
