"""One of two processes that train a weight, RANK in the environment; run by `test_step.py`.

The second one's loss is infinite in the third step, with a finite gradient.
"""

from __future__ import annotations

import os
import sys

import torch

import knet  # noqa: F401  (before Detectron2)

# isort: split
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from knet.training.step import TrainStep


class Loss(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: tuple[float, float]) -> dict[str, torch.Tensor]:
        factor, more = batch
        return {"loss": (self.weight * factor) ** 2 + more}


def main(meeting: str) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    infinite = float("inf") if rank else 0.0
    batches = [(1.0, 0.0), (1.0, 0.0), (1.0, infinite), (1.0, 0.0), (1.0, 0.0)]
    model = DistributedDataParallel(Loss())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    step = TrainStep(model, lambda seed, first: batches[first:], optimizer, seed=0)
    for step.iter in range(len(batches)):
        step.run_step()
        print(model.module.weight.item())
    try:
        step.require_finite()
    except FloatingPointError as error:
        print(error)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
