"""A run over any number of pictures: results in shards, in one loop or on Ray.

done = predict_batch(load, ["shards/*.tar"], output="results", engine="ray", workers=8)

What a run writes does not depend on engine, workers and interruptions: shard k has the results of
the k-th `shard_size` pictures in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

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
from knet.results.parquet import decode_row, find_shards, pq, read_about, read_rows, shard_name
from knet.training.stop import folder_lock

__all__ = ["BatchRun", "ShardWriter", "predict_batch"]

_GROUP = 32  # rows that a worker holds at once


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
    """

    def __init__(self, predictor: BatchPredictor, folder: Path) -> None:
        self._predictor = predictor
        self._folder = folder

    def write(self, shard: int, advance: Callable[[int], object] = lambda images: None) -> int:
        """Write a shard, whole or not at all; returns its number of pictures.

        Args:
            shard: its number.
            advance: told of pictures that are done.
        """
        inputs = read_inputs(self._folder / INPUTS, shard)
        schema = self._predictor.schema
        with (
            whole_file(self._folder / shard_name(shard)) as unfinished,
            pq.ParquetWriter(unfinished, schema, compression="zstd") as writer,
        ):
            for batch in inputs.to_batches(max_chunksize=_GROUP):
                writer.write_table(self._predictor(batch))
                advance(len(batch))
        return len(inputs)


def predict_batch(
    load: Callable[[], KNetPredictor],
    inputs: Sequence[str],
    *,
    output: str,
    engine: str = "plain",
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    shard_size: int = 1000,
    results: str | None = None,
    retry_errors: bool = False,
    say: Callable[[str], None] = tell,
) -> BatchRun:
    """Run a model on pictures, or go on with a run that was interrupted.

    Args:
        load: gives the model; with Ray each worker calls it.
        inputs: see `knet.batch.inputs.find_inputs`. They are found when a run begins: one that
            goes on has the same, whatever has come to its folders since.
        output: folder of the shards; finished ones are kept and not made again.
        engine: "plain", a loop in this process, or "ray", which `knet.batch.on_ray` describes.
        workers, gpus_per_worker: with Ray.
        shard_size: pictures a file of results.
        results: folder for the same as `ResultFiles`, which must not be there yet.
        retry_errors: make finished shards again that have pictures without results.
        say: told of what is left out and of errors.

    Raises:
        UserError: an input stands for nothing, the folder has another run, or something cannot be
            written. Finished shards are kept.
        OSError, ValueError, RuntimeError: as `BatchPredictor.row`; likewise.
        ImportError: ray is asked for and missing.
    """
    for flag, value in (
        ("--shard-size", shard_size),
        ("--workers", 1 if workers is None else workers),
    ):
        if value < 1:
            raise UserError(f"{flag} {value}: it is at least 1")
    if engine == "ray":
        from knet.batch.on_ray import write_shards  # needs ray
    folder = writable_folder(output, "--output")
    if results and Path(results).exists():
        raise UserError(f"--results {results} is there already: remove it, or name another folder")
    with folder_lock(output, work="run", place="--output"):
        remove_unfinished(folder)
        predictor = BatchPredictor(load)
        about = {
            "inputs": absolute(inputs),
            "shard_size": shard_size,
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
        images = read_about(table)["images"]
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
                on_gpu = predictor.predictor.cfg.MODEL.DEVICE.startswith("cuda")
                del predictor
                write_shards(
                    load,
                    folder,
                    open_shards,
                    workers=workers,
                    gpus_per_worker=float(on_gpu) if gpus_per_worker is None else gpus_per_worker,
                    advance=bar.update,
                )
            else:
                writer = ShardWriter(predictor, folder)
                for shard in open_shards:
                    writer.write(shard, bar.update)
            remove_unfinished(folder)  # of workers that were lost on the way
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
