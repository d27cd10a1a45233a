#!/usr/bin/env python3
"""Run K-Net on pictures, a video or a webcam, and draw what it finds.

    python demo/demo.py --config-file configs/coco/panoptic/knet_r50_fpn_3x.yaml \\
        --input photos/*.jpg --output drawn --opts MODEL.WEIGHTS model_final.pth
    python demo/demo.py --predictor FOLDER --task instance --confidence-threshold 0.5 \\
        --video-input street.mp4 --output drawn.mp4 --results found

The flags are those of Detectron2's demo, and --model (or --predictor), --task and --results;
`knet predict` does the same. Without --output and --results a window shows the pictures one by one
(any key: next, Esc or q: end). The exit status is 1 if a picture could not be read, 2 if what was
asked for cannot be done or written, 130 after Ctrl-C; what was finished until then is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from knet.cli.model_arguments import add_model_arguments
from knet.cli.parser import show_news
from knet.cli.predict import add_prediction_arguments, drawn_score, loader
from knet.config_file import check_pairs
from knet.errors import run_command
from knet.predict.run import predict_pictures, predict_video, tell


def get_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser, "--predictor")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--input", nargs="+", metavar="PICTURE", help="files, folders, or globs in quotes"
    )
    what.add_argument("--video-input", metavar="VIDEO", help="a video file; audio is not kept")
    what.add_argument("--webcam", action="store_true", help="the first camera, in a window")
    add_prediction_arguments(parser, output=None)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config keys and values; comes last"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    args = get_parser().parse_args(arguments)
    show_news()
    return run_command("demo.py", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    check_pairs(args.opts)  # a flag among them is missing elsewhere
    options = {
        "output": args.output,
        "results": args.results,
        "score_threshold": drawn_score(args),
        "say": lambda text: tell(f"demo.py: {text}"),
    }
    if args.input:
        done = predict_pictures(loader(args), args.input, **options)
        what = f"{done.count} of {done.total} pictures"
    else:
        done = predict_video(loader(args), 0 if args.webcam else args.video_input, **options)
        what = f"{done.count} frames"
        what += f" (codec {done.codec}, no audio)" if done.codec else ""
    folders = " and ".join(filter(None, (args.output, args.results)))
    print(f"{what} -> {folders or 'window'}; {done.problems} errors")
    return 1 if done.problems else 0


if __name__ == "__main__":
    sys.exit(main())
