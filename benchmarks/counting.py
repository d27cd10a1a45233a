"""Operators that launch work and waits for the device, counted on a CPU on the path of a GPU.

On a GPU every dispatched operator but views and allocations launches at least one kernel, 5 to
10 microseconds each, and every value that Python looks at waits for all work before it. Both depend
on the code alone, so they can be counted where there is no GPU: batch norms are folded as there, a
forward pass that a graph would replay in one launch counts in full, nothing is accelerated for the
CPU, and what would be read from a GPU is told from what the loader hands over on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from workload import Workload, loaded, make_inputs, make_model, make_step

from knet.accel.forward import InferenceForward

# operators of no work that are no views either
_FREE = ("empty", "new_empty", "resize_", "lift", "is_pinned", "_reshape_alias", "_unsafe_view")
# each gives values to Python
_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2"}
# reads that no operator shows where the tensor is on the CPU already
_READING = {"cpu", "tolist", "numpy"}
# the number of operators does not depend on the size, which on a CPU only costs time here
_TRAINED_SIZE = (128, 192)


class Count:
    """Operators and waits while a function runs.

    Args:
        run: the function.
        host: tensors that are on the CPU in earnest, where reading waits for nothing.
    """

    def __init__(self, run: Callable[[], Any], host: Sequence[Tensor] = ()) -> None:
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._host: set[int] = set()
        self._kept: list[Tensor] = []  # so that their memory does not become another tensor's
        self.keep_host(host)
        with _Reads(self), _Operators(self):
            run()

    def is_host(self, value: Any) -> bool:
        """Whether a tensor lies on the CPU, not on the device that is thought of."""
        return isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self._host

    def keep_host(self, value: Any) -> None:
        """What was read stays on the CPU."""
        self._kept += _tensors([value])
        self._host |= {tensor.untyped_storage().data_ptr() for tensor in _tensors([value])}

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
    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "to" and self.count.is_host(args[0]):
            # the copy that a GPU gets, which on a CPU would be the tensor itself
            with _disable_current_modes():
                args = (args[0].clone(), *args[1:])
            self.count.operators["copy to the device"] += 1
        out = func(*args, **(kwargs or {}))
        if name in _READING:
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
    cfg, model = make_model(work, accelerated=False)
    model.inference = InferenceForward(model)  # as on a GPU, but for its graphs
    x = make_inputs(work, model.task.class_ids, 1)[0]
    x = {key: x[key] for key in ("image", "height", "width")}
    host = [x["image"]]
    with torch.no_grad():
        model([x])  # folds the batch norms
        (predictions,) = model.predict([x])
        counts = {
            "forward": Count(lambda: model.predict([x]), host),
            "post-processing": Count(lambda: model.task.results(predictions, work.output_size)),
            "image": Count(lambda: model([x]), host),
        }
    small = replace(work, size=_TRAINED_SIZE, batch=images, objects=objects)
    batch = loaded(model, make_inputs(small, model.task.class_ids, images))
    step = make_step(cfg, model, batch)
    step()  # makes the optimiser's state
    host = [
        *_tensors([x["image"], x["targets"]] for x in batch),
        *_tensors(vars(model.task).values()),
    ]
    return {**counts, "step": Count(step, host)}
