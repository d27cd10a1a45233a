"""A run over any number of pictures: results in shards, in one loop or on Ray.

done = predict_batch(load, ["shards/*.tar"], output="results", engine="ray", workers=8)

What a run writes does not depend on engine, workers and interruptions: shard k has the results of
the k-th `shard_size` pictures in their order.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from knet.batch.attempts import ENDS, Attempt, remove_notes
from knet.batch.inputs import (
    INPUTS,
    absolute,
    find_inputs,
    read_inputs,
    require_unique_stems,
    write_inputs,
)
from knet.batch.predictor import BatchPredictor
from knet.classes import Category
from knet.errors import UserError
from knet.files import remove_unfinished, whole_file, whole_folder
from knet.predict.files import writable_folder
from knet.predict.run import tell
from knet.predictor import KNetPredictor
from knet.results.coco_files import ResultFiles
from knet.results.parquet import (
    decode_row,
    find_shards,
    pa,
    pq,
    read_about,
    read_rows,
    shard_name,
)
from knet.training.stop import Stopped, folder_lock, optional_signals

__all__ = ["BatchRun", "ShardWriter", "heed_signals", "predict_batch"]

_GROUP = 32  # rows that a worker holds at once
_MOST = 1_000_000  # of workers and of pictures a shard, whose names are in memory


@dataclass(frozen=True)
class BatchRun:
    """What is in the folder of a run.

    Attributes:
        images: pictures, with results or without.
        errors: those that could not be read.
        shards: files of results.
    """

    images: int
    errors: int
    shards: int


class ShardWriter:
    """Predicts the pictures of shards and writes them.

    Args:
        predictor: the model.
        folder: of the run, with its table of inputs.
        call: see `knet.batch.attempts.Attempt`.
    """

    def __init__(self, predictor: BatchPredictor, folder: Path, call: str | None = None) -> None:
        self._predictor = predictor
        self._folder = folder
        self._call = call

    def write(self, shard: int, advance: Callable[[int], object] = lambda images: None) -> int:
        """Write a shard, whole or not at all; returns its number of pictures.

        Args:
            shard: its number.
            advance: told of pictures that are done.
        """
        inputs = read_inputs(self._folder / INPUTS, shard)
        path, schema = self._folder / shard_name(shard), self._predictor.schema
        with (
            Attempt(path, self._call) as attempt,
            whole_file(path) as unfinished,
            pq.ParquetWriter(unfinished, schema, compression="zstd") as writer,
        ):
            for start in range(0, len(inputs), _GROUP):
                rows = []
                for k, given in enumerate(inputs.slice(start, _GROUP).to_pylist(), start):
                    attempt.begin(k)
                    if k in attempt.given_up:
                        given["error"] = (
                            f"{given['path']}: {given['file_name']} has ended the process {ENDS} "
                            "times: a crash, or too little memory; --retry-errors tries again"
                        )
                    rows.append(self._predictor.row(given))
                    advance(1)
                writer.write_table(pa.Table.from_pylist(rows, schema))
        return len(inputs)


@contextlib.contextmanager
def heed_signals(say: Callable[[str], None] = tell) -> Iterator[None]:
    """Within the block SIGTERM and the like end the process as Ctrl-C does.

    Raises:
        Stopped: of which the exit status is 128 + the signal's number.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGTERM, *optional_signals())
        before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except Stopped as stopped:
        say(f"{stopped.signal_name}: finished files are kept, and the same call goes on")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def predict_batch(
    load: Callable[[], KNetPredictor],
    inputs: Sequence[str],
    *,
    output: str,
    engine: str = "plain",
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    shard_size: int | None = None,
    results: str | None = None,
    retry_errors: bool = False,
    load_on_cpu: Callable[[], KNetPredictor] | None = None,
    say: Callable[[str], None] = tell,
) -> BatchRun:
    """Run a model on pictures, or go on with a run that was interrupted.

    Args:
        load: gives the model; with Ray each worker calls it.
        inputs: see `knet.batch.inputs.find_inputs`. They are found when a run begins: one that
            goes on has the same, whatever has come to its folders since.
        output: folder of the shards; finished ones are kept and not made again.
        engine: "plain", a loop in this process, or "ray", which `knet.batch.on_ray` describes.
        workers, gpus_per_worker: with Ray, see `knet.batch.on_ray.write_shards`.
        shard_size: pictures a file of results; by default 1,000, or fewer for some hundred files.
        results: folder for the same as `ResultFiles`, which must not be there yet.
        load_on_cpu: the same for this process where only others predict, whose GPU it may be.
        retry_errors: make finished shards again that have pictures without results.
        say: told of what is left out and of errors.

    Raises:
        UserError: an input stands for nothing, the folder has another run, or something cannot be
            written. Finished shards are kept.
        OSError, ValueError, RuntimeError: as `BatchPredictor.row`; likewise.
        ImportError: ray is asked for and missing.
    """
    for flag, value in (("--shard-size", shard_size), ("--workers", workers)):
        if value is not None and not 1 <= value <= _MOST:
            raise UserError(f"{flag} {value}: it is 1 to {_MOST:,}")
    if engine == "ray":
        from knet.batch.on_ray import write_shards  # needs ray
    folder = writable_folder(output, "--output")
    if results and Path(results).exists():
        raise UserError(f"--results {results} is there already: remove it, or name another folder")
    with folder_lock(output, work="run", place="--output"):
        remove_unfinished(folder)
        predictor = BatchPredictor((load_on_cpu or load) if engine == "ray" else load)
        about = {
            "inputs": absolute(inputs),
            **({} if shard_size is None else {"shard_size": shard_size}),
            "tasks": predictor.tasks,
            "model": _fingerprint(predictor.predictor),
        }
        categories = predictor.predictor.categories
        table = folder / INPUTS
        if table.exists():
            _require_same_run(table, about)
        else:
            if find_shards(folder):
                raise UserError(f"--output {output} has results without {INPUTS}: name another")
            found = find_inputs(inputs, say)
            write_inputs(table, found, shard_size=shard_size, about=about, say=say)
        if results:
            require_unique_stems(table)
        made = read_about(table)
        images, shard_size = made["images"], made["shard_size"]
        number = -(-images // shard_size)
        shards = ((k, folder / shard_name(k)) for k in range(number))
        open_shards = [
            k for k, path in shards if not path.exists() or (retry_errors and _errors(path))
        ]
        left = sum(min(shard_size, images - k * shard_size) for k in open_shards)
        if left < images:
            say(f"{images - left:,} of {images:,} pictures were done before")
        with tqdm(total=images, initial=images - left, unit=" images") as bar:
            if engine == "ray":
                del predictor
                write_shards(
                    load,
                    folder,
                    open_shards,
                    workers=workers,
                    gpus_per_worker=gpus_per_worker,
                    advance=bar.update,
                    say=say,
                )
            else:
                writer = ShardWriter(predictor, folder)
                with heed_signals(say):
                    for shard in open_shards:
                        writer.write(shard, bar.update)
            # of workers that were lost on the way
            remove_unfinished(folder)
            remove_notes(folder)
        if results:
            _write_files(folder, Path(results), categories)
        return BatchRun(images, sum(map(_errors, find_shards(folder))), number)


def _require_same_run(table: Path, about: dict[str, Any]) -> None:
    there = read_about(table)
    other = [name for name, value in about.items() if there.get(name) != value]
    if other:
        shown = [
            f"{name.replace('_', ' ')} {there.get(name)!r:.80}" if name != "model" else "model"
            for name in other
        ]
        raise UserError(
            f"{table.parent} has a run with another {' and '.join(shown)}: repeat the call of that "
            "run to go on with it, or name another --output"
        )


def _fingerprint(predictor: KNetPredictor) -> str:
    """Of all that results depend on but the device."""
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR = ""
    digest = hashlib.sha256(cfg.dump().encode())
    for name, tensor in predictor.model.state_dict().items():
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(name.encode() + data.numpy().tobytes())
    return digest.hexdigest()


def _errors(shard: Path) -> int:
    """Rows with an error; only the end of the file is read."""
    with pq.ParquetFile(shard) as file:
        column = file.schema_arrow.names.index("error")
        groups = [file.metadata.row_group(k) for k in range(file.num_row_groups)]
        # columns of lists, of several leaves each, stand behind it
        return sum(g.num_rows - g.column(column).statistics.null_count for g in groups)


def _write_files(folder: Path, results: Path, categories: Sequence[Category]) -> None:
    """The results of all shards as `ResultFiles`, whole or not at all."""
    try:
        with (
            whole_folder(results) as fresh,
            ResultFiles(fresh, categories=categories, durable=False) as files,
        ):
            rows = read_rows(find_shards(folder))
            for row in tqdm(rows, desc="writing files", unit=" images"):
                if row["error"] is None:
                    name, number = row["file_name"], row["image_id"]
                    files.add_encoded(decode_row(row), image_id=number, file_name=name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--results {results}: {error}; the shards in {folder} are complete"
        ) from error
