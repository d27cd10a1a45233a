"""From a TIFF to a label TIFF, COCO's JSON, a table and a drawing."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

rasterio = pytest.importorskip("rasterio", reason="no rasterio: pip install -e '.[tiles]'")

from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402

from knet_run.tiles.raster import open_picture  # noqa: E402
from knet_run.tiles.run import TiledFiles, segment_picture  # noqa: E402
from knet_run.tiles.segments import Segmenter  # noqa: E402

from .scenes import CLASSES, SEGMENTER, disc  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SIZE = (520, 700)
CORNER = from_origin(500_000, 4_000_000, 0.5, 0.5)


def scene():
    pixels = np.full((*SIZE, 3), (0, 0, 200), np.uint8)
    pixels[disc(SIZE, (260, 350), 170)] = (255, 0, 0)
    pixels[disc(SIZE, (260, 350), 90)] = (0, 255, 0)
    pixels[450:, 600:] = 0
    return pixels


def write_tiff(path, pixels, **options):
    bands = np.atleast_3d(pixels)
    options = {"driver": "GTiff", "height": bands.shape[0], "width": bands.shape[1],
               "count": bands.shape[2], "dtype": bands.dtype, **options}  # fmt: skip
    with rasterio.open(path, "w", **options) as file:
        file.write(np.moveaxis(bands, -1, 0))


def run(path, folder, segmenter=SEGMENTER, **options):
    files = TiledFiles.of(folder, path.stem)
    options = {"tile": (256, 256), "overlap": 32, "file_name": path.name, **options}

    def read(path):
        return np.asarray(Image.open(path).convert("RGB"))

    with open_picture(path, read=read, rows=256) as picture:
        return files, segment_picture(picture, segmenter, files, **options)


@pytest.fixture
def tiff(tmp_path):
    path = tmp_path / "town.tif"
    write_tiff(path, scene(), crs="EPSG:32632", transform=CORNER, tiled=True, compress="lzw")
    return path


def test_results_of_a_tiff(tiff, tmp_path):
    seen = []
    files, _ = run(
        tiff, tmp_path, image_id=5, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(k, 9) for k in range(1, 10)]
    with rasterio.open(files.labels) as labels:
        ids = labels.read(1)
        assert (labels.crs.to_epsg(), labels.transform) == (32632, CORNER)
        assert (labels.dtypes, labels.nodata) == (("uint32",), 0)
        assert labels.block_shapes == [(512, 512)]
    pixels = scene()
    coco = COCO(files.segments)
    assert coco.imgs == {5: {"id": 5, "file_name": "town.tif", "height": 520, "width": 700}}
    assert {c["id"]: c["isthing"] for c in coco.cats.values()} == {7: 1, 3: 0, 9: 1}
    names = [coco.cats[a["category_id"]]["name"] for a in coco.anns.values()]
    assert sorted(names) == ["disc", "ring", "sky"]
    for number, annotation in coco.anns.items():
        place = {7: 0, 3: 2, 9: 1}[annotation["category_id"]]
        expected = (pixels.argmax(axis=2) == place) & pixels.any(axis=2)
        assert np.array_equal(ids == number, expected)
        assert np.array_equal(coco.annToMask(annotation), expected)
        assert annotation["area"] == expected.sum()
        rows, columns = (np.flatnonzero(expected.any(axis)) for axis in (1, 0))
        x, y, width, height = annotation["bbox"]
        assert [x, x + width, y, y + height] == [columns[0], columns[-1] + 1, rows[0], rows[-1] + 1]
    table = list(csv.DictReader(files.table.open()))
    assert [int(line["id"]) for line in table] == list(coco.anns)
    assert [line["class"] for line in table] == names
    assert [int(line["area"]) for line in table] == [a["area"] for a in coco.anns.values()]
    drawn = np.asarray(Image.open(files.overview)).astype(int)
    assert drawn.shape == (520, 700, 3)
    assert drawn[260, 350, 1] > 200 > drawn[260, 350, 0]  # green under green
    assert drawn[500, 650].max() < 40  # void is left alone
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["town.tif", *(p.name for p in vars(files).values())]
    )


def test_tiles_and_repetition_change_nothing(tiff, tmp_path):
    first, _ = run(tiff, tmp_path)
    before = [path.read_bytes() for path in vars(first).values()]
    run(tiff, tmp_path)
    assert [path.read_bytes() for path in vars(first).values()] == before
    whole = TiledFiles.of(tmp_path, "whole")
    with open_picture(tiff, read=Image.open, rows=256) as picture:
        segment_picture(picture, SEGMENTER, whole, tile=SIZE, overlap=0, file_name=tiff.name)
    masks = []
    for files in (first, whole):
        annotations = json.loads(files.segments.read_text())["annotations"]
        masks.append({(a["category_id"], a["segmentation"]["counts"]) for a in annotations})
    assert masks[0] == masks[1]


def test_control_points_are_kept(tmp_path):
    points = [GroundControlPoint(0, 0, 10, 50), GroundControlPoint(0, 99, 11, 50),
              GroundControlPoint(99, 0, 10, 49)]  # fmt: skip
    write_tiff(tmp_path / "a.tif", scene()[:100, :100], gcps=points, crs="EPSG:4326")
    files, _ = run(tmp_path / "a.tif", tmp_path)
    with rasterio.open(files.labels) as labels:
        found, crs = labels.gcps
    assert crs.to_epsg() == 4326
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]


@pytest.mark.parametrize("bands", ["grey", "alpha", "infrared", "jpeg", "png"])
def test_pixels_are_rgb(tmp_path, bands):
    seen = []

    def segment(pixels):
        seen.append(pixels)
        return SEGMENTER.segment(pixels)

    pixels = np.random.default_rng(0).integers(0, 256, (80, 90, 4), np.uint8)
    path = tmp_path / "a.tif"
    expected = pixels[..., :3]
    if bands == "png":
        path = tmp_path / "a.png"
        Image.fromarray(expected).save(path)
    elif bands == "jpeg":
        options = {"photometric": "YCBCR", "compress": "JPEG", "jpeg_quality": 100}
        expected = np.full_like(expected, (200, 60, 30))
        write_tiff(path, expected, **options)
    elif bands == "grey":
        write_tiff(path, pixels[..., 0])
        expected = pixels[..., :1].repeat(3, axis=2)
    else:
        write_tiff(path, pixels, photometric="RGB", alpha="YES" if bands == "alpha" else "NO")
    run(path, tmp_path, Segmenter(CLASSES, segment))
    difference = np.abs(seen[0].astype(int) - expected)
    assert difference.max() <= (2 if bands == "jpeg" else 0)


def damaged(path, kind):
    pixels = scene()
    if kind == "cut":
        write_tiff(path, pixels)
        path.write_bytes(path.read_bytes()[:500_000])
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "deep":
        write_tiff(path, pixels.astype(np.uint16))
    else:
        write_tiff(path, pixels[..., 0], photometric="PALETTE")
        with rasterio.open(path, "r+") as file:
            file.write_colormap(1, {k: (k, 0, 0, 255) for k in range(256)})


@pytest.mark.parametrize(
    ("kind", "message"),
    [("cut", r"a.tif: rows \d+ to \d+, columns 0 to 256 cannot be read, is the file whole\?"),
     ("text", "a.tif cannot be read as a TIFF: .*not recognized"),
     ("deep", "a.tif has pixels of uint16: convert them to 8 bit"),
     ("palette", "a.tif has a palette: convert it to RGB")],
)  # fmt: skip
def test_bad_files_are_one_error_and_leave_nothing(tmp_path, kind, message):
    damaged(tmp_path / "a.tif", kind)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a.tif", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_an_interruption_leaves_what_was_there(tiff, tmp_path):
    files, _ = run(tiff, tmp_path)
    before = files.labels.read_bytes()

    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiff, tmp_path, progress=stop)
    assert files.labels.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 5


def test_a_folder_that_cannot_be_written_is_named(tiff, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise rasterio.errors.RasterioIOError("No space left on device")

    monkeypatch.setattr("knet_run.tiles.raster.rasterio.open", full)
    from knet_run.tiles.raster import LabelWriter

    with pytest.raises(OSError, match=r"out.tif cannot be written: No space left on device"):
        LabelWriter(tmp_path / "out.tif", size=(10, 10))


def test_the_json_has_a_class_that_occurs_alone(tmp_path):
    Image.fromarray(np.full((70, 70, 3), (0, 0, 9), np.uint8)).save(tmp_path / "a.png")
    files, _ = run(tmp_path / "a.png", tmp_path)
    (annotation,) = json.loads(files.segments.read_text())["annotations"]
    assert (annotation["category_id"], annotation["area"]) == (3, 4900)
