"""The shards of a run on the workers of Ray Data.

Each worker is an actor with a model of its own: it gets numbers of shards, reads their pictures and
writes their results. Machines of a cluster share a file system, on which folder, inputs, model and
working directory have the same paths. The driver sees numbers only.

`RAY_ADDRESS` names a cluster; without it Ray takes one that was started on this machine, or starts
one that ends with the run. Ray's usage statistics are off unless `RAY_USAGE_STATS_ENABLED` is set.
"""

from __future__ import annotations

import logging
import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from knet.batch.predictor import BatchPredictor
from knet.batch.run import ShardWriter
from knet.errors import UserError
from knet.predictor import KNetPredictor

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it when it is imported
try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "ray":
        raise
    raise ImportError(
        "--engine ray needs Ray Data: run `pip install -e .[ray]` in the repository root; "
        "--engine plain does without",
        name=error.name,
    ) from error

__all__ = ["write_shards"]


class _Worker:
    """What an actor does.

    Args:
        load: gives the model.
        place: the working directory, which relative paths start from.
        folder: of the run.
    """

    def __init__(self, load: Callable[[], KNetPredictor], place: str, folder: str) -> None:
        # Ray would begin again without end, and tell errors as text among its own
        self._failed = ""
        try:
            os.chdir(place)
            self._writer = ShardWriter(BatchPredictor(load), Path(folder))
        except Exception as error:
            self._failed = _pack(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Numbers of pictures, and an error that ends the run, of the shards of a batch."""
        if self._failed:
            return {"images": [0], "error": [self._failed]}
        try:
            images = [self._writer.write(int(shard)) for shard in batch["shard"]]
        except Exception as error:
            return {"images": [0], "error": [_pack(error)]}
        return {"images": images, "error": [""] * len(images)}


def _pack(error: Exception) -> str:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        data = pickle.dumps((error, text))
        pickle.loads(data)
    except Exception:  # of a class that cannot be pickled, or that needs other arguments
        data = pickle.dumps((RuntimeError(text), text))
    return data.hex()


def _raise(packed: str) -> NoReturn:
    error, text = pickle.loads(bytes.fromhex(packed))
    raise error from RuntimeError(f"in a worker:\n{text}")


def write_shards(
    load: Callable[[], KNetPredictor],
    folder: Path,
    shards: Sequence[int],
    *,
    workers: int | None,
    gpus_per_worker: float,
    advance: Callable[[int], object],
) -> None:
    """Write shards of a run.

    Args:
        load: gives the model; it goes to the workers.
        folder: of the run, with its table of inputs.
        shards: their numbers.
        workers: actors; by default as many as the cluster's GPUs, or without GPUs its CPUs, allow.
        gpus_per_worker: 0 for none; each worker has one CPU.
        advance: told of pictures that are done, a shard at a time.

    Raises:
        UserError: the cluster cannot hold so many workers, or fails.
        Exception: of a worker, as it is there.
    """
    if not shards:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    try:
        count = _count(workers, gpus_per_worker)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns of having no bars
        # a block a shard: an actor that is free takes the next one
        numbers = ray.data.from_items(
            [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
        )
        done = numbers.map_batches(
            _Worker,
            fn_constructor_kwargs={"load": load, "place": os.getcwd(), "folder": str(folder)},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(count, len(shards))),
            num_cpus=1,
            num_gpus=gpus_per_worker,
        )
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
            for packed in filter(None, batch["error"]):
                _raise(str(packed))
            advance(int(batch["images"].sum()))
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[-1] if lines else type(error).__name__
        raise UserError(f"Ray ended the run: {text}") from error
    finally:
        if started:
            ray.shutdown()


def _count(workers: int | None, gpus_per_worker: float) -> int:
    """The number of workers, which the cluster can hold."""
    there = ray.cluster_resources()
    most = int(there.get("CPU", 0))
    if gpus_per_worker:
        most = min(most, int(there.get("GPU", 0) / gpus_per_worker))
    if not most or (workers or 0) > most:
        raise UserError(
            f"{workers or 'no'} workers of 1 CPU and {gpus_per_worker:g} GPUs each do not fit into "
            f"the Ray cluster: it has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} "
            f"GPUs, for {most} workers"
        )
    return workers or most
