"""Run an exported K-Net on pictures: ONNX with onnxruntime, OpenVINO's .xml with openvino.

    knet run model.onnx --input photo.jpg 'more/*.png' folder --output results
    python -m knet_run model.xml --input folder --output results
    knet run model.onnx --input city.tif --output results --tiles 1024

The second form needs the folder knet_run alone, wherever it is copied to. Writes for every
picture an overlay and, as the model gives them, panoptic PNGs with panoptic.json (COCO's formats),
instances.json (COCO results), and semantic PNGs of class ids. With --tiles, which needs rasterio
and tqdm, pictures may have any size: it writes a label TIFF, COCO's JSON, a table and a drawing.

Exit status: 0 if every picture went through, 1 if some did not (the others are kept), 2 if nothing
could be done, 130 after Ctrl-C (what is finished is kept). Files are written whole or not at all.
KNET_TRACEBACK=1 shows where an error came from.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from knet_run.model import Model
from knet_run.pictures import MAX_PIXELS, find_pictures, image_ids, read_picture
from knet_run.results import Writer

_DRAWN_SCORE = 0.3
_TRACEBACK = "KNET_TRACEBACK"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add = parser.add_argument
    add("model", help="file of knet export, .onnx or .xml")
    add("--input", nargs="+", required=True, help="files, globs, folders")
    add("--output", required=True, help="folder for the results")
    add("--confidence-threshold", type=float, default=_DRAWN_SCORE, help="of drawn instances")
    add("--max-pixels", type=int, default=MAX_PIXELS, help="larger pictures are left out")
    add("--devices", nargs="+", metavar="NAME", help="providers of onnxruntime, such as "
        "CUDAExecutionProvider, or a device of OpenVINO, such as GPU")  # fmt: skip
    add("--tiles", type=int, metavar="N", help="cut pictures into tiles of N pixels a side")
    add("--overlap", type=int, metavar="N", help="pixels that neighbours share (tiles / 8)")
    add("--threads", type=int, metavar="N", help="on the CPU; by default the runtime's choice")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="knet run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the model on the pictures; returns the exit status."""
    done = failed = 0
    try:
        pictures = find_pictures(args.input)
        model = Model(args.model, args.devices, threads=args.threads, max_pixels=args.max_pixels)
        if args.tiles is not None:
            return _run_tiles(args, model, pictures)
        writer = Writer(args.output, model, args.confidence_threshold)
        try:
            for path, image_id in zip(pictures, image_ids(pictures)):
                try:
                    image = read_picture(path, model.max_pixels)
                    writer.add(path, image, model(image), image_id=image_id)
                except (ValueError, MemoryError) as error:
                    failed += 1
                    _tell(f"{path}: {str(error) or 'not enough memory'}")
                else:
                    done += 1
                    print(f"{done + failed} of {len(pictures)}: {path}")
        finally:
            writer.close()  # what is finished is kept, whatever stopped the rest
    except (OSError, ValueError, ImportError) as error:
        _tell(error)
        return 1 if done else 2
    _tell_done(done, args.output)
    return int(failed > 0)


def _tell_done(count: int, folder: str) -> None:
    print(f"results of {count} {'picture' if count == 1 else 'pictures'} in {folder}")


def _run_tiles(args: argparse.Namespace, model: Model, pictures: Sequence[Path]) -> int:
    from knet_run.tiles.exported import segmenter_of
    from knet_run.tiles.pictures import segment_pictures  # needs rasterio

    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    done = segment_pictures(
        lambda: segmenter_of(model, model.info, args.confidence_threshold),
        pictures,
        ids=image_ids(pictures),
        folder=folder,
        tile=args.tiles,
        overlap=args.overlap,
        read=lambda path: np.asarray(read_picture(path, model.max_pixels)),
        say=lambda text: print(f"knet run: {text}", file=sys.stderr),
    )
    for path, found in done.found.items():
        print(f"{path.name}: {found}")
    _tell_done(len(done.found), args.output)
    return int(bool(done.problems))


def _tell(problem: object) -> None:
    """The error that is being handled, in one line; after its trace, if that is wanted."""
    if os.environ.get(_TRACEBACK, "") not in ("", "0"):
        traceback.print_exc()
    print(f"knet run: error: {' '.join(str(problem).split())}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse arguments and run; returns the exit status."""
    try:
        args = get_parser().parse_args(arguments)
        if args.traceback:
            os.environ[_TRACEBACK] = "1"
        return run(args)
    except KeyboardInterrupt:
        print("knet run: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
