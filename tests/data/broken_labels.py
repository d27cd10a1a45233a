"""Panoptic and semantic data sets with one defect each."""

from PIL import Image

from .breaking import (
    CORNER,
    deep,
    deep_colours,
    few_bits,
    paint,
    panoptic,
    resave,
    see_through,
    semantic,
    shorten,
    turn,
)
from .good_sets import HEIGHT, WIDTH, label_map, segment_ids, write_ids

_A = "images/a.png"

PANOPTIC_CASES = [
    panoptic(
        "png-missing", "png-missing", lambda f: f.labels().unlink(), file="labels/a.png"
    ),
    panoptic(
        "png-truncated", "png-unreadable", lambda f: shorten(f.labels()), file="labels/a.png"
    ),
    panoptic(
        "png-grey", "panoptic-png-mode",
        lambda f: Image.fromarray(label_map()).save(f.labels()), file="labels/a.png",
    ),
    panoptic(
        "png-16-bit", "panoptic-png-mode", lambda f: deep_colours(f.labels()),
        file="labels/a.png",
    ),
    panoptic(
        "png-jpeg", "panoptic-png-mode",
        lambda f: resave(f.labels(), lambda i: i, format="JPEG"), file="labels/a.png",
    ),
    panoptic(
        "isthing-text", "bad-value",
        lambda f: f.content["categories"][0].update(isthing="0"),
        record="category {'id': 7, 'name': 'leaf', 'isthing': '0'}", left_out=None,
    ),
    panoptic(
        "png-alpha", "panoptic-png-mode", lambda f: resave(f.labels(), see_through), "warning",
        file="labels/a.png",
    ),
    panoptic(
        "shared-png", "shared-file",
        lambda f: f.annotation(1).update(
            file_name="a.png", segments_info=[*f.annotation()["segments_info"][::-1]]
        ),
        record="image 6",
    ),
    panoptic(
        "png-size", "png-size", lambda f: write_ids(f.labels(), segment_ids()[:, :-2]),
        file="labels/a.png",
    ),
    panoptic(
        "png-id", "png-id-unknown",
        lambda f: write_ids(f.labels(), paint(segment_ids(), CORNER, 900)),
        file="labels/a.png",
    ),
    panoptic(
        "no-pixels", "segment-without-pixels",
        lambda f: f.annotation()["segments_info"].append({"id": 4, "category_id": 7}),
        "warning", "labels/a.png",
    ),
    panoptic(
        "area", "wrong-area", lambda f: f.annotation()["segments_info"][1].update(area=299),
        "warning", "labels/a.png",
    ),
    panoptic(
        "unknown-category", "unknown-category",
        lambda f: f.annotation()["segments_info"][1].update(category_id=8),
        record="image 5: segment 70000",
    ),
    panoptic(
        "duplicate-segment", "duplicate-segment-id",
        lambda f: f.annotation()["segments_info"].append({"id": 1, "category_id": 7}),
        record="image 5: segment 1",
    ),
    panoptic(
        "segment-0", "segment-id-zero",
        lambda f: f.annotation()["segments_info"].append({"id": 0, "category_id": 7}),
        record="image 5: segment 0",
    ),
    panoptic("no-segments", "missing-key", lambda f: f.annotation().pop("segments_info")),
    panoptic(
        "orphan", "orphan-annotation",
        lambda f: f.content["annotations"].append({**f.annotation(), "image_id": 9}),
        record="annotation of image 9", left_out=0,
    ),
    panoptic(
        "second-annotation", "duplicate-annotation",
        lambda f: f.content["annotations"].append(f.annotation()),
    ),
    panoptic(
        "unannotated", "image-without-annotation", lambda f: f.content["annotations"].pop(0),
        "warning",
    ),
    panoptic(
        "no-isthing", "missing-key", lambda f: f.content["categories"][0].pop("isthing"),
        record="category {'id': 7, 'name': 'leaf'}", left_out=None,
    ),
    panoptic(
        "exif-displaced", "exif-rotation",
        lambda f: (
            turn(f.picture(), stored=(HEIGHT, WIDTH)),
            f.image().pop("height"), f.image().pop("width"),
        ),
        file=_A,
    ),
]  # fmt: skip

SEMANTIC_CASES = [
    semantic(
        "jpeg", "label-png-mode", lambda f: resave(f.labels(), lambda i: i, format="JPEG")
    ),
    semantic(
        "label-range", "label-range",
        lambda f: Image.fromarray(paint(label_map(), CORNER, 9)).save(f.labels()),
    ),
    semantic(
        "colours", "label-png-mode", lambda f: resave(f.labels(), lambda i: i.convert("RGB"))
    ),
    semantic(
        "palette", "label-png-mode", lambda f: resave(f.labels(), lambda i: i.convert("P"))
    ),
    semantic("16-bit", "label-png-mode", lambda f: resave(f.labels(), deep)),
    semantic("2-bit", "label-png-mode", lambda f: few_bits(f.labels(), label_map() % 4, 2)),
    semantic("4-bit", "label-png-mode", lambda f: few_bits(f.labels(), label_map() % 16, 4)),
    semantic(
        "size", "png-size", lambda f: Image.fromarray(label_map()[:-1]).save(f.labels())
    ),
    semantic(
        "same-name", "shared-name",
        lambda f: Image.new("RGB", (WIDTH, HEIGHT)).save(f.picture().with_suffix(".jpg")),
        file=_A, left_out=None,
    ),
    semantic(
        "no-pictures", "no-images", lambda f: [f.picture(s).unlink() for s in "abc"],
        file="images", record="", left_out=None,
    ),
    semantic("png-missing", "png-missing", lambda f: f.labels().unlink(), file=_A),
    semantic("png-truncated", "png-unreadable", lambda f: shorten(f.labels())),
    semantic(
        "no-picture", "orphan-annotation", lambda f: f.picture().unlink(), left_out=1
    ),
    semantic("image-truncated", "image-truncated", lambda f: shorten(f.picture()), file=_A),
    semantic(
        "image-unreadable", "image-unreadable",
        lambda f: f.picture().write_bytes(b"no picture"), file=_A,
    ),
    semantic(
        "exif-displaced", "exif-rotation", lambda f: turn(f.picture(), stored=(HEIGHT, WIDTH)),
        file=_A,
    ),
]  # fmt: skip
