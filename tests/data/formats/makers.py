"""Tiny data sets in every format, all of the same scenes, written to a folder."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

HEIGHT, WIDTH = 48, 64
CLASSES = ["cross", "square"]
COLORS = [(0, 0, 0), (200, 0, 0), (0, 0, 200)]  # of the background and the classes
STEMS = [f"frame_{number:02d}" for number in range(6)]
PARTS = {"train": STEMS[:4], "val": STEMS[4:]}

Shape = tuple[int, list[float]]  # index into CLASSES, polygon


def shapes(stem: str) -> list[Shape]:
    """Two to four shapes of a scene, apart from each other; both classes are there."""
    number = int(stem.rpartition("_")[2])
    found = []
    for k in range(2 + number % 3):
        x, y = 4 + 30 * (k % 2), 4 + 22 * (k // 2)
        side = 12 + number % 4
        square = [x, y, x + side, y, x + side, y + side, x, y + side]
        a, b, c = 4, side - 4, side
        cross = [a, 0, b, 0, b, a, c, a, c, b, b, b, b, c, a, c, a, b, 0, b, 0, a, a, a]
        outline = [v + (x, y)[i % 2] for i, v in enumerate(cross)] if k % 2 == 0 else square
        found.append((k % 2, [float(v) for v in outline]))
    return found


def mask_of(polygon: list[float]) -> np.ndarray:
    """(H, W) bool."""
    rle = mask_util.merge(mask_util.frPyObjects([polygon], HEIGHT, WIDTH))
    return mask_util.decode(rle).astype(bool)


def numbers(stem: str) -> np.ndarray:
    """(H, W) uint8: 0, and 1 to n for the shapes."""
    found = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, (_, polygon) in enumerate(shapes(stem), start=1):
        found[mask_of(polygon)] = number
    return found


def labels(stem: str) -> np.ndarray:
    """(H, W) uint8: 0 for the background, 1 and 2 for the classes."""
    found = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, polygon in shapes(stem):
        found[mask_of(polygon)] = label + 1
    return found


def picture(path: Path, stem: str) -> None:
    """The scene with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(int(stem.rpartition("_")[2]))
    pixels = np.array(COLORS, np.uint8)[labels(stem)] + rng.integers(0, 50, (HEIGHT, WIDTH, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def png(path: Path, values: np.ndarray, *, palette: bool = False) -> None:
    """A label PNG, with VOC's kind of palette perhaps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image = image.convert("L")
        image.putpalette([v for k in range(256) for v in (k, k * 37 % 256, k * 91 % 256)])
    image.save(path)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def coco_content(stems: list[str], prefix: str = "", first_class: int = 1) -> dict[str, Any]:
    """COCO instances of some scenes."""
    sizes = {"height": HEIGHT, "width": WIDTH}
    images = [
        {"id": k, "file_name": f"{prefix}{stem}.jpg", **sizes} for k, stem in enumerate(stems, 1)
    ]
    annotations: list[dict[str, Any]] = []
    for image_id, stem in enumerate(stems, start=1):
        for label, polygon in shapes(stem):
            rle = mask_util.encode(np.asfortranarray(mask_of(polygon).astype(np.uint8)))
            measures = {"area": int(mask_util.area(rle)), "bbox": mask_util.toBbox(rle).tolist()}
            own = {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, **measures}
            own.update(category_id=label + first_class, segmentation=[polygon])
            annotations.append(own)
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, first_class)]
    return {"images": images, "categories": categories, "annotations": annotations}


def coco(root: Path) -> None:
    for part, stems in PARTS.items():
        write_json(root / "annotations" / f"instances_{part}2017.json", coco_content(stems))
        for stem in stems:
            picture(root / f"{part}2017" / f"{stem}.jpg", stem)


def roboflow(root: Path) -> None:
    for part, stems in (("train", STEMS[:4]), ("valid", STEMS[4:])):
        content = coco_content(stems)
        for category in content["categories"]:
            category["supercategory"] = "shapes"
        content["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
        write_json(root / part / "_annotations.coco.json", content)
        for stem in stems:
            picture(root / part / f"{stem}.jpg", stem)


def cvat(root: Path) -> None:
    write_json(root / "annotations" / "instances_default.json", coco_content(STEMS))
    for stem in STEMS:
        picture(root / "images" / "default" / f"{stem}.jpg", stem)


def label_studio(root: Path) -> None:
    content = coco_content(STEMS, "images\\", first_class=0)
    write_json(root / "result.json", content)
    for stem in STEMS:
        picture(root / "images" / f"{stem}.jpg", stem)


def panoptic(root: Path) -> None:
    for part, stems in PARTS.items():
        content = coco_content(stems)
        content["annotations"] = []
        content["categories"] = [
            *({**c, "isthing": 1} for c in content["categories"]),
            {"id": 3, "name": "ground", "isthing": 0},
        ]
        for image_id, stem in enumerate(stems, start=1):
            ids = numbers(stem).astype(np.uint32) + 1
            segments = [{"id": 1, "category_id": 3}]
            segments += [
                {"id": k, "category_id": label + 1}
                for k, (label, _) in enumerate(shapes(stem), start=2)
            ]
            for segment in segments:
                segment["area"] = int((ids == segment["id"]).sum())
            own = {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments}
            content["annotations"].append(own)
            rgb = np.stack([ids, ids * 0, ids * 0], axis=-1).astype(np.uint8)
            png(root / f"panoptic_{part}" / f"{stem}.png", rgb)
            picture(root / part / f"{stem}.jpg", stem)
        write_json(root / "annotations" / f"panoptic_{part}.json", content)


def _yolo_line(shape: Shape) -> str:
    label, polygon = shape
    sides = (WIDTH, HEIGHT) * (len(polygon) // 2)
    return " ".join([str(label), *(f"{v / side:.6f}" for v, side in zip(polygon, sides))])


def _yolo_pair(root: Path, images: str, texts: str, stem: str) -> None:
    picture(root / images / f"{stem}.jpg", stem)
    text = root / texts / f"{stem}.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("\n".join(map(_yolo_line, shapes(stem))) + "\n")


def yolo(root: Path) -> None:
    for part, stems in PARTS.items():
        for stem in stems:
            _yolo_pair(root, f"images/{part}", f"labels/{part}", stem)
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(CLASSES))
    text = f"path: ../elsewhere\ntrain: images/train\nval: images/val\nnames:\n{names}"
    (root / "data.yaml").write_text(text)


def yolo_roboflow(root: Path) -> None:
    for part, stems in (("train", STEMS[:4]), ("valid", STEMS[4:])):
        for stem in stems:
            _yolo_pair(root, f"{part}/images", f"{part}/labels", stem)
    text = f"train: ../train/images\nval: ../valid/images\nnc: 2\nnames: {CLASSES}\n"
    (root / "data.yaml").write_text(text)


def yolo_unsplit(root: Path) -> None:
    for stem in STEMS:
        _yolo_pair(root, "images", "labels", stem)
    (root / "classes.txt").write_text("\n".join(CLASSES))


def label_pngs(root: Path) -> None:
    for part, stems in PARTS.items():
        for stem in stems:
            picture(root / "images" / part / f"{stem}.jpg", stem)
            png(root / "masks" / part / f"{stem}.png", labels(stem))


def label_pngs_segnet(root: Path) -> None:
    """As CamVid is often found: train, trainannot, …, with a value of no class."""
    for part, stems in PARTS.items():
        for stem in stems:
            picture(root / part / f"{stem}.png", stem)
            values = labels(stem)
            values[0] = len(CLASSES) + 1
            png(root / f"{part}annot" / f"{stem}.png", values)
    (root / "classes.txt").write_text("\n".join(["ground", *CLASSES]))


def binary(root: Path) -> None:
    for stem in STEMS:
        picture(root / "images" / f"{stem}.png", stem)
        png(root / "labels" / f"{stem}_mask.png", np.where(labels(stem) > 0, 255, 0).astype("u1"))


def instance_ids(root: Path) -> None:
    """As Penn-Fudan."""
    for stem in STEMS:
        picture(root / "PNGImages" / f"{stem}.png", stem)
        png(root / "PedMasks" / f"{stem}_mask.png", numbers(stem))
    (root / "readme.txt").write_text("pictures of pedestrians")


def instance_ids_unnamed(root: Path) -> None:
    for stem in STEMS:
        picture(root / "images" / f"{stem}.png", stem)
        png(root / "masks" / f"{stem}.png", numbers(stem).astype(np.uint16))


def voc(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    for stem in STEMS:
        picture(base / "JPEGImages" / f"{stem}.jpg", stem)
        values, objects = labels(stem), numbers(stem)
        values[0], objects[0] = 255, 255
        png(base / "SegmentationClass" / f"{stem}.png", values, palette=True)
        png(base / "SegmentationObject" / f"{stem}.png", objects, palette=True)
    picture(base / "JPEGImages" / "unlabelled_99.jpg", STEMS[0])
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, stems in PARTS.items():
        (lists / f"{part}.txt").write_text("\n".join(stems))
    text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\n"
    text += "".join(f"{name}:{i},{i},{i}::\n" for i, name in enumerate(CLASSES, 7))
    (root / "labelmap.txt").write_text(text)


def voc_semantic(root: Path) -> None:
    """Without objects and without a list of classes: VOC's own."""
    for stem in STEMS:
        picture(root / "JPEGImages" / f"{stem}.jpg", stem)
        png(root / "SegmentationClass" / f"{stem}.png", labels(stem), palette=True)


def labelme(root: Path) -> None:
    for stem in STEMS:
        picture(root / f"{stem}.jpg", stem)
        found = []
        for label, polygon in shapes(stem):
            points = [list(point) for point in zip(polygon[::2], polygon[1::2])]
            shape = {"label": CLASSES[label], "points": points, "group_id": None}
            shape["shape_type"] = "polygon"
            if label == 1 and stem == STEMS[0]:
                shape.update(points=[points[2], points[0]], shape_type="rectangle")
            elif label == 1 and stem == STEMS[1]:
                shape.update(_labelme_mask(polygon))
            found.append(shape)
        point = {"label": "note", "points": [[1, 1]], "shape_type": "point", "group_id": None}
        size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        content = {"version": "5.4", "shapes": [*found, point], "imagePath": f"{stem}.jpg", **size}
        write_json(root / f"{stem}.json", {**content, "imageData": None})


def _labelme_mask(polygon: list[float]) -> dict[str, Any]:
    mask = mask_of(polygon)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = [int(columns[0]), int(rows[0])], [int(columns[-1]), int(rows[-1])]
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    stream = io.BytesIO()
    Image.fromarray(crop).save(stream, format="PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    return {"points": list(corners), "shape_type": "mask", "mask": text}


def cityscapes(root: Path, *, polygons: bool = False) -> None:
    """Crosses are cars, squares buildings, the rest is road; a frame of no class."""
    for part, stems in PARTS.items():
        for stem in stems:
            place = f"{part}/bonn/bonn_{stem}"
            picture(root / "leftImg8bit" / f"{place}_leftImg8bit.png", stem)
            ids, objects = np.full((HEIGHT, WIDTH), 7, np.int32), []
            frame = [[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]]
            objects.append({"label": "road", "polygon": frame})
            for number, (label, polygon) in enumerate(shapes(stem)):
                points = [list(point) for point in zip(polygon[::2], polygon[1::2])]
                objects.append({"label": ("car", "building")[label], "polygon": points})
                ids[mask_of(polygon)] = 26000 + number if label == 0 else 11
            ids[0] = 3
            objects.append({"label": "out of roi", "polygon": [[0, 0], [WIDTH, 0]]})
            start = root / "gtFine" / f"{place}_gtFine"
            if polygons:
                content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
                write_json(Path(f"{start}_polygons.json"), content)
                continue
            plain = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
            png(Path(f"{start}_instanceIds.png"), ids.astype(np.uint16))
            png(Path(f"{start}_labelIds.png"), plain)


def cityscapes_polygons(root: Path) -> None:
    cityscapes(root, polygons=True)


def _colored(stem: str) -> np.ndarray:
    return np.array(COLORS, np.uint8)[labels(stem)]


def colors(root: Path) -> None:
    """As CamVid on Kaggle: train, train_labels, class_dict.csv with a class of no label."""
    for part, stems in PARTS.items():
        for stem in stems:
            picture(root / part / f"{stem}.png", stem)
            values = _colored(stem)
            values[0] = (64, 64, 64)
            png(root / f"{part}_labels" / f"{stem}_L.png", values)
    rows = zip(["ground", *CLASSES, "Void"], [*COLORS, (64, 64, 64)])
    lines = [f"{name}, {r}, {g}, {b}" for name, (r, g, b) in rows]
    (root / "class_dict.csv").write_text("\n".join(["name,r,g,b", *lines]))


def roboflow_masks(root: Path) -> None:
    for part, stems in (("train", STEMS[:4]), ("valid", STEMS[4:])):
        for stem in stems:
            picture(root / part / f"{stem}.jpg", stem)
            png(root / part / f"{stem}_mask.png", labels(stem))
    lines = [f"{k}, {name}" for k, name in enumerate(["ground", *CLASSES])]
    (root / "_classes.csv").write_text("\n".join(["Pixel Value, Class", *lines]))


# name → maker, format, task, classes
MAKERS: dict[str, tuple[Callable[[Path], None], str, str, list[str]]] = {
    "coco": (coco, "COCO instances", "instance", CLASSES),
    "roboflow": (roboflow, "COCO instances", "instance", CLASSES),
    "cvat": (cvat, "COCO instances", "instance", CLASSES),
    "label_studio": (label_studio, "COCO instances", "instance", CLASSES),
    "panoptic": (panoptic, "COCO panoptic", "panoptic", [*CLASSES, "ground"]),
    "yolo": (yolo, "YOLO segmentation", "instance", CLASSES),
    "yolo_roboflow": (yolo_roboflow, "YOLO segmentation", "instance", CLASSES),
    "yolo_unsplit": (yolo_unsplit, "YOLO segmentation", "instance", CLASSES),
    "label_pngs": (label_pngs, "label PNGs", "semantic", ["class 0", "class 1", "class 2"]),
    "segnet": (label_pngs_segnet, "label PNGs", "semantic", ["ground", *CLASSES]),
    "roboflow_masks": (roboflow_masks, "label PNGs", "semantic", ["ground", *CLASSES]),
    "binary": (binary, "label PNGs", "semantic", ["background", "foreground"]),
    "instance_ids": (instance_ids, "instance-id PNGs", "instance", ["object"]),
    "instance_ids_unnamed": (instance_ids_unnamed, "instance-id PNGs", "instance", ["object"]),
    "voc": (voc, "Pascal VOC", "instance", CLASSES),
    "labelme": (labelme, "labelme JSON", "instance", CLASSES),
    "colors": (colors, "colour masks", "semantic", ["ground", *CLASSES]),
}
