"""What cutting into tiles costs in quality, and what a large picture takes in memory.

    python benchmarks/tiles.py quality --model FOLDER --dataset shapes_val --overlaps 0 16 32
    python benchmarks/tiles.py memory --model FOLDER --side 20000 --tile 1024

`quality` scores panoptic results of whole pictures and of the same pictures in two by two tiles.
INPUT.MIN_SIZE_TEST at the end of the line is the size at which the network sees a picture or tile:
0 shows it both at the picture's own scale, so that joining alone makes the difference. Pictures
that are larger than what the model was made for are shrunk by `--short-side` first.

`memory` draws a TIFF with toy scenes, and a corner on the earth, runs `knet predict --tiles` on it
and tells time and the most resident memory of that process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import cv2
import numpy as np
import rasterio
import torch
from detectron2.data import DatasetCatalog
from rasterio.transform import from_origin
from rasterio.windows import Window
from tqdm import tqdm
from workload import table

from knet.cli.model_arguments import add_model_arguments, load_predictor
from knet.cli.parser import Parser
from knet.data.custom import register_data_sets
from knet.data.images import read_picture
from knet.data.shapes.scene import draw_scene
from knet.evaluation.panoptic import PanopticEvaluator
from knet.predict.tiles import segmenter_of
from knet_run.tiles.join import join_tiles
from knet_run.tiles.segments import SegmentClass, Segmenter

_SCENE = 512  # pixels of a toy scene's side in the large picture
_SCENES = 12
# runs the command line and tells the most memory that this process had
_CHILD = """
import sys
from knet_command import main
code = main(sys.argv[1:])
with open("/proc/self/status") as file:
    print([line for line in file if line.startswith("VmHWM")][0].split()[1])
sys.exit(code)
"""


def main() -> None:
    """Measure what the arguments ask for."""
    parser = Parser("tiles", __doc__)
    parser.add_argument("what", choices=("quality", "memory"))
    parser.add_inputs("KEY VALUE", "config keys and values")
    add_model_arguments(parser)
    parser.add_argument("--dataset", default="shapes_val", help="quality: with panoptic truth")
    parser.add_argument("--overlaps", nargs="+", default=[0, 16, 32], help="quality: pixels")
    parser.add_argument("--short-side", type=int, help="quality: shrinks pictures to these pixels")
    parser.add_argument("--side", type=int, default=20_000, help="memory: pixels")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    args = parser.parse(sys.argv[1:])
    if args.what == "quality":
        print(table(quality(args)))
    else:
        memory(args)


def quality(args: argparse.Namespace) -> list[dict[str, object]]:
    """PQ of whole pictures and of two by two tiles, by overlap."""
    predictor = load_predictor(args)
    segmenter = segmenter_of(predictor, "panoptic")
    labels = {(c.is_thing, c.id): c.label for c in predictor.categories}
    register_data_sets(predictor.cfg, [args.dataset])
    ways = {"whole": None, **{f"2x2, overlap {n}": n for n in map(int, args.overlaps)}}
    evaluators = {way: PanopticEvaluator(args.dataset) for way in ways}
    found = dict.fromkeys(ways, 0)
    for evaluator in evaluators.values():
        evaluator.reset()
    for record in tqdm(DatasetCatalog.get(args.dataset)):
        pixels = read_picture(record, image_format="RGB")
        for way, overlap in ways.items():
            ids, kinds = _segments(_shrunk(pixels, args.short_side), segmenter, overlap)
            ids = cv2.resize(ids, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            segments = [
                {"id": n, "isthing": kind.is_thing, "category_id": labels[kind.is_thing, kind.id]}
                for n, kind in enumerate(kinds, start=1)
            ]
            output = {"panoptic_seg": (torch.as_tensor(ids.astype(np.int32)), segments)}
            evaluators[way].process([record], [output])
            found[way] += len(segments)
    rows = []
    for way, evaluator in evaluators.items():
        scores = evaluator.evaluate()["panoptic_seg"]
        kept = {name: f"{scores[name]:.2f}" for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")}
        rows.append({"way": way, "segments": found[way], **kept})
    return rows


def _shrunk(pixels: np.ndarray, short_side: int | None) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = min(1.0, (short_side or height) / min(height, width))
    size = (round(width * scale), round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _segments(
    pixels: np.ndarray, segmenter: Segmenter, overlap: int | None
) -> tuple[np.ndarray, list[SegmentClass]]:
    """The map of a picture, and the class of each segment."""
    height, width = pixels.shape[:2]
    tile = (height, width)
    if overlap is not None:
        overlap = min(overlap, min(height, width) // 3)  # half of a tile
        tile = (-(-(height + overlap) // 2), -(-(width + overlap) // 2))
    ids, joined = join_tiles(pixels, segmenter, tile=tile, overlap=overlap or 0)
    return ids, [segmenter.classes[k] for k in joined.classes.tolist()]


def memory(args: argparse.Namespace) -> None:
    """Draw the picture, run the command, print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "large.tif"
        write_picture(picture, args.side)
        print(f"{args.side}x{args.side} pixels, {picture.stat().st_size / 2**20:.0f} MB")
        model = ["--model", args.model] if args.model else ["--config-file", args.config_file]
        model += ["--weights", args.weights] if args.weights else []
        words = ["predict", str(picture), *model, "--output", f"{folder}/found"]
        words += ["--tiles", str(args.tile), "--overlap", str(args.overlap), *map(str, args.opts)]
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-c", _CHILD, *words], stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - start
        *said, peak = run.stdout.splitlines()
        print("\n".join(said))
        print(f"{seconds:.0f} s, peak of resident memory {int(peak) / 2**20:.2f} GB")
        with rasterio.open(f"{folder}/found/large_labels.tif") as labels:
            print(f"labels: {labels.shape}, {labels.dtypes[0]}, {labels.crs}")
        for file in sorted(Path(folder, "found").iterdir()):
            print(f"{file.name}: {file.stat().st_size / 2**20:.1f} MB")


def write_picture(path: Path, side: int) -> None:
    """A TIFF of toy scenes in JPEG blocks, which lies in UTM zone 32."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(0, k, size=_SCENE).image for k in range(_SCENES)]
    turns: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda image: image, np.fliplr, np.flipud, lambda image: image.swapaxes(0, 1)
    ]  # fmt: skip
    form = dict(driver="GTiff", height=side, width=side, count=3, dtype="uint8", compress="jpeg")
    blocks = dict(tiled=True, blockxsize=512, blockysize=512, photometric="ycbcr")
    place = dict(crs="EPSG:32632", transform=from_origin(500_000, 5_000_000, 0.2, 0.2))
    with rasterio.open(path, "w", **form, **blocks, **place) as file:
        for y in range(0, side, _SCENE):
            for x in range(0, side, _SCENE):
                image = turns[rng.integers(4)](scenes[rng.integers(_SCENES)])
                image = image[: side - y, : side - x]
                window = Window(x, y, image.shape[1], image.shape[0])
                file.write(np.moveaxis(image, -1, 0), window=window)


if __name__ == "__main__":
    main()
