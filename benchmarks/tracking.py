"""Ids of objects over frames: linked by kernels, by overlap alone, and with kernels carried on.

    python benchmarks/tracking.py --model FOLDER                 # 20 clips, some minutes
    python benchmarks/tracking.py --model FOLDER --frames 5000   # memory of a long video

The clips are drawn (`knet.data.shapes.clip`): things of two classes pass behind a bar and each
other, and vanish whole at least twice a clip. All sides see the same videos through the same model,
and give ids to new objects, remember and forget them alike; what differs is who is linked to whom.
The seed of the clips is not one that thresholds were chosen on.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
from workload import resident_memory, table

from knet.data.shapes.clip import draw_clip
from knet.data.shapes.clip_writer import write_clips
from knet.evaluation.video_quality import video_scores
from knet.files import write_json
from knet.predict.run import predict_video
from knet.predict.video import VideoReader, VideoWriter
from knet.predictor import KNetPredictor
from knet.tracking import FollowedFiles, LinkOptions, ObjectFollower

OURS = LinkOptions()
# overlap alone, whatever the class, with the threshold that switches least
BY_OVERLAP = replace(OURS, similarity=0.0, overlap=1.0, other_class=0.0, least=0.02)
SIDES: Mapping[str, Mapping[str, Any]] = {
    "overlap of masks": {"options": BY_OVERLAP},
    "kernels": {},
    "kernels, carried on": {"carry_kernels": True},
}


def compare_links(
    predictor: KNetPredictor, *, clips: int = 20, seed: int = 0, num_frames: int = 48
) -> list[dict[str, Any]]:
    """A row for each side: id switches, VPQ and what belongs to them."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        truth = write_clips(folder, num_clips=clips, seed=seed, num_frames=num_frames)
        hidings = sum(
            draw_clip(seed, index, num_frames=num_frames).hidings for index in range(clips)
        )
        names = sorted(path.name for path in truth.iterdir() if path.is_dir())
        for side, options in SIDES.items():
            found, busy = Path(folder) / side, time.process_time()
            for name in names:
                follow_video(predictor, truth / f"{name}.avi", found / name, **options)
            busy = time.process_time() - busy
            scores = video_scores((truth / name, found / name) for name in names)
            row = {"linked by": side, "vanish and come back": hidings, **scores}
            rows.append({**row, "CPU ms a frame": 1000 * busy / clips / num_frames})
    return rows


def follow_video(
    predictor: KNetPredictor, video: Path, folder: Path, **options: Any
) -> ObjectFollower:
    """The results of a video as files, without drawings."""
    follower = ObjectFollower(predictor, **options)
    categories = predictor.categories
    with (
        VideoReader(str(video)) as reader,
        FollowedFiles(str(folder), categories=categories, video=video.stem) as files,
    ):
        for frame in reader:
            name = f"{video.stem}_{reader.number:06d}.png"
            files.add(follower(frame, reader.number), image_id=reader.number, file_name=name)
    return follower


def memory_of_a_long_video(predictor: KNetPredictor, frames: int) -> list[dict[str, Any]]:
    """Resident memory in each tenth of a video that is followed and written as files."""
    clip = draw_clip(1, 0)
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "long.mp4"
        with VideoWriter(video, frames_a_second=12) as writer:
            for number in range(frames):  # back and forth
                there = number % (2 * len(clip.images) - 2)
                writer.add(clip.images[min(there, 2 * len(clip.images) - 2 - there)])
        samples: list[tuple[int, float]] = []
        done = threading.Event()
        results = Path(folder) / "found"

        def watch() -> None:
            while True:
                ended = done.wait(0.5)
                written = sum(1 for _ in (results / "panoptic").glob("*.png"))
                samples.append((written, resident_memory()))
                if ended:
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            predict_video(predictor, str(video), results=str(results), follow=True)
        finally:
            done.set()
            watcher.join()
    rows = []
    for tenth in range(10):
        low, high = tenth * frames / 10, (tenth + 1) * frames / 10
        inside = [memory for count, memory in samples if low < count <= high]
        if inside:
            rows.append({"frames to": int(high), "resident, MB": max(inside) / 1e6})
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a panoptic model of shapes")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the clips")
    parser.add_argument("--frames", type=int, help="measure memory over so many frames instead")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    predictor = KNetPredictor.from_pretrained(args.model, device="cpu")
    if args.frames:
        rows = memory_of_a_long_video(predictor, args.frames)
    else:
        rows = compare_links(predictor, clips=args.clips, seed=args.seed)
    print(table(rows))
    if args.json:
        write_json(args.json, rows, indent=2)


if __name__ == "__main__":
    main()
