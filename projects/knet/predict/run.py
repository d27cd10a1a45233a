"""Pictures, videos and cameras through a model: drawings, result files, or a window.

done = predict_pictures(predictor, ["photos"], output="drawn", results="found")
done = predict_video(predictor, "street.mp4", output="drawn.mp4")
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from knet.data.defects import DataError
from knet.data.images import read_picture, save_image
from knet.errors import UserError
from knet.predict.describe import describe_problem
from knet.predict.drawers import Drawer, FollowingDrawer
from knet.predict.files import find_pictures, output_files, require_unique_stems, writable_folder
from knet.predict.video import VideoReader, VideoWriter, Window
from knet.predictor import KNetPredictor
from knet.results.coco_files import image_ids
from knet.visualization import DRAWN_SCORE, TASKS

__all__ = ["predict_pictures", "predict_video"]

Model = KNetPredictor | Callable[[], KNetPredictor]

_TITLE = "K-Net"
_QUALITY = {".jpg": 92, ".jpeg": 92, ".webp": 92}


@dataclass
class Predicted:
    """What a run did.

    Attributes:
        count: pictures or frames that are done.
        total: pictures that there were; None for frames.
        problems: how many could not be read, each of which was told.
        codec: of the video that was written.
        found: what is in each picture, in words, by its path.
        files: the drawing of each picture, by its path.
    """

    count: int = 0
    total: int | None = None
    problems: int = 0
    codec: str | None = None
    found: dict[Path, str] = field(default_factory=dict)
    files: dict[Path, Path] = field(default_factory=dict)


def tell(text: str) -> None:
    """Print a line to the standard error, beside a progress bar."""
    tqdm.write(text, file=sys.stderr)


def prediction_opts(*, task: str | None = None, threshold: float | None = None) -> list[Any]:
    """Config keys and values of a model that is to give less.

    Args:
        task: the one kind of results; None keeps those of the config.
        threshold: instances, and things of panoptic scenes, with a lower score are left out; None
            keeps the thresholds of the config.
    """
    opts: list[Any] = []
    if threshold is not None:
        for key in ("THING_THRESH", "SCORE_THRESH"):
            opts += [f"MODEL.KNET.TEST.{key}", threshold]
    for kind in TASKS if task else ():
        opts += [f"MODEL.KNET.TEST.{kind.upper()}_ON", kind == task]
    return opts


def predict_pictures(
    model: Model,
    inputs: Sequence[str],
    *,
    output: str | None = None,
    results: str | None = None,
    task: str | None = None,
    score_threshold: float = DRAWN_SCORE,
    say: Callable[[str], None] = tell,
) -> Predicted:
    """Run a model on pictures; without `output` and `results` a window shows them one by one.

    Args:
        model: or a function that loads it, called once inputs and outputs are known to be good.
        inputs: files, folders (the pictures in them) or globs.
        output: folder for the drawings, or the one file; what is there is replaced.
        results: folder for `ResultFiles`, which must hold none.
        task: what is drawn: "panoptic", "instance" or "semantic"; the richest by default.
        score_threshold: instances with a lower score are not drawn.
        say: told of each picture that cannot be read, and of files in folders that are left out.

    Raises:
        UserError: there is no picture, or something cannot be written. What was finished is kept.
    """
    found = find_pictures(inputs)
    pictures = found.pictures
    done = Predicted(total=len(pictures), problems=len(found.problems))
    if not pictures:
        raise UserError("; ".join(found.problems) or "no picture is named")
    for problem in found.problems:
        say(f"error: {problem}")
    for note in found.left_out:
        say(note)
    outputs = output_files(pictures, output) if output else None
    if results:
        require_unique_stems(pictures, "--results")
        writable_folder(results, "--results")
    ids = image_ids(pictures)
    with contextlib.ExitStack() as stack:
        window = None
        if not output and not results:
            window = stack.enter_context(Window(_TITLE))
        drawer = Drawer(loaded(model), task, score_threshold)
        limit = drawer.predictor.cfg.INPUT.MAX_PIXELS
        files = stack.enter_context(drawer.result_files(results)) if results else None
        hidden = window is not None or len(pictures) == 1
        for k, path in enumerate(tqdm(pictures, unit="picture", disable=hidden)):
            try:
                image = read_picture({"file_name": str(path)}, image_format="RGB", max_pixels=limit)
            except DataError as error:
                say(f"error: {describe_problem(path, error)}")
                done.problems += 1
                continue
            given = drawer.predictor(image)
            if files is not None:
                with _writing(results):
                    files.add(given, image_id=ids[k], file_name=path.name)
            if outputs is not None:
                drawn = drawer.draw(image, given, enlarge=True)
                with _writing(outputs[k]):
                    quality = _QUALITY.get(outputs[k].suffix.lower())
                    options = {} if quality is None else {"quality": quality}
                    save_image(outputs[k], drawn, **options)
                done.files[path] = outputs[k]
            done.count += 1
            done.found[path] = drawer.describe(given)
            if window is not None:
                drawn = drawer.draw(image, given, enlarge=True)
                if not window.show(drawn, milliseconds=0):
                    break
    return done


def predict_video(
    model: Model,
    source: str | int,
    *,
    output: str | None = None,
    results: str | None = None,
    task: str | None = None,
    score_threshold: float = DRAWN_SCORE,
    follow: bool = False,
    carry_kernels: bool = False,
    say: Callable[[str], None] = tell,
) -> Predicted:
    """Run a model on every frame of a video, or of a camera until its window is closed.

    Args:
        model: see `predict_pictures`, as all but these:
        source: a file, or the number of a camera, which is for a window.
        output: a folder, or the new video, which must not be there.
        follow: objects keep their ids and colours from frame to frame (`ObjectFollower`); files are
            those of panoptic scenes with these ids, and `TrackFile`'s ``tracks.json``.
        carry_kernels: with `follow`, each frame starts from the kernels of the one before.

    Raises:
        UserError: the video cannot be read, something cannot be written, or the model has no
            objects to follow.
    """
    if isinstance(source, int) and (output or results):
        raise UserError("--webcam is for a window: leave --output and --results out")
    source = os.path.expanduser(source) if isinstance(source, str) else source
    done, stopped, stem = Predicted(), False, Path(str(source)).stem
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(VideoReader(source))
        writer = window = files = None
        if output:
            (file,) = output_files([Path(str(source))], output, suffix=".mp4")
            writer = VideoWriter(file, frames_a_second=reader.frames_a_second)
        if results:
            writable_folder(results, "--results")
        if not output and not results:
            window = stack.enter_context(Window(_TITLE))
        predictor = loaded(model)
        if follow:
            drawer: Drawer = FollowingDrawer(
                predictor, task, score_threshold, carry_kernels=carry_kernels
            )
        else:
            drawer = Drawer(predictor, task, score_threshold)
        if results:
            files = stack.enter_context(drawer.result_files(results, stem))
        if writer is not None:
            stack.enter_context(writer)
        progress = stack.enter_context(tqdm(reader, total=reader.num_frames, unit="frame"))
        for done.count, frame in enumerate(progress, start=1):
            if reader.lost is not None:
                first, last = reader.lost
                what = f"frame {first}" if first == last else f"frames {first} to {last}"
                say(f"error: {source}: {what} cannot be decoded, and are left out")
                done.problems += last - first + 1
            given = drawer.results(frame, reader.number)
            if files is not None:
                with _writing(results):
                    name = f"{stem}_{reader.number:06d}.png"
                    files.add(given, image_id=reader.number, file_name=name)
            if writer is not None:
                writer.add(drawer.draw(frame, given, enlarge=False))
            if window is not None:
                drawn = drawer.draw(frame, given, enlarge=True)
                if not window.show(drawn, milliseconds=1):
                    stopped = True
                    break
    # headers are often wrong by a frame or two, of long videos too
    total = reader.num_frames
    if total is not None and not stopped and reader.number < total - 2:
        say(
            f"error: {source} breaks off: its header tells of {total} frames, {done.count} were "
            "read"
        )
        done.problems += 1
    elif total is not None and not stopped and reader.number < total:
        say(f"{source}: frame {reader.number} is the last, though its header tells of {total}")
    if isinstance(source, int) and not stopped:
        say(f"error: camera {source} gives no frames any more")
        done.problems += 1
    done.codec = None if writer is None else writer.codec
    return done


def loaded(model: Model) -> KNetPredictor:
    """The model, made now if what makes it is given."""
    return model if isinstance(model, KNetPredictor) else model()


@contextlib.contextmanager
def _writing(path: str | os.PathLike[str] | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
