"""Find objects and scenes in pictures or a video, and draw them.

    knet predict photo.jpg --model panoptic_r50_3x
    knet predict photos 'more/*.png' --config-file my.yaml --weights model_final.pth --results found
    knet predict --video street.mp4 --model panoptic_r50_3x --results found
    knet predict city.tif --tiles 1024 --overlap 128 --model FOLDER
    knet predict --dataset coco_2017_val_panoptic --images 139 285 --model FOLDER
    knet predict --input 'shards/*.tar' --output found --engine ray --workers 8 --model FOLDER

--video follows the objects of a video: each keeps its id and colour. With --tiles pictures may have
any size, and results are files. --dataset draws photo, ground truth and prediction side by side.
--input is for any number of pictures: it draws nothing, and writes Parquet shards; the same call
goes on where it stopped.

The exit status is 1 if a picture or a frame could not be read, 2 if what was asked for cannot be
done or written, 130 after Ctrl-C; what was finished until then is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from knet.cli.model_arguments import add_model_arguments, load_predictor, model_opts
from knet.cli.parser import Parser, show_news
from knet.data.custom import register_builtin, require_registered
from knet.data.folders import is_read
from knet.errors import UserError
from knet.predict.drawers import richest_task
from knet.predict.run import (
    Predicted,
    predict_pictures,
    predict_video,
    prediction_opts,
    tell,
)
from knet.predict.sheets import write_sheets
from knet.predict.video import CODECS
from knet.predictor import KNetPredictor
from knet.visualization import DRAWN_SCORE, TASKS

_SHOWN = 8  # pictures whose contents are told


def add_arguments(parser: Parser) -> None:
    """The flags."""
    parser.add_inputs("PICTURE", "files, folders, globs in quotes, or one video")
    add_model_arguments(parser)
    add_prediction_arguments(parser, output="predictions")
    parser.add_argument("--webcam", action="store_true", help="the first camera, in a window")
    parser.add_argument(
        "--video",
        action="store_true",
        help="the input is one video (or --webcam), whose objects keep their ids and colours from "
        "frame to frame; --results then has panoptic PNGs of these ids and tracks.json",
    )
    parser.add_argument(
        "--carry-kernels",
        action="store_true",
        help="with --video, each frame starts from the kernels that found the objects of the one "
        "before",
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="draw pictures of a data set beside their ground truth"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--images", nargs="+", metavar="ID", help="of the data set: image ids, or positions from 0"
    )
    which.add_argument(
        "--num", type=int, metavar="N", help="pictures from the start of the data set (8)"
    )
    large = parser.add_argument_group("pictures of any size")
    large.add_argument(
        "--tiles",
        type=int,
        metavar="N",
        help="cut pictures into tiles of N pixels a side; --output gets a label TIFF, COCO's JSON, "
        "a table and a small drawing of each",
    )
    large.add_argument(
        "--overlap", type=int, metavar="N", help="pixels that neighbouring tiles share (tiles / 8)"
    )
    many = parser.add_argument_group("any number of pictures")
    many.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="tars, folders, globs in quotes, lists (.txt), Parquet files of the column path; "
        "results go to --output as Parquet, with --results FOLDER also as COCO's files",
    )
    many.add_argument(
        "--engine", choices=("plain", "ray"), help="one loop in this process (default), or Ray Data"
    )
    many.add_argument("--workers", type=int, metavar="N", help="with Ray; by default all that fit")
    many.add_argument(
        "--gpus-per-worker", type=float, metavar="N", help="with Ray; 0.5: two share one"
    )
    many.add_argument(
        "--shard-size",
        type=int,
        metavar="N",
        help="pictures a file of results (8 to 1,000, so that there are some hundred files)",
    )
    many.add_argument(
        "--retry-errors", action="store_true", help="do shards that have errors once more"
    )


def add_prediction_arguments(parser: argparse.ArgumentParser, *, output: str | None) -> None:
    """What is drawn and written, as `demo/demo.py` takes it too."""
    parser.add_argument(
        "--output",
        metavar="PATH",
        default=output,
        help="a folder for the drawings, or the one file; pictures are replaced, a video is not. "
        f"Codecs of videos are tried in the order {', '.join(CODECS)}; mp4 is the default"
        + (" (%(default)s)" if output else ""),
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
        type=_score,
        metavar="SCORE",
        help="instances, and things of panoptic scenes, with a lower score are left out of "
        "drawings and results (default: as configured, and instances below "
        f"{DRAWN_SCORE} are not drawn)",
    )


def loader(args: argparse.Namespace) -> Callable[[], KNetPredictor]:
    """A function that loads the model of the arguments, which gives what they ask for."""
    opts = _opts(args)

    def load() -> KNetPredictor:
        predictor = load_predictor(args, opts)
        if not args.results:
            predictor.only(richest_task(predictor))
        return predictor

    return load


def _opts(args: argparse.Namespace) -> list[Any]:
    threshold = prediction_opts(threshold=args.confidence_threshold)
    return [*threshold, *model_opts(args), *prediction_opts(task=args.task)]


def drawn_score(args: argparse.Namespace) -> float:
    """With a threshold the model has left out what is below."""
    return DRAWN_SCORE if args.confidence_threshold is None else 0.0


def run(args: argparse.Namespace) -> int:
    """Predict; returns the exit status."""
    show_news()
    if sum(map(bool, (args.inputs, args.webcam, args.dataset, args.input))) != 1:
        raise UserError("name pictures or a video, --webcam, --dataset or --input, one of them")
    if args.video and (args.dataset or args.input):
        raise UserError("--video goes with the name of a video, or with --webcam")
    if args.carry_kernels and not args.video:
        raise UserError("--carry-kernels goes with --video")
    if args.input:
        return _predict_batch(args)
    batch_flags = ("engine", "workers", "gpus_per_worker", "shard_size", "retry_errors")
    for name in batch_flags:
        value = getattr(args, name)
        if value is not None and value is not False:  # 0 is neither
            raise UserError(f"--{name.replace('_', '-')} goes with --input")
    if args.dataset:
        return _draw_dataset(args)
    if args.images or args.num:
        raise UserError("--images and --num are of a --dataset: name pictures without a flag")
    if args.overlap is not None and args.tiles is None:
        raise UserError("--overlap goes with --tiles")
    if args.tiles is not None:
        return _predict_tiles(args)
    # with the flag whatever its name is
    videos = [name for name in args.inputs if args.video or _is_video(name)]
    if videos and len(args.inputs) > 1:
        raise UserError(f"{videos[0]} is a video: it is an input by itself")
    options = {
        "output": None if args.webcam else args.output,
        "results": args.results,
        "score_threshold": drawn_score(args),
        "say": _say,
    }
    if videos or args.webcam:
        source = videos[0] if videos else 0
        follow = {"follow": args.video, "carry_kernels": args.carry_kernels}
        done = predict_video(loader(args), source, **follow, **options)
    else:
        done = predict_pictures(loader(args), args.inputs, **options)
    _tell(done, args)
    return 1 if done.problems else 0


def _predict_tiles(args: argparse.Namespace) -> int:
    from knet.predict.tiles import predict_tiles  # needs rasterio

    if args.webcam or args.video or any(map(_is_video, args.inputs)):
        raise UserError("--tiles are of pictures, not of videos")
    if args.results:
        raise UserError("with --tiles all results go to --output: leave --results out")
    done = predict_tiles(
        functools.partial(load_predictor, args, _opts(args)),
        args.inputs,
        tile=args.tiles,
        overlap=args.overlap,
        output=args.output,
        task=args.task,
        score_threshold=drawn_score(args),
        say=_say,
    )
    _tell(done, args)
    return 1 if done.problems else 0


def _predict_batch(args: argparse.Namespace) -> int:
    from knet.batch.run import predict_batch  # needs pyarrow

    if args.images or args.num or args.tiles:
        raise UserError("--images and --num are of a --dataset, --tiles of single pictures")
    engine = args.engine or "plain"
    if engine != "ray" and (args.workers is not None or args.gpus_per_worker is not None):
        raise UserError("--workers and --gpus-per-worker go with --engine ray")
    opts, gpus = _opts(args), args.gpus_per_worker
    if gpus is None and dict(zip(opts[::2], opts[1::2])).get("MODEL.DEVICE") == "cpu":
        gpus = 0.0
    done = predict_batch(
        functools.partial(load_predictor, args, opts),
        args.input,
        output=args.output,
        engine=engine,
        workers=args.workers,
        gpus_per_worker=gpus,
        shard_size=args.shard_size,
        results=args.results,
        retry_errors=args.retry_errors,
        load_on_cpu=functools.partial(load_predictor, args, [*opts, "MODEL.DEVICE", "cpu"]),
        say=_say,
    )
    places = " and ".join(filter(None, (args.output, args.results)))
    problems = "; the column error tells of those without" if done.errors else ""
    print(
        f"results of {done.images - done.errors:,} of {done.images:,} pictures -> {places} "
        f"({done.shards:,} shards){problems}"
    )
    return 1 if done.errors else 0


def _say(text: str) -> None:
    tell(f"knet predict: {text}")


def _draw_dataset(args: argparse.Namespace) -> int:
    if args.results:
        raise UserError("--results are of pictures: name the data set's folder of pictures")
    predictor = loader(args)()
    register_builtin([args.dataset])
    require_registered(args.dataset)
    paths = write_sheets(
        predictor,
        args.dataset,
        args.output,
        args.images or args.num or 8,
        task=args.task or richest_task(predictor),
        score_threshold=drawn_score(args),
    )
    print("\n".join(paths))
    return 0


def _tell(done: Predicted, args: argparse.Namespace) -> None:
    for path, text in list(done.found.items())[:_SHOWN]:
        print(f"{path.name}: {text}")
    if len(done.found) > _SHOWN:
        print(f"… and {len(done.found) - _SHOWN} more")
    what = f"{done.count} frames" if done.total is None else f"{done.count} of {done.total}"
    if done.total is not None:
        what += " picture" + "s" * (done.total != 1)
    where = str(next(iter(done.files.values()))) if len(done.files) == 1 else args.output
    places = " and ".join(filter(None, (None if args.webcam else where, args.results)))
    codec = f" (codec {done.codec}, no audio)" if done.codec else ""
    problems = f"; {done.problems} could not be read" if done.problems else ""
    print(f"{what}{codec} -> {places or 'window'}{problems}")


def _is_video(name: str) -> bool:
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith("video/") and not is_read(name) and not Path(name).is_dir()


def _score(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: scores are 0 to 1")
