"""How well objects of videos are found and keep their ids: video panoptic quality and id switches.

Video panoptic quality (VPQ; Kim, Woo, Lee, Kweon: "Video Panoptic Segmentation", CVPR 2020) is
panoptic quality of tubes: what has one id, and one class, within a window of frames. Windows slide
over the video frame by frame; for each length there is a quality, and VPQ is their mean. Of length
1 it is panoptic quality of single frames, which knows no identities.

An id switch, as CLEAR MOT counts it (Bernardin, Stiefelhagen, 2008), is a true object that is found
under another id than when it was last found, however long ago. A true object is found where the
mask of a thing of any class overlaps it by more than one half. As an object that is never found
again has no switches, the share that is found belongs beside their number.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from knet.data.coco_file import load_json
from knet.data.panoptic_png import read_panoptic_png
from knet.evaluation.panoptic_quality import (
    VOID,
    PanopticStatistics,
    count_overlaps,
    match_segments,
)

__all__ = ["WINDOWS", "VideoFrame", "VideoScores", "read_video", "video_scores"]

WINDOWS = (1, 5, 10, 15)


@dataclass
class VideoFrame:
    """Truth or results of one frame.

    Attributes:
        number: of the frame.
        ids: (H, W) integers, the same object has the same id in all frames; 0 for none.
        segments: a record for each id with ``id`` and ``category_id``.
    """

    number: int
    ids: np.ndarray
    segments: Sequence[Mapping[str, Any]]


@dataclass
class VideoScores:
    """Counts of any number of videos.

    Attributes:
        tubes: statistics of each window length.
        visible: true objects, counted in every frame in which they have a pixel.
        found: those that are found.
        switches: id switches.
        objects: true objects.
        ids: of things, given to whatever.
    """

    tubes: dict[int, PanopticStatistics] = field(default_factory=dict)
    visible: int = 0
    found: int = 0
    switches: int = 0
    objects: int = 0
    ids: int = 0

    def quality(self, category_ids: Iterable[int]) -> float:
        """VPQ in [0, 1], the mean over the window lengths and the categories that occur."""
        chosen = list(category_ids)
        values = [statistics.average(chosen)["pq"] for statistics in self.tubes.values()]
        return sum(values) / max(1, len(values))

    def add(
        self,
        truth: Iterable[VideoFrame],
        found: Iterable[VideoFrame],
        *,
        things: Iterable[int],
        windows: Sequence[int] = WINDOWS,
    ) -> None:
        """Count one video.

        Args:
            truth, found: its frames in order; of a frame that is not in `found`, nothing is.
            things: category ids of things.
            windows: lengths in frames; shorter videos are one window.

        Raises:
            ValueError: sizes differ, or there are frames without truth.
        """
        frames = list(_overlaps(truth, found, frozenset(things)))
        for length in windows:
            statistics = self.tubes.setdefault(length, PanopticStatistics())
            for tubes in _windows(frames, length):
                statistics += tubes
        last: dict[Any, Any] = {}
        names: set[Any] = set()
        for frame in frames:
            self.visible += len(frame.true_things)
            names |= frame.found_things
            for true, match in frame.matches.items():
                self.found += 1
                self.switches += last.get(true, match) != match
                last[true] = match
        self.objects += len({key for frame in frames for key in frame.true_things})
        self.ids += len(names)


def video_scores(
    folders: Iterable[tuple[str | os.PathLike[str], str | os.PathLike[str]]],
    *,
    windows: Sequence[int] = WINDOWS,
) -> dict[str, float]:
    """Scores of the results of videos in files.

    Args:
        folders: of the truth and the results of each video, as `read_video` takes them.
        windows: see `VideoScores`.

    Returns:
        ``VPQ``, ``VPQ_things``, ``VPQ_stuff`` and ``PQ`` (of single frames) in percent,
        ``switches``, ``found`` in percent of what can be seen, ``objects`` and ``ids``.

    Raises:
        ValueError: as `VideoScores.add`, or no video is given.
    """
    scores, categories = VideoScores(), None
    for truth, found in folders:
        content = load_json(str(Path(truth) / "panoptic.json"))
        categories = {c["id"]: bool(c["isthing"]) for c in content["categories"]}
        of_things = [key for key, is_thing in categories.items() if is_thing]
        scores.add(read_video(truth), read_video(found), things=of_things, windows=(1, *windows))
    if categories is None:
        raise ValueError("no video to score")
    things = [key for key, is_thing in categories.items() if is_thing]
    stuff = [key for key, is_thing in categories.items() if not is_thing]
    single = scores.tubes[1].average(categories)["pq"]
    if 1 not in windows:
        del scores.tubes[1]
    return {
        "VPQ": 100 * scores.quality(categories),
        "VPQ_things": 100 * scores.quality(things),
        "VPQ_stuff": 100 * scores.quality(stuff),
        "PQ": 100 * single,
        "switches": scores.switches,
        "found": 100 * scores.found / max(1, scores.visible),
        "objects": scores.objects,
        "ids": scores.ids,
    }


def read_video(folder: str | os.PathLike[str]) -> Iterator[VideoFrame]:
    """The frames of a folder with ``panoptic.json`` and ``panoptic/``, by ascending image id."""
    content = load_json(str(Path(folder) / "panoptic.json"))
    for record in sorted(content["annotations"], key=lambda record: record["image_id"]):
        ids = read_panoptic_png(str(Path(folder) / "panoptic" / record["file_name"]))
        yield VideoFrame(record["image_id"], ids, record["segments_info"])


@dataclass
class _Overlaps:
    """What truth and results of a frame share; ids are rows of segments with id and category."""

    pixels: Counter[tuple[int, int]]
    true: dict[int, Mapping[str, Any]]
    found: dict[int, Mapping[str, Any]]
    true_things: set[int]
    found_things: set[int]
    matches: dict[int, int]


def _overlaps(
    truth: Iterable[VideoFrame], found: Iterable[VideoFrame], things: frozenset[int]
) -> Iterator[_Overlaps]:
    results = iter(found)
    following = next(results, None)
    # a result whose class changes is another tube from then on, but the same object
    tubes: dict[tuple[int, int], int] = {}
    for frame in truth:
        if following is not None and following.number < frame.number:
            raise ValueError(f"there is no truth of frame {following.number}")
        if following is not None and following.number == frame.number:
            current, following = following, next(results, None)
        else:
            current = VideoFrame(frame.number, np.zeros_like(frame.ids), [])
        if frame.ids.shape != current.ids.shape:
            raise ValueError(
                f"frame {frame.number}: the results have the size {current.ids.shape}, the truth "
                f"{frame.ids.shape}"
            )
        true = {s["id"]: s for s in frame.segments}
        by_id = {s["id"]: s for s in current.segments}
        pixels = count_overlaps(frame.ids, current.ids)
        key_of = {VOID: VOID}
        for key, segment in by_id.items():
            tube = (key, segment["category_id"])
            key_of[key] = tubes.setdefault(tube, len(tubes) + 1)
        yield _Overlaps(
            pixels=Counter({(a, key_of[b]): n for (a, b), n in pixels.items()}),
            true=true,
            found={key_of[key]: segment for key, segment in by_id.items()},
            true_things={key for key, s in true.items() if s["category_id"] in things},
            found_things={key for key, s in by_id.items() if s["category_id"] in things},
            matches=_matches(pixels, true, by_id, things),
        )
    if following is not None:
        raise ValueError(f"there is no truth of frame {following.number}")


def _matches(
    pixels: Counter[tuple[int, int]],
    true: Mapping[int, Mapping[str, Any]],
    found: Mapping[int, Mapping[str, Any]],
    things: frozenset[int],
) -> dict[int, int]:
    """For each true thing that is found the id under which it is; at most one can be."""
    true_areas: Counter[int] = Counter()
    found_areas: Counter[int] = Counter()
    for (a, b), count in pixels.items():
        true_areas[a] += count
        found_areas[b] += count
    return {
        a: b
        for (a, b), count in pixels.items()
        if a in true
        and b in found
        and true[a]["category_id"] in things
        and found[b]["category_id"] in things
        and count > 0.5 * (true_areas[a] + found_areas[b] - count - pixels[VOID, b])
    }


def _windows(frames: Sequence[_Overlaps], length: int) -> Iterator[PanopticStatistics]:
    """Statistics of each window's tubes."""
    window: deque[_Overlaps] = deque(maxlen=length)
    for count, frame in enumerate(frames, start=1):
        window.append(frame)
        if len(window) == length or count == len(frames):
            pixels: Counter[tuple[int, int]] = Counter()
            true: dict[int, Mapping[str, Any]] = {}
            found: dict[int, Mapping[str, Any]] = {}
            for part in window:
                pixels.update(part.pixels)
                true.update(part.true)
                found.update(part.found)
            yield match_segments(pixels, true, found)
