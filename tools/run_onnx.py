"""Run an exported K-Net on pictures. Needs onnxruntime, numpy and Pillow, nothing else.

    python tools/run_onnx.py model.onnx --input photo.jpg 'more/*.png' folder --output results

Writes for every picture an overlay and, as the model gives them, panoptic PNGs with panoptic.json
(COCO's formats), instances.json (COCO results), and semantic PNGs of class ids.

Exit status: 0 if every picture went through, 1 if some did not (the others are kept), 2 if nothing
could be done, 130 after Ctrl-C (what is finished is kept). Files are written whole or not at all.
KNET_TRACEBACK=1 shows where an error came from.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import itertools
import json
import mimetypes
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

with contextlib.suppress(ImportError):  # reads HEIC, if it is installed
    import pillow_heif

    pillow_heif.register_heif_opener()

_MAX_PIXELS = 100_000_000
_DRAWN_SCORE = 0.3
_ALPHA = 0.55
# the outputs that each result is drawn from
_OUTPUTS = {
    "panoptic": ["panoptic_ids", *(f"segment_{c}" for c in ("ids", "classes", "isthing", "scores",
                                                            "areas"))],
    "instance": [f"instance_{c}" for c in ("scores", "classes", "masks", "boxes")],
    "semantic": ["semantic_classes"],
}  # fmt: skip
# what the runner needs of the metadata: a table, a list of any or of a fixed length, the values
_METADATA = {
    "results": [set(_OUTPUTS)],
    "input": {
        "dtype": {"uint8", "float32"},
        "channel_order": {"RGB", "L"},
        "contrast_cutoff": float,
        "least_size": range(1, 2**31),
        "resize": {"short_side": range(2**31), "max_long_side": range(1, 2**31)},
    },
    "classes": [
        {"id": range(2**31), "dataset_id": range(-(2**31), 2**31), "name": str, "isthing": bool,
         "color": (range(256),) * 3}
    ],
}  # fmt: skip


class Model:
    """An exported file with its description; ValueError naming the file if it is none.

    `providers` are onnxruntime's, the best first, by default all that it has; `max_pixels` is the
    limit of a picture, also once it has the model's size.
    """

    def __init__(
        self, path: str, providers: Sequence[str] | None = None, max_pixels: int = _MAX_PIXELS
    ) -> None:
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
        available = onnxruntime.get_available_providers()
        if set(providers or ()) - set(available):
            raise ValueError(f"this onnxruntime has {available}, not {list(providers or ())}")
        try:
            self.session = onnxruntime.InferenceSession(path, providers=providers or available)
            properties = self.session.get_modelmeta().custom_metadata_map
        except Exception as error:  # the library's own kinds have no common base
            raise ValueError(f"{path} cannot be read as an ONNX model: {error}") from error
        self.path, self.max_pixels = path, max_pixels
        self._outputs = [output.name for output in self.session.get_outputs()]
        self._shape = self.session.get_inputs()[0].shape
        if "knet" not in properties:
            raise ValueError(f"{path} was not written by knet export: no metadata 'knet'")
        self.info = _read_metadata(path, properties["knet"])
        inputs = {value.name for value in self.session.get_inputs()}
        needed = {name for result in self.info["results"] for name in _OUTPUTS[result]}
        missing = {"image", "output_size"} - inputs | needed - set(self._outputs)
        if missing or len(self._shape) != 4:
            raise ValueError(
                f"{path}: the graph does not fit its metadata 'knet', it lacks "
                f"{', '.join(sorted(missing)) or 'an image of four axes'}: export the model again"
            )
        self.classes = {entry["id"]: entry for entry in self.info["classes"]}

    def __call__(self, image: Image.Image) -> dict[str, np.ndarray]:
        """Results of an RGB picture at its own size, by the names of the outputs.

        ValueError if it is too small or too large for the model, or the runtime fails.
        """
        size = (image.height, image.width)
        height, width = self.input_size(*size)
        if height * width > self.max_pixels:
            raise ValueError(
                f"the model wants it as {width} x {height} pixels ({self.path}: resize), more than "
                f"--max-pixels {self.max_pixels}"
            )
        order, dtype = self.info["input"]["channel_order"], self.info["input"]["dtype"]
        # grey and contrast before it is resized, as in training
        sized = image.convert("L" if order == "L" else "RGB")
        cutoff = self.info["input"]["contrast_cutoff"]
        if 0 < cutoff < 50:
            sized = ImageOps.autocontrast(sized, cutoff=cutoff, preserve_tone=True)
        sized = sized.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.asarray(sized)).transpose(2, 0, 1)
        feeds = {"image": pixels[None].astype(dtype), "output_size": np.array(size, np.int64)}
        try:
            results = dict(zip(self._outputs, self.session.run(None, feeds)))
        except Exception as error:  # the library's own kinds have no common base
            raise ValueError(f"{self.path} fails: {error}") from error
        for result in self.info["results"]:
            name = "segment_classes" if result == "panoptic" else f"{result}_classes"
            unknown = set(np.unique(results[name]).tolist()) - set(self.classes)
            if unknown:
                raise ValueError(
                    f"{self.path}: its metadata 'knet' describe no classes {sorted(unknown)}, "
                    "which the model gives: export the model again"
                )
        return results

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to feed: the shorter side as trained, the longer one bounded."""
        resize = self.info["input"]["resize"]
        new = [float(height), float(width)]
        if resize["short_side"] > 0:
            scale = resize["short_side"] / min(new)
            # the shorter side exactly; a product may differ from it in the last bit
            new = [float(resize["short_side"]) if n == min(new) else n * scale for n in new]
            if max(new) > resize["max_long_side"]:
                scale = resize["max_long_side"] / max(new)
                new = [n * scale for n in new]
        rounded = [int(n + 0.5) for n in new]
        for i, fixed in enumerate(self._shape[2:]):
            if isinstance(fixed, int):  # exported for one size
                rounded[i] = fixed
        least = self.info["input"]["least_size"]
        if min(rounded) < least:
            raise ValueError(
                f"{width} x {height} pixels become {rounded[1]} x {rounded[0]} for the model, "
                f"which takes sides of {least} or more"
            )
        return rounded[0], rounded[1]


def _read_metadata(path: str, text: str) -> dict[str, Any]:
    try:
        info = json.loads(text)
        if isinstance(info, dict) and info.get("results") == ["raw"]:
            raise ValueError("raw logits, not results; export without --raw to draw")
        _check(info, _METADATA, "all")
        ids = [entry["id"] for entry in info["classes"]]
        if len(set(ids)) < len(ids):
            raise ValueError("classes have one id twice")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: its metadata 'knet' cannot be used, export the model again: {error}"
        ) from error
    return info


def _check(value: Any, rule: Any, key: str) -> None:
    """ValueError naming the key if the value is not as the rule says, see `_METADATA`."""
    inner: list[tuple[Any, Any, str]] = []
    if isinstance(rule, dict):
        what = f"a table with {', '.join(rule)}"
        fits = isinstance(value, dict) and set(rule) <= set(value)
        inner = [(value[k], rule[k], f"{key}.{k}") for k in rule] if fits else []
    elif isinstance(rule, (list, tuple)):
        what = "a list" if isinstance(rule, list) else f"a list of {len(rule)}"
        fits = isinstance(value, list) and bool(value)
        fits = fits and (isinstance(rule, list) or len(value) == len(rule))
        inner = [(v, rule[0], f"{key}[{i}]") for i, v in enumerate(value)] if fits else []
    elif isinstance(rule, range):
        what, fits = f"{rule[0]} to {rule[-1]}", type(value) is int and value in rule
    elif isinstance(rule, set):
        what, fits = " or ".join(sorted(rule)), isinstance(value, str) and value in rule
    else:
        what, fits = rule.__name__, type(value) is rule
    if not fits:
        raise ValueError(f"{key} is {str(value)[:60]!r}, not {what}")
    for part in inner:
        _check(*part)


def find_pictures(inputs: Sequence[str]) -> list[Path]:
    """Files, globs and folders as a list of files; ValueError for one that leads to no picture."""
    found: list[Path] = []
    for entry in inputs:
        if Path(entry).is_dir():
            files = sorted(Path(entry).iterdir())
            matches = [file for file in files if _is_read(file)]
            _tell_left_out(entry, set(files) - set(matches))
            problem = "the folder holds no picture that Pillow reads"
        elif Path(entry).exists() or not glob.has_magic(entry):
            matches = [Path(entry)]  # a missing file is reported when its turn comes
        else:
            matches, problem = [Path(p) for p in sorted(glob.glob(entry))], "no file matches"
        if not matches:
            raise ValueError(f"{entry}: {problem}")
        found += matches
    return found


def _is_read(file: Path) -> bool:
    form = Image.registered_extensions().get(file.suffix.lower(), "")
    return form in Image.OPEN and Image.MIME.get(form, "").startswith("image/")


def _tell_left_out(folder: str, files: set[Path]) -> None:
    counts = Counter(file.suffix.lower() for file in files if file.is_file())
    for suffix, count in sorted(counts.items()):
        kind = mimetypes.guess_type(f"x{suffix}")[0] or ""
        if suffix in (".avif", ".heic", ".heif", ".jp2") or kind.startswith(("image/", "video/")):
            reason = "Pillow does not read them here" + " without pillow-heif" * (".hei" in suffix)
            print(f"run_onnx.py: {folder}: {count} {suffix} left out: {reason}", file=sys.stderr)


def image_ids(pictures: Sequence[Path]) -> list[int]:
    """COCO ids: the number that is a file's name, others counted on from the highest one."""
    numbers = [int(p.stem) if p.stem.isascii() and p.stem.isdecimal() else None for p in pictures]
    following = itertools.count(max((n for n in numbers if n is not None), default=0) + 1)
    ids: list[int] = []
    taken: set[int] = set()
    for number in numbers:
        ids.append(next(following) if number is None or number in taken else number)
        taken.add(ids[-1])
    return ids


def _read(path: Path, max_pixels: int) -> Image.Image:
    """An RGB picture, turned as its EXIF tag says; ValueError if it cannot be read."""
    try:
        return _decode(path, max_pixels)
    except Exception as error:  # Pillow's readers raise anything at broken files
        raise ValueError(
            f"cannot be read as a picture: {str(error) or type(error).__name__}"
        ) from error


def _decode(path: Path, max_pixels: int) -> Image.Image:
    """The header is judged before the rest is decoded."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")  # a named pipe would wait for its writer
    Image.MAX_IMAGE_PIXELS = None  # the limit is ours
    with Image.open(path) as opened:
        if opened.width * opened.height > max_pixels:
            raise ValueError(
                f"it has {opened.width} x {opened.height} pixels, more than --max-pixels "
                f"{max_pixels}: scale it down, or raise the limit"
            )
        if opened.format == "EPS":
            raise ValueError("it is PostScript, a program to be run")
        # Pillow would clip some of them, and cut the lower bits of others
        kinds = " ".join([opened.mode, *(str(tile[3]) for tile in opened.tile)])
        if re.match("I|F$|F ", kinds) or re.search(";16[BLNS]", kinds):
            raise ValueError("it has more than 8 bits a channel: convert it to 8 bits")
        image = opened
        with contextlib.suppress(Exception):  # broken tags: as it is stored
            image = ImageOps.exif_transpose(opened)
        return image.convert("RGB")


class Writer:
    """Files of all pictures in a folder; the JSON files are written by `close`.

    Instances under the score `threshold` are not drawn; instances.json has them. OSError if the
    folder cannot be made or written.
    """

    def __init__(self, folder: str, model: Model, threshold: float) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / ".write_test"
        probe.touch()
        probe.unlink()
        self.model, self.threshold = model, threshold
        self._names: set[str] = set()
        # of panoptic.json and instances.json
        self._images: list[dict[str, Any]] = []
        self._panoptic: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []

    def add(
        self, path: Path, image: Image.Image, results: dict[str, np.ndarray], *, image_id: int
    ) -> None:
        """Write the files of one picture and keep its records."""
        names = itertools.chain([path.stem], (f"{path.stem}_{i}" for i in itertools.count(2)))
        name = next(name for name in names if name not in self._names)
        self._names.add(name)
        regions: list[tuple[np.ndarray, int]] = []
        if "semantic_classes" in results:
            labels = results["semantic_classes"]
            wide = max(self.model.classes) > 255
            _save(self.folder / f"{name}_semantic.png", labels.astype("u2" if wide else "u1"))
            regions = [(labels == c, c) for c in np.unique(labels)]
        if "instance_scores" in results:
            regions = self._add_instances(image_id, path.name, results)
        if "panoptic_ids" in results:
            regions = self._add_panoptic(name, image_id, results)
        colored = [(mask, self.model.classes[int(label)]["color"]) for mask, label in regions]
        _save(self.folder / f"{name}_overlay.png", overlay(np.asarray(image), colored))
        self._images.append(
            {"id": image_id, "file_name": path.name, "height": image.height, "width": image.width}
        )

    def close(self) -> None:
        """Write the JSON files of what was added."""
        if "panoptic" in self.model.info["results"]:
            categories = [
                {"id": c["dataset_id"], "name": c["name"], "isthing": int(c["isthing"]),
                 "color": c["color"]} for c in self.model.info["classes"]
            ]  # fmt: skip
            content = {"images": self._images, "annotations": self._panoptic,
                       "categories": categories}  # fmt: skip
            _write_json(self.folder / "panoptic.json", content)
        if "instance" in self.model.info["results"]:
            _write_json(self.folder / "instances.json", self._instances)

    def _add_instances(
        self, image_id: int, file_name: str, results: dict[str, np.ndarray]
    ) -> list[tuple[np.ndarray, int]]:
        regions = []
        for score, label, mask, (x0, y0, x1, y1) in _rows(results, "instance"):
            self._instances.append({
                "image_id": image_id, "file_name": file_name, "category_id": self._category(label),
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                "score": float(score), "segmentation": encode_rle(mask),
            })  # fmt: skip
            if score >= self.threshold:
                regions.append((mask, label))
        return regions[::-1]  # the best last, on top

    def _add_panoptic(
        self, name: str, image_id: int, results: dict[str, np.ndarray]
    ) -> list[tuple[np.ndarray, int]]:
        ids = results["panoptic_ids"]
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        _save(self.folder / f"{name}_panoptic.png", rgb)
        segments, regions = [], []
        for i, label, isthing, score, area in _rows(results, "panoptic"):
            regions.append((ids == i, label))
            segments.append({
                "id": int(i), "category_id": self._category(label), "isthing": bool(isthing),
                "score": float(score), "area": int(area), "bbox": _box(ids == i), "iscrowd": 0,
            })  # fmt: skip
        self._panoptic.append({"image_id": image_id, "file_name": f"{name}_panoptic.png",
                               "segments_info": segments})  # fmt: skip
        return regions

    def _category(self, label: int) -> int:
        return self.model.classes[int(label)]["dataset_id"]


def _rows(results: dict[str, np.ndarray], result: str) -> Iterator[Any]:
    """What the model says of each segment or instance, in the order of `_OUTPUTS`."""
    names = [name for name in _OUTPUTS[result] if name != "panoptic_ids"]
    return zip(*(results[name] for name in names))


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a boolean mask (H, W)."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()  # the mask ends with its last run of ones
    # every count from the third on is stored as its difference to the one before the last
    text = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(bits + 32 * more + 48))
            if not more:
                break
    return {"size": list(mask.shape), "counts": "".join(text)}


def _box(mask: np.ndarray) -> list[int]:
    """x, y, width, height around a mask (H, W) that has a pixel."""
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def overlay(image: np.ndarray, regions: Sequence[tuple[np.ndarray, Sequence[int]]]) -> np.ndarray:
    """(H, W, 3) uint8 with masks (H, W) painted over in their colours, outlined in black."""
    out = image.astype(np.float32)
    for mask, color in regions:
        out[mask] = (1 - _ALPHA) * out[mask] + _ALPHA * np.asarray(color, dtype=np.float32)
    for mask, _ in regions:
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        out[mask & ~inner] = 0
    return out.round().astype(np.uint8)


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A path beside to write to; what is there at the end of the block becomes `path`."""
    unfinished = path.with_name(f"{path.stem}.unfinished-{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _save(path: Path, pixels: np.ndarray) -> None:
    with _whole_file(path) as unfinished:
        Image.fromarray(pixels).save(unfinished)


def _write_json(path: Path, content: Any) -> None:
    with _whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", help="ONNX file of knet export")
    add("--input", nargs="+", required=True, help="files, globs, folders")
    add("--output", required=True, help="folder for the results")
    add("--confidence-threshold", type=float, default=_DRAWN_SCORE, help="of drawn instances")
    add("--max-pixels", type=int, default=_MAX_PIXELS, help="larger pictures are left out")
    add("--providers", nargs="+", help="of onnxruntime, such as CUDAExecutionProvider")
    return parser


def _run(args: argparse.Namespace) -> int:
    done = failed = 0
    try:
        pictures = find_pictures(args.input)
        model = Model(args.model, args.providers, max_pixels=args.max_pixels)
        writer = Writer(args.output, model, args.confidence_threshold)
        try:
            for path, image_id in zip(pictures, image_ids(pictures)):
                try:
                    image = _read(path, model.max_pixels)
                    writer.add(path, image, model(image), image_id=image_id)
                except (ValueError, MemoryError) as error:
                    failed += 1
                    _tell(f"{path}: {str(error) or 'not enough memory'}")
                else:
                    done += 1
                    print(f"{done + failed} of {len(pictures)}: {path}")
        finally:
            writer.close()  # what is finished is kept, whatever stopped the rest
    except (OSError, ValueError) as error:
        _tell(error)
        return 1 if done else 2
    print(f"results of {done} pictures in {args.output}")
    return int(failed > 0)


def _tell(problem: object) -> None:
    """The error that is being handled, in one line; after its trace, if that is wanted."""
    if os.environ.get("KNET_TRACEBACK", "") not in ("", "0"):
        traceback.print_exc()
    print(f"run_onnx.py: error: {' '.join(str(problem).split())}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse arguments and run; returns the exit status."""
    try:
        return _run(get_parser().parse_args(arguments))
    except KeyboardInterrupt:
        print("run_onnx.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
