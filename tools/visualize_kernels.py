"""Draw what the kernels of a model do.

    python tools/visualize_kernels.py --config-file configs/shapes/panoptic.yaml \\
        --input photo.jpg --output kernels MODEL.WEIGHTS output/demo/model_final.pth
    python tools/visualize_kernels.py --predictor FOLDER --dataset shapes_val --images 200

For each picture: the masks of the best kernels before the first and after every round
(`NAME_rounds.png`) and their class scores (`NAME_classes.png`; not for semantic models, whose
kernels are their classes). For a data set: where each instance kernel tends to fire
(`DATASET_average.png`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import knet  # noqa: F401  (before Detectron2)

# isort: split
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from knet.data.custom import register_builtin
from knet.data.images import read_picture, save_image
from knet.demo.files import find_pictures, require_unique_stems, writable_folder
from knet.demo.model_arguments import add_model_arguments, load_predictor, split_config_keys
from knet.errors import UserError, run_command
from knet.kernel_pictures import (
    draw_average_masks,
    draw_class_scores,
    draw_kernel_rounds,
)
from knet.kernel_trace import average_masks, trace_kernels
from knet.predictor import KNetPredictor


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Parse arguments, run the model, write and list the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", nargs="+", metavar="PICTURE", help="files, folders or globs")
    what.add_argument("--dataset", metavar="NAME", help="registered data set, for the averages")
    parser.add_argument("--images", type=int, default=200, help="of the data set, from its start")
    parser.add_argument("--kernels", type=int, default=8, help="kernels to follow, the best ones")
    parser.add_argument("--output", default="kernels", help="folder for the PNGs")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args(arguments)
    if args.input:
        args.input, keys = split_config_keys(args.input)
        args.opts = keys + args.opts
    if min(args.images, args.kernels) < 1:
        parser.error("--images and --kernels must be 1 or more")

    setup_logger(name="knet")
    folder = writable_folder(args.output, "--output")
    predictor = load_predictor(args, args.opts)
    if args.input:
        paths = _write_traces(predictor, args.input, args.kernels, folder)
    else:
        paths = [_write_averages(predictor, args.dataset, args.images, folder)]
    print("\n".join(map(str, paths)))
    return paths


def _write_traces(
    predictor: KNetPredictor, inputs: Sequence[str], num_kernels: int, folder: Path
) -> list[Path]:
    found = find_pictures(inputs)
    pictures = found.pictures
    if found.problems:
        raise UserError("; ".join(found.problems))
    for note in found.left_out:
        print(f"visualize_kernels.py: {note}", file=sys.stderr)
    require_unique_stems(pictures, "--output")
    paths = []
    for picture in pictures:
        image = _read(predictor, {"file_name": str(picture)})
        trace = trace_kernels(predictor, image, num_kernels=num_kernels)
        drawings = {"rounds": draw_kernel_rounds(image, trace)}
        if trace.class_scores is not None:
            drawings["classes"] = draw_class_scores(trace)
        for name, drawing in drawings.items():
            paths.append(folder / f"{picture.stem}_{name}.png")
            save_image(paths[-1], drawing)
    return paths


def _write_averages(predictor: KNetPredictor, dataset: str, num_images: int, folder: Path) -> Path:
    register_builtin([dataset])
    if dataset not in DatasetCatalog:
        raise UserError(
            f"--dataset {dataset} is not registered: name one of the config's data sets or of "
            "Detectron2's"
        )
    records = DatasetCatalog.get(dataset)[:num_images]

    def images() -> Iterator[np.ndarray]:
        for record in tqdm(records, unit="picture"):
            yield _read(predictor, record)

    path = folder / f"{dataset}_average.png"
    save_image(path, draw_average_masks(average_masks(predictor, images())))
    return path


def _read(predictor: KNetPredictor, record: Mapping[str, Any]) -> np.ndarray:
    limit = predictor.cfg.INPUT.MAX_PIXELS
    return read_picture(record, image_format="RGB", max_pixels=limit)


if __name__ == "__main__":

    def command() -> None:
        main()

    sys.exit(run_command("visualize_kernels.py", command))
