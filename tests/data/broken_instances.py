"""Data sets in COCO's instance format with one defect each."""

import json

from PIL import Image

from .breaking import (
    Case,
    break_second_page,
    deep,
    deep_colours,
    instances,
    resave,
    rle,
    see_through,
    shorten,
    turn,
)
from .good_sets import FORMATS, HEIGHT, WIDTH

_FIRST = "image 5, annotation 11"
_SECOND = "image 5, annotation 12"
_A = "images/a.png"

INSTANCE_CASES = [
    # pictures
    instances(
        "image-missing", "image-missing", "image 5", lambda f: f.picture().unlink(), file=_A
    ),
    instances(
        "image-unreadable", "image-unreadable", "image 5",
        lambda f: f.picture().write_bytes(b"no picture"), file=_A,
    ),
    instances(
        "image-empty-file", "image-unreadable", "image 5",
        lambda f: f.picture().write_bytes(b""), file=_A,
    ),
    instances(
        "image-truncated", "image-truncated", "image 5", lambda f: shorten(f.picture()), file=_A
    ),
    instances(
        "size", "size-mismatch", "image 5",
        lambda f: resave(f.picture(), lambda image: image.resize((50, 40))), file=_A,
    ),
    instances(
        "exif-fits", "exif-rotation", "image 5",
        lambda f: turn(f.picture(), stored=(WIDTH, HEIGHT)), "warning", _A,
    ),
    instances(
        "exif-displaced", "exif-rotation", "image 5",
        lambda f: turn(f.picture(), stored=(HEIGHT, WIDTH)), file=_A,
    ),
    instances("16-bit", "image-depth", "image 5", lambda f: resave(f.picture(), deep), file=_A),
    instances(
        "palette", "image-mode", "image 5",
        lambda f: resave(f.picture(), lambda image: image.convert("P")), "warning", _A,
    ),
    instances(
        "alpha", "image-mode", "image 5",
        lambda f: resave(f.picture(), see_through), "warning", _A,
    ),
    instances(
        "grey-alpha", "image-mode", "image 5",
        lambda f: resave(f.picture(), lambda image: see_through(image.convert("L"))),
        "warning", _A,
    ),
    instances(
        "16-bit-colours", "image-depth", "image 5", lambda f: deep_colours(f.picture()), file=_A
    ),
    instances(
        "cmyk", "image-mode", "image 5",
        lambda f: resave(f.picture(), lambda image: image.convert("CMYK"), format="JPEG"),
        "warning", _A,
    ),
    instances(
        "animated", "image-mode", "image 5",
        lambda f: resave(
            f.picture(), lambda image: image, save_all=True,
            append_images=[Image.new("RGB", (WIDTH, HEIGHT))],
        ),
        "warning", _A,
    ),
    instances(
        "second-page", "image-mode", "image 5", lambda f: break_second_page(f.picture()),
        "warning", _A,
    ),
    # the JSON as a whole
    instances(
        "nested", "json-invalid", "", lambda f: setattr(f, "text", "[" * 100000), left_out=None
    ),
    instances(
        "colour", "bad-value", "category {'id': 7, 'name': 'leaf', 'isthing': 1, 'color': [1, 2]}",
        lambda f: f.content["categories"][0].update(color=[1, 2]), left_out=None,
    ),
    instances(
        "empty", "no-images", "",
        lambda f: f.content.update(images=[], annotations=[]), left_out=None,
    ),
    instances(
        "mixed-ids", "mixed-image-ids", "",
        lambda f: (f.image(2).update(id="7"), f.annotation(4).update(image_id="7")), left_out=0,
    ),
    instances(
        "same-file", "shared-file", "image 6", lambda f: f.image(1).update(file_name="a.png"),
        "warning",
    ),
    instances(
        "json-invalid", "json-invalid", "",
        lambda f: setattr(f, "text", json.dumps(f.content)[:-40]), left_out=None,
    ),
    instances(
        "categories-in-info", "no-categories", "",
        lambda f: f.content.update(info={"categories": f.content.pop("categories")}),
        left_out=None,
    ),
    instances(
        "no-categories", "no-categories", "", lambda f: f.content.pop("categories"), left_out=None
    ),
    instances(
        "duplicate-category", "duplicate-category", "",
        lambda f: f.content["categories"].append({"id": 7, "name": "twig"}), left_out=None,
    ),
    instances(
        "duplicate-category-name", "duplicate-category-name", "category 9",
        lambda f: (
            f.content["categories"].append({"id": 9, "name": "leaf"}),
            f.annotation(4).update(category_id=9),
        ),
        "warning",
    ),
    instances(
        "no-images", "missing-key", "", lambda f: f.content.pop("images"), left_out=None
    ),
    # its records
    instances("no-height", "missing-key", "image 5", lambda f: f.image().pop("height")),
    instances("no-file-name", "missing-key", "image 5", lambda f: f.image().pop("file_name")),
    instances("bad-width", "bad-value", "image 5", lambda f: f.image().update(width="60")),
    instances("huge-height", "bad-value", "image 5", lambda f: f.image().update(height=10**30)),
    instances(
        "half-letter", "bad-value", "image 5", lambda f: f.image().update(file_name="\ud800")
    ),
    instances(
        "area-infinite", "bad-value", _FIRST, lambda f: f.annotation().update(area=float("inf"))
    ),
    instances("area-huge", "bad-value", _FIRST, lambda f: f.annotation().update(area=10**400)),
    instances("area-bool", "bad-value", _FIRST, lambda f: f.annotation().update(area=True)),
    instances(
        "bbox-huge", "bbox-wrong", _FIRST, lambda f: f.annotation().update(bbox=[10**400, 0, 1, 1])
    ),
    instances(
        "bool-point", "polygon-coordinates", _FIRST, lambda f: f.polygon(5, 5, True, 9, 9, 9)
    ),
    instances(
        "id-of-another-type", "orphan-annotation", "image 5, annotation 11",
        lambda f: f.annotation().update(image_id="5"), left_out=0,
    ),
    instances(
        "duplicate-image-id", "duplicate-image-id", "image 5",
        lambda f: f.content["images"].append({**f.image(), "file_name": "c.png"}),
    ),
    instances("no-category", "missing-key", _FIRST, lambda f: f.annotation().pop("category_id")),
    instances(
        "no-image-id", "missing-key", "annotation 11", lambda f: f.annotation().pop("image_id"),
        left_out=0,
    ),
    instances(
        "unknown-category", "unknown-category", _FIRST,
        lambda f: f.annotation().update(category_id=99),
    ),
    instances(
        "duplicate-annotation-id", "duplicate-annotation-id", "image 7, annotation 11",
        lambda f: f.annotation(4).update(id=11),
    ),
    instances(
        "annotation-id-0", "annotation-id-zero", "image 5, annotation 0",
        lambda f: f.annotation().update(id=0), "warning",
    ),
    instances(
        "orphan", "orphan-annotation", "image 99, annotation 15",
        lambda f: f.annotation(4).update(image_id=99), left_out=0,
    ),
    instances("ignore", "ignore-flag", _FIRST, lambda f: f.annotation().update(ignore=1)),
    instances(
        "no-area", "missing-key", _FIRST, lambda f: f.annotation().pop("area"), "warning"
    ),
    # masks
    instances(
        "no-mask", "missing-segmentation", _FIRST, lambda f: f.annotation().pop("segmentation")
    ),
    instances(
        "mask-is-text", "polygon-coordinates", _FIRST,
        lambda f: f.annotation().update(segmentation="a.png"),
    ),
    instances("flat-polygon", "polygon-coordinates", _FIRST,
        lambda f: f.annotation().update(segmentation=[10, 10, 20, 10, 20, 20])),
    instances("two-points", "polygon-empty", _FIRST, lambda f: f.polygon(10, 10, 20, 20)),
    instances("empty-polygon", "polygon-empty", _FIRST, lambda f: f.polygon()),
    instances(
        "odd", "polygon-coordinates", _FIRST, lambda f: f.polygon(10, 10, 20, 10, 20, 20, 10)
    ),
    instances(
        "nan", "polygon-coordinates", _FIRST,
        lambda f: f.polygon(10, 10, 20, float("nan"), 20, 20),
    ),
    instances(
        "outside", "polygon-outside", _FIRST, lambda f: f.polygon(70, 10, 80, 10, 80, 20, 70, 20)
    ),
    instances(
        "far-outside", "polygon-outside", _FIRST, lambda f: f.polygon(10, 10, 1e9, 10, 20, 20)
    ),
    instances(
        "partly-outside", "polygon-outside", _FIRST,
        lambda f: (
            f.polygon(50, 10, 70, 10, 70, 20, 50, 20), f.annotation().update(bbox=[50, 10, 10, 10])
        ),
        "warning",
    ),
    instances(
        "self-intersecting", "polygon-self-intersecting", _FIRST,
        lambda f: (
            f.polygon(10, 10, 20, 20, 20, 10, 10, 20), f.annotation().update(area=50)
        ),
        "warning",
    ),
    instances(
        "within", "polygon-within-polygon", _FIRST,
        lambda f: f.annotation().update(
            segmentation=[[10, 10, 20, 10, 20, 20, 10, 20], [13, 13, 17, 13, 17, 17, 13, 17]]
        ),
        "warning",
    ),
    instances(
        "twice", "same-object-twice", "image 5, annotation 16",
        lambda f: f.content["annotations"].append({**f.annotation(), "id": 16}), "warning",
    ),
    instances(
        "crossing-in-a-vertex", "polygon-self-intersecting", _FIRST,
        lambda f: (
            f.polygon(10, 10, 15, 15, 20, 20, 20, 10, 15, 15, 10, 20),
            f.annotation().update(area=50),
        ),
        "warning",
    ),
    instances(
        "no-pixel", "zero-area", _FIRST, lambda f: f.polygon(5, 5, 5.1, 5, 5.1, 5.1), "warning"
    ),
    instances(
        "rle-empty", "zero-area", _SECOND,
        lambda f: f.annotation(1)["segmentation"].update(counts=[HEIGHT * WIDTH]), "warning",
    ),
    Case(
        "instances-rle-text", FORMATS[0], rle(lambda rle: rle.update(counts="b0\x7f!")),
        "rle-invalid", "annotations.json", _SECOND,
    ),
    Case(
        "instances-rle-cut", FORMATS[0], rle(lambda rle: rle.update(counts=rle["counts"][:-3])),
        "rle-invalid", "annotations.json", _SECOND,
    ),
    Case(
        "instances-rle-sum", FORMATS[0], rle(lambda rle: rle.update(counts=[100, 20])),
        "rle-invalid", "annotations.json", _SECOND,
    ),
    Case(
        "instances-rle-negative", FORMATS[0],
        rle(lambda rle: rle.update(counts=[HEIGHT * WIDTH + 5, -5])),
        "rle-invalid", "annotations.json", _SECOND,
    ),
    Case(
        "instances-rle-no-size", FORMATS[0], rle(lambda rle: rle.pop("size")),
        "rle-invalid", "annotations.json", _SECOND,
    ),
    Case(
        "instances-rle-size", FORMATS[0], rle(lambda rle: rle.update(size=[WIDTH, HEIGHT])),
        "rle-size", "annotations.json", _SECOND,
    ),
    instances(
        "crowd-polygon", "crowd-polygon", _FIRST, lambda f: f.annotation().update(iscrowd=1),
        "warning",
    ),
    instances(
        "area", "wrong-area", _FIRST, lambda f: f.annotation().update(area=900), "warning"
    ),
    instances(
        "area-of-rle", "wrong-area", _SECOND, lambda f: f.annotation(1).update(area=99), "warning"
    ),
    instances(
        "area-0", "wrong-area", _FIRST,
        lambda f: (
            f.polygon(10, 10, 12, 10, 12, 12, 10, 12),
            f.annotation().update(area=0, bbox=[10, 10, 2, 2]),
        ),
        "warning",
    ),
    instances(
        "bbox", "bbox-wrong", _FIRST, lambda f: f.annotation().update(bbox=[10, 10, 20, 20]),
        "warning",
    ),
    instances("bbox-empty", "bbox-wrong", _FIRST, lambda f: f.annotation().update(bbox=[])),
]  # fmt: skip
