"""Objects of a video as a file: each with its masks over the frames, as YouTube-VIS has them."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from knet.classes import Category, category_records
from knet.evaluation.spool import nameless_file
from knet.files import whole_file
from knet.results.coco_files import ResultFiles

__all__ = ["FollowedFiles", "TrackFile"]


@dataclass
class _Track:
    frames: array[int] = field(default_factory=lambda: array("q"))  # in which it is seen
    places: array[int] = field(default_factory=lambda: array("q"))  # of its masks on disk
    categories: Counter[int] = field(default_factory=Counter)
    scores: float = 0.0


class TrackFile:
    """Writes objects of one video; use it in a ``with`` block, whose end writes the file.

    As in YouTube-VIS' annotations there are ``videos`` (one), ``categories`` and ``annotations``:
    an object each with its ``id``, the ``category_id`` that it has most, ``segmentations``,
    ``bboxes`` and ``areas``, of every frame one, null where it is not seen; also ``score``, the
    mean of its scores, with which YouTube-VIS' results can be made of it. Until then the masks are
    on disk.

    Args:
        path: of the file.
        categories: of the model.
        name: of the video.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, categories: Sequence[Category], name: str
    ) -> None:
        self.path = Path(path)
        self._name = name
        self._ids = {(c.is_thing, c.label): c.id for c in categories}
        self._categories = category_records(categories)
        self._masks = nameless_file(self.path.parent)
        self._names = nameless_file(self.path.parent)
        self._size = (0, 0)
        self._count = 0
        self._tracks: dict[int, _Track] = {}

    def __enter__(self) -> TrackFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()  # after an error too: what was finished is kept

    def add(
        self, id_map: np.ndarray, segments: Sequence[Mapping[str, Any]], *, file_name: str
    ) -> None:
        """Take the objects of the next frame.

        Args:
            id_map: (H, W) of their ids.
            segments: records with ``id``, ``isthing``, ``category_id`` (the label) and ``score``;
                those of stuff are left out.
            file_name: of the frame.
        """
        for segment in segments:
            if not segment["isthing"]:
                continue
            rle = mask_util.encode(np.asfortranarray(id_map == segment["id"], np.uint8))
            mask = {
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                "bbox": mask_util.toBbox(rle).tolist(),
                "area": int(mask_util.area(rle)),
            }
            track = self._tracks.setdefault(segment["id"], _Track())
            track.frames.append(self._count)
            track.places.append(self._masks.tell())
            track.categories[self._ids[True, segment["category_id"]]] += 1
            track.scores += float(segment["score"])
            self._masks.write(json.dumps(mask).encode() + b"\n")
        self._names.write(json.dumps(file_name).encode() + b"\n")
        self._size = (int(id_map.shape[0]), int(id_map.shape[1]))
        self._count += 1

    def close(self) -> None:
        """Write the file of all that was added."""
        height, width = self._size
        size = {"width": width, "height": height, "length": self._count}
        with whole_file(self.path) as unfinished, open(unfinished, "w", encoding="utf-8") as f:
            video = json.dumps({"id": 1, "name": self._name, **size})
            f.write(f'{{"videos": [{video[:-1]}, "file_names": [')
            self._names.seek(0)
            for count, line in enumerate(self._names):
                f.write(", " * bool(count) + line.decode().rstrip("\n"))
            f.write(f']}}], "categories": {json.dumps(self._categories)}, "annotations": [')
            for count, (key, track) in enumerate(sorted(self._tracks.items())):
                head = {
                    "id": key,
                    "video_id": 1,
                    "category_id": track.categories.most_common(1)[0][0],
                    "iscrowd": 0,
                    "score": track.scores / len(track.frames),
                    **size,
                }
                f.write(", " * bool(count) + json.dumps(head)[:-1])
                for name, values in (
                    ("segmentations", "segmentation"), ("bboxes", "bbox"), ("areas", "area"),
                ):  # fmt: skip
                    f.write(f', "{name}": [')
                    for frame, value in enumerate(self._values(track, values)):
                        f.write(", " * bool(frame) + json.dumps(value))
                    f.write("]")
                f.write("}")
            f.write("]}\n")

    def _values(self, track: _Track, key: str) -> Iterator[Any]:
        """Of every frame one, None where the object is not seen."""
        next_frame = 0
        for frame, place in zip(track.frames, track.places):
            for _ in range(frame - next_frame):
                yield None
            self._masks.seek(place)
            yield json.loads(self._masks.readline())[key]
            next_frame = frame + 1
        for _ in range(self._count - next_frame):
            yield None


class FollowedFiles(ResultFiles):
    """`ResultFiles` and `TrackFile` of one video.

    Args:
        folder: made if missing; it must hold no results.
        categories: of the model.
        video: its name.

    Raises:
        OSError: the folder holds results, or cannot be written.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, categories: Sequence[Category], video: str
    ) -> None:
        super().__init__(folder, categories=categories)
        path = Path(folder) / "tracks.json"
        self._tracks = TrackFile(path, categories=categories, name=video)

    def add(self, results: Mapping[str, Any], *, image_id: int, file_name: str) -> None:
        """Take the results of the next frame, as `ResultFiles` does."""
        super().add(results, image_id=image_id, file_name=file_name)
        id_map, segments = results["panoptic_seg"]
        self._tracks.add(id_map.cpu().numpy(), segments, file_name=file_name)

    def close(self) -> None:
        """Write the JSON files of all that was added."""
        super().close()
        self._tracks.close()
