"""Operators that launch work and waits for the device, counted on a CPU on the path of a GPU.

On a GPU every dispatched operator but views and allocations launches at least one kernel, 5 to
10 microseconds each, and every value that Python looks at waits for all work before it. Both depend
on the code alone, so they can be counted where there is no GPU: the model is not accelerated for
the CPU, and what it would read from a GPU is told from what the loader hands over on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from benchmark_inputs import Workload, make_input, make_material
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from knet.training.optimizer import build_optimizer
from knet.training.step import TrainStep

__all__ = ["count_all"]

# operators of no work that are no views either
_FREE = ("empty", "new_empty", "resize_", "lift", "is_pinned", "_reshape_alias", "_unsafe_view")
# each gives values to Python
_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2"}
_READING = {"cpu", "tolist", "numpy", "item", "__bool__", "__int__", "__float__"}
# the number of operators does not depend on the size, which on a CPU only costs time here
_TRAINED_SIZE = (128, 192)


class Count:
    """Operators and waits while a function runs."""

    def __init__(self, host: Sequence[Tensor]) -> None:
        """`host`: tensors that are on the CPU in earnest, where reading waits for nothing."""
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._host: set[int] = set()
        self._kept: list[Tensor] = []  # so that their memory does not become another tensor's
        for tensor in host:
            self.keep_host(tensor)

    def __call__(self, run: Callable[[], Any]) -> Count:
        """Run and count."""
        with _Reads(self), _Operators(self):
            run()
        return self

    def is_host(self, value: Any) -> bool:
        """Whether a tensor lies on the CPU, not on the device that is thought of."""
        return isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self._host

    def keep_host(self, value: Any) -> None:
        """What was read stays on the CPU."""
        for tensor in _tensors([value]):
            self._host.add(tensor.untyped_storage().data_ptr())
            self._kept.append(tensor)

    def __str__(self) -> str:
        return f"{sum(self.operators.values())} ops {sum(self.waits.values())} waits"


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


class _Operators(TorchDispatchMode):
    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        # no operator mixes devices, so one of several tells where all are
        on_host = any(map(self.count.is_host, _tensors(args)))
        out = func(*args, **(kwargs or {}))
        if on_host:
            self.count.keep_host(out)
        elif name in _WAITING:
            self.count.waits[name] += 1
        elif not func.is_view and not name.startswith(_FREE):
            self.count.operators[name] += 1
        return out


class _Reads(TorchFunctionMode):
    """Reads that no operator shows where the tensor is on the CPU already."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "to" and self.count.is_host(args[0]):
            # the copy that a GPU gets, which on a CPU would be the tensor itself
            with torch.utils._python_dispatch._disable_current_modes():
                copied = args[0].clone()
            self.count.operators["copy to the device"] += 1
            return func(copied, *args[1:], **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        # those that dispatch an operator are counted there
        if name in _READING - {"item", "__bool__", "__int__", "__float__"}:
            if not self.count.is_host(args[0]):
                self.count.waits[name] += 1
            self.count.keep_host(out)
        return out


def count_all(work: Workload, *, images: int, objects: int) -> dict[str, Count]:
    """Counts of `forward`, `post-processing`, `image` (both) and `step`.

    Args:
        work: the config, and the size of the picture and its results.
        images, objects: of the training step, and in each of its images.
    """
    work = Workload(**{**vars(work), "opts": [*work.opts, "MODEL.KNET.FAST_CONVOLUTIONS", False]})
    material = make_material(work, accelerated=False)
    model, x = material.model, material.batched_inputs[0]
    host = [x["image"]]
    x = {"image": x["image"], "height": work.output_size[0], "width": work.output_size[1]}
    with torch.no_grad():
        model([x])  # folds the batch norms
        (predictions,) = model.predict([x])
        counts = {
            "forward": Count(host)(lambda: model.predict([x])),
            "post-processing": Count([])(lambda: model.task.results(predictions, work.output_size)),
            "image": Count(host)(lambda: model([x])),
        }
    small = Workload(**{**vars(work), "size": _TRAINED_SIZE, "objects": objects})
    ids = model.task.class_ids
    batch = [make_input(small, things=ids.things, stuff=ids.stuff) for _ in range(images)]
    counts["step"] = _count_step(material.cfg, model, batch)
    return counts


def _count_step(cfg: Any, model: nn.Module, batch: list[dict[str, Any]]) -> Count:
    step = TrainStep(
        model.train(), lambda *_: iter([batch, batch]), build_optimizer(cfg, model),
        seed=0, clip_norm=1.0,
    )  # fmt: skip
    host = [x["image"] for x in batch] + [x["sem_seg"] for x in batch if "sem_seg" in x]
    host += [t for t in vars(model.task).values() if isinstance(t, Tensor)]
    for x in batch:
        host += [x["instances"].gt_masks.tensor, x["instances"].gt_classes]
    with EventStorage(0) as storage:
        step.iter = storage.iter = 0
        step.run_step()  # makes the optimiser's state
        step.iter = storage.iter = 1
        return Count(host)(step.run_step)
