#!/usr/bin/env python3
"""Run K-Net on pictures, a video or a webcam, and draw what it finds.

    python demo/demo.py --config-file configs/coco/panoptic/knet_r50_fpn_3x.yaml \\
        --input photos/*.jpg --output drawn --opts MODEL.WEIGHTS model_final.pth
    python demo/demo.py --predictor FOLDER --task instance --confidence-threshold 0.5 \\
        --video-input street.mp4 --output drawn.mp4 --results found

The flags are those of Detectron2's demo, and --predictor, --task and --results. Without --output
and --results a window shows the pictures one by one (any key: next, Esc or q: end). The exit status
is 1 if a picture could not be read, 2 if what was asked for cannot be done or written, 130 after
Ctrl-C; what was finished until then is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import knet  # noqa: F401  (before Detectron2)

# isort: split
import numpy as np
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from knet.config_file import check_pairs
from knet.data.defects import DataError
from knet.data.images import read_picture, save_image
from knet.demo.files import find_pictures, output_files, require_unique_stems, writable_folder
from knet.demo.model_arguments import add_model_arguments, load_predictor
from knet.demo.video import CODECS, VideoReader, VideoWriter, Window
from knet.errors import UserError, run_command
from knet.predictor import KNetPredictor
from knet.results.coco_files import ResultFiles, image_ids
from knet.visualization import DRAWN_SCORE, TASKS, draw_result

_TITLE = "K-Net"
_READABLE = 320  # pixels of the shorter side
_QUALITY = {".jpg": 92, ".jpeg": 92, ".webp": 92}


def get_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--input", nargs="+", metavar="PICTURE", help="files, folders, or globs in quotes"
    )
    what.add_argument("--video-input", metavar="VIDEO", help="a video file; audio is not kept")
    what.add_argument("--webcam", action="store_true", help="the first camera, in a window")
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="a folder for the drawings, or the one file; pictures are replaced, a video is not. "
        f"Codecs of videos are tried in the order {', '.join(CODECS)}; mp4 is the default",
    )
    parser.add_argument(
        "--results",
        metavar="FOLDER",
        help="write results as files: COCO panoptic PNGs and JSON, COCO results JSON, label PNGs",
    )
    parser.add_argument(
        "--task",
        choices=list(TASKS),
        help="what to find; by default the richest that the model gives is drawn, and --results "
        "has everything",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="SCORE",
        help="instances, and things of panoptic scenes, with a lower score are left out of "
        "drawings and results (default: as configured, and instances below "
        f"{DRAWN_SCORE} are not drawn)",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config keys and values; comes last"
    )
    return parser


@dataclass
class Drawer:
    """Runs a model and draws one kind of its results."""

    predictor: KNetPredictor
    task: str
    drawn_score: float

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Drawer:
        """Load the model; UserError if there is none, or it cannot do the task."""
        opts: list[Any] = []
        threshold = args.confidence_threshold
        if threshold is not None:
            for key in ("THING_THRESH", "SCORE_THRESH"):
                opts += [f"MODEL.KNET.TEST.{key}", threshold]
        opts += args.opts
        for task in TASKS if args.task else ():
            opts += [f"MODEL.KNET.TEST.{task.upper()}_ON", task == args.task]
        predictor = load_predictor(args, opts)
        test = predictor.cfg.MODEL.KNET.TEST
        given = [task for task in TASKS if test[f"{task.upper()}_ON"]]
        if not given:
            raise UserError("the config turns all results off: name one with --task")
        task = given[0]  # the richest
        if task == "semantic" and not predictor.metadata.get("stuff_classes"):
            raise UserError("this model finds objects only: take --task instance")
        if not args.results:
            predictor.only(task)
        # with a threshold the model has left out what is below
        return cls(predictor, task, DRAWN_SCORE if threshold is None else 0.0)

    def result_files(self, folder: str) -> ResultFiles:
        """Files of the model's classes in a folder."""
        return ResultFiles(folder, categories=self.predictor.categories)

    def draw(self, image: np.ndarray, results: Any, *, enlarge: bool) -> np.ndarray:
        """Small pictures may be enlarged, so that the labels are readable."""
        return draw_result(
            image,
            results[TASKS[self.task]],
            self.predictor.metadata,
            task=self.task,
            score_threshold=self.drawn_score,
            min_side=_READABLE if enlarge else 1,
        )


@contextlib.contextmanager
def _writing(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


class Problems:
    """Told at once, beside the progress bar, and counted."""

    count = 0

    def add(self, problem: object) -> None:
        """Print one to the standard error."""
        self.count += 1
        tqdm.write(f"demo.py: error: {problem}", file=sys.stderr)

    def note(self, text: str) -> None:
        """Print what is worth knowing and no error."""
        tqdm.write(f"demo.py: {text}", file=sys.stderr)


def run_on_pictures(args: argparse.Namespace, problems: Problems) -> str:
    """Draw every picture; returns what was done."""
    found = find_pictures(args.input)
    pictures = found.pictures
    for problem in found.problems:
        problems.add(problem)
    for note in found.left_out:
        problems.note(note)
    if not pictures:
        raise UserError(f"{', '.join(args.input)}: nothing to read")
    outputs = output_files(pictures, args.output) if args.output else None
    if args.results:
        require_unique_stems(pictures, "--results")
        writable_folder(args.results, "--results")
    done, ids = 0, image_ids(pictures)
    with contextlib.ExitStack() as stack:
        window = None
        if not args.output and not args.results:
            window = stack.enter_context(Window(_TITLE))
        drawer = Drawer.from_arguments(args)
        limit = drawer.predictor.cfg.INPUT.MAX_PIXELS
        files = stack.enter_context(drawer.result_files(args.results)) if args.results else None
        progress = stack.enter_context(tqdm(pictures, unit="picture", disable=window is not None))
        for k, path in enumerate(progress):
            try:
                image = read_picture({"file_name": str(path)}, image_format="RGB", max_pixels=limit)
            except DataError as error:
                problem = error.defect.problem if error.defect else str(error)
                problems.add(problem if str(path) in problem else f"{path}: {problem}")
                continue
            results = drawer.predictor(image)
            if files is not None:
                with _writing(args.results):
                    files.add(results, image_id=ids[k], file_name=path.name)
            if outputs is not None:
                drawn = drawer.draw(image, results, enlarge=True)
                with _writing(outputs[k]):
                    quality = _QUALITY.get(outputs[k].suffix.lower())
                    options = {} if quality is None else {"quality": quality}
                    save_image(outputs[k], drawn, **options)
            done += 1
            if window is not None:
                drawn = drawer.draw(image, results, enlarge=True)
                if not window.show(drawn, milliseconds=0):
                    break
    return f"{done} of {len(pictures)} pictures"


def run_on_frames(args: argparse.Namespace, problems: Problems) -> str:
    """Draw every frame of a video or camera; returns what was done."""
    if args.webcam and (args.output or args.results):
        raise UserError("--webcam is for a window: leave --output and --results out")
    source = 0 if args.webcam else os.path.expanduser(args.video_input)
    count, stopped, stem = 0, False, Path(str(source)).stem
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(VideoReader(source))
        writer = window = files = None
        if args.output:
            (output,) = output_files([Path(str(source))], args.output, suffix=".mp4")
            writer = VideoWriter(output, frames_a_second=reader.frames_a_second)
        if args.results:
            writable_folder(args.results, "--results")
        if not args.output and not args.results:
            window = stack.enter_context(Window(_TITLE))
        drawer = Drawer.from_arguments(args)
        if args.results:
            files = stack.enter_context(drawer.result_files(args.results))
        if writer is not None:
            stack.enter_context(writer)
        progress = stack.enter_context(tqdm(reader, total=reader.num_frames, unit="frame"))
        for count, frame in enumerate(progress, start=1):
            results = drawer.predictor(frame)
            if files is not None:
                with _writing(args.results):
                    files.add(results, image_id=count, file_name=f"{stem}_{count:06d}.png")
            if writer is not None:
                writer.add(drawer.draw(frame, results, enlarge=False))
            if window is not None:
                drawn = drawer.draw(frame, results, enlarge=True)
                if not window.show(drawn, milliseconds=1):
                    stopped = True
                    break
    # headers are often wrong by a frame or two, of long videos too
    total = reader.num_frames
    if total is not None and not stopped and count < total - 2:
        problems.add(f"{source} breaks off: its header tells of {total} frames, {count} were read")
    codec = "" if writer is None else f" (codec {writer.codec}, no audio)"
    return f"{count} frames{codec}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = get_parser()
    args = parser.parse_args(arguments)
    if args.confidence_threshold is not None and not 0 <= args.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold {args.confidence_threshold}: scores are 0 to 1")
    setup_logger(name="knet")
    return run_command("demo.py", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    check_pairs(args.opts)  # a flag among them is missing elsewhere
    problems = Problems()
    done = (run_on_pictures if args.input else run_on_frames)(args, problems)
    folders = " and ".join(filter(None, (args.output, args.results)))
    print(f"{done} -> {folders or 'window'}; {problems.count} errors")
    return 1 if problems.count else 0


if __name__ == "__main__":
    sys.exit(main())
