"""Results as Parquet shards: a row an image, with what it holds or why it could not be read.

Needs pyarrow. Each shard stands by itself: its metadata have the classes and kinds of results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from knet.classes import Category, category_records
from knet.results.encode import EncodedResults

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    if error.name != "pyarrow":
        raise
    raise ImportError(
        "results as Parquet need pyarrow: run `pip install -e .[parquet]` in the repository root, "
        "or .[ray] for --engine ray",
        name=error.name,
    ) from error

__all__ = [
    "decode_row",
    "encode_row",
    "error_row",
    "find_shards",
    "pa",
    "pq",
    "read_about",
    "read_rows",
    "result_schema",
    "shard_name",
    "with_about",
]

_SHARDS = f"results-{7 * '[0-9]'}.parquet"  # nothing that is being written
_ABOUT = b"knet"  # key of what the metadata of a file say, in JSON
_IMAGE = [
    ("image_id", pa.int64()),
    ("path", pa.string()),  # of the file, or of the tar that it lies in
    ("file_name", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("error", pa.string()),  # null where there are results
]
_SEGMENT = [
    ("id", pa.int32()),
    ("category_id", pa.int64()),
    ("area", pa.int64()),
    ("bbox", pa.list_(pa.int32())),
    ("iscrowd", pa.int8()),
    ("score", pa.float64()),
]
# kind of results → its columns; lists are null where there is an error
_COLUMNS = {
    "panoptic": [("panoptic_png", pa.binary()), ("segments", pa.list_(pa.struct(_SEGMENT)))],
    "instance": [
        ("category_ids", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
        ("boxes", pa.list_(pa.list_(pa.float64()))),  # x, y, width, height
        ("rles", pa.list_(pa.string())),  # counts of COCO's run lengths, of (height, width)
    ],
    "semantic": [("label_png", pa.binary())],
}


def shard_name(number: int) -> str:
    """The file of a shard; names sort as their numbers do."""
    return f"results-{number:07d}.parquet"


def find_shards(folder: Path) -> list[Path]:
    """The shards in a folder, in their order."""
    return sorted(folder.glob(_SHARDS))


def result_schema(tasks: Sequence[str], categories: Sequence[Category]) -> pa.Schema:
    """The columns of results, and their metadata.

    Args:
        tasks: ``panoptic``, ``instance`` and ``semantic``, those that the model gives.
        categories: of the model.
    """
    columns = _IMAGE + [column for task in tasks for column in _COLUMNS[task]]
    about = {"tasks": list(tasks), "categories": category_records(categories)}
    return pa.schema(columns, with_about(about))


def with_about(about: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Metadata of a schema that `read_about` reads."""
    return {_ABOUT: json.dumps(about).encode()}


def read_about(path: Path) -> dict[str, Any]:
    """What the metadata of a Parquet file say.

    Raises:
        ValueError: naming the file: it is no Parquet file, or none of this package's.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[_ABOUT])
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no file that knet predict --input wrote: {error!r}") from error


def error_row(image: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The row of an image without results."""
    return {**image, "error": text}


def encode_row(image: Mapping[str, Any], found: EncodedResults) -> dict[str, Any]:
    """The row of an image with its results.

    Args:
        image: ``image_id``, ``path`` and ``file_name``.
        found: what there is of it.
    """
    row = {**image, "height": found.size[0], "width": found.size[1]}
    row.update(panoptic_png=found.panoptic_png, segments=found.segments, label_png=found.label_png)
    if found.instances is not None:
        row["category_ids"] = [one["category_id"] for one in found.instances]
        row["scores"] = [one["score"] for one in found.instances]
        row["boxes"] = [one["bbox"] for one in found.instances]
        row["rles"] = [one["segmentation"]["counts"] for one in found.instances]
    return row


def decode_row(row: Mapping[str, Any]) -> EncodedResults:
    """The results of a row without error."""
    size = (row["height"], row["width"])
    instances = None
    if row.get("rles") is not None:
        parts = zip(row["category_ids"], row["boxes"], row["scores"], row["rles"])
        instances = [
            {
                "category_id": category,
                "bbox": box,
                "score": score,
                "segmentation": {"size": list(size), "counts": counts},
            }
            for category, box, score, counts in parts
        ]
    return EncodedResults(
        size=size,
        panoptic_png=row.get("panoptic_png"),
        segments=row.get("segments"),
        instances=instances,
        label_png=row.get("label_png"),
    )


def read_rows(shards: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The rows of shards in their order, with one row group in memory."""
    for path in shards:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group).to_pylist()
