"""The shards of a run on the workers of Ray Data.

Each worker is an actor with a model of its own: it gets numbers of shards, reads their pictures and
writes their results. A picture that ends its process is left out once it has done so twice, see
`knet.batch.attempts`. Machines of a cluster share a file system, on which folder, inputs, model and
working directory have the same paths. The driver sees numbers only.

`RAY_ADDRESS` names a cluster; without it Ray takes one that was started on this machine, or starts
one that ends with the run. Ray's usage statistics are off unless `RAY_USAGE_STATS_ENABLED` is set.
"""

from __future__ import annotations

import logging
import os
import pickle
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from knet.batch.attempts import count_start, where_it_ended
from knet.batch.inputs import INPUTS, read_inputs
from knet.batch.predictor import BatchPredictor
from knet.batch.run import ShardWriter, heed_signals
from knet.errors import UserError, first_of
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

_RESTARTS = 10  # a worker, on the average; Ray itself has no limit
_SHOWN = 5  # pictures at which workers ended


class _Worker:
    """What an actor does.

    Args:
        load: gives the model.
        place: the working directory, which relative paths start from.
        folder: of the run.
        call: see `knet.batch.attempts.Attempt`.
        starts: of workers at most, all together; the next one fails.
    """

    def __init__(
        self, load: Callable[[], KNetPredictor], place: str, folder: str, call: str, starts: int
    ) -> None:
        # Ray would begin again without end, and tell errors as text among its own
        self._failed = ""
        try:
            os.chdir(place)
            if count_start(Path(folder), call) > starts:
                raise UserError(
                    f"the workers have ended {starts} times without an error: a crash, or too "
                    f"little memory{_at(Path(folder), call)}"
                )
            self._writer = ShardWriter(BatchPredictor(load), Path(folder), call)
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
    gpus_per_worker: float | None,
    advance: Callable[[int], object],
    say: Callable[[str], None],
) -> None:
    """Write shards of a run.

    Args:
        load: gives the model; it goes to the workers.
        folder: of the run, with its table of inputs.
        shards: their numbers.
        workers: actors; by default as many as the cluster's GPUs, or without GPUs its CPUs, allow.
        gpus_per_worker: 0 for none; by default 1 where the cluster has GPUs. Each worker has one
            CPU.
        advance: told of pictures that are done, a shard at a time.
        say: told that a signal ends the run.

    Raises:
        UserError: the cluster cannot hold so many workers, or fails, or they end too often.
        Exception: of a worker, as it is there.
    """
    if not shards:
        return
    call = uuid.uuid4().hex
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    try:
        count, gpus = _share(workers, gpus_per_worker)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns of having no bars
        # a block a shard: an actor that is free takes the next one
        numbers = ray.data.from_items(
            [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
        )
        count = min(count, len(shards))
        made = {"load": load, "place": os.getcwd(), "folder": str(folder), "call": call}
        made["starts"] = count * (1 + _RESTARTS)
        done = numbers.map_batches(
            _Worker,
            fn_constructor_kwargs=made,
            batch_size=1,
            # one to work on and one to go on with: asking for it takes some 0.2 seconds. More would
            # wait for their actor in the end, while others have nothing to do
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            num_gpus=gpus,
        )
        with heed_signals(say):  # Ray has put a handler of its own there
            for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
                for packed in filter(None, batch["error"]):
                    _raise(str(packed))
                advance(int(batch["images"].sum()))
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[-1] if lines else type(error).__name__
        raise UserError(f"Ray ended the run: {text}{_at(folder, call)}") from error
    finally:
        if started:
            ray.shutdown()


def _at(folder: Path, call: str) -> str:
    """Which pictures workers have ended at, or are at, for the message."""
    names = []
    for shard, k in where_it_ended(folder, call):
        row = read_inputs(folder / INPUTS, shard).slice(k, 1).to_pylist()[0]
        inside = "" if row["offset"] is None else f"/{row['file_name']}"
        names.append(f"{row['path']}{inside}")
    return f"; workers were at {first_of(names, _SHOWN)}" if names else ""


def _share(workers: int | None, gpus_per_worker: float | None) -> tuple[int, float]:
    """The number of workers, which the cluster can hold, and the GPUs of each."""
    there = ray.cluster_resources()
    gpus = float("GPU" in there) if gpus_per_worker is None else gpus_per_worker
    most = int(there.get("CPU", 0))
    if gpus:
        most = min(most, int(there.get("GPU", 0) / gpus))
    if not most or (workers or 0) > most:
        raise UserError(
            f"{workers or 'no'} workers of 1 CPU and {gpus:g} GPUs each do not fit into "
            f"the Ray cluster: it has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} "
            f"GPUs, for {most} workers"
        )
    return workers or most, gpus
