"""One tile is a picture by itself; how tiles are joined is tested in tests/tiles."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from knet.errors import UserError

rasterio = pytest.importorskip("rasterio", reason="no rasterio: pip install -e '.[tiles]'")

from knet.predict.tiles import predict_tiles, segmenter_of  # noqa: E402

from ..export.models import scene, small_cfg, small_predictor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def predictor():
    return small_predictor(small_cfg("panoptic", "INPUT.MIN_SIZE_TEST", 96), "panoptic")


@pytest.fixture
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "000001.png"
    Image.fromarray(scene(96, 96, 1)).save(path)
    return path


def read_labels(path):
    with rasterio.open(path) as file:
        return file.read(1)


def test_a_single_tile_gives_the_models_panoptic_segments(predictor, picture, tmp_path):
    said = []
    done = predict_tiles(predictor, [str(picture)], tile=96, output=str(tmp_path), say=said.append)
    assert (done.count, done.total, done.problems, said) == (1, 1, 0, [])
    expected, segments = predictor(picture)["panoptic_seg"]
    assert len(segments) > 2
    assert np.array_equal(read_labels(done.files[picture]), expected.numpy())
    annotations = json.loads((tmp_path / "000001_segments.json").read_text())["annotations"]
    ids = {(c.is_thing, c.label): c.id for c in predictor.categories}
    for annotation, segment in zip(annotations, segments):
        assert annotation["category_id"] == ids[segment["isthing"], segment["category_id"]]
        assert annotation["score"] == pytest.approx(segment["score"], abs=1e-12)
        assert annotation["image_id"] == 1
        mask = mask_util.decode(annotation["segmentation"]).astype(bool)
        assert np.array_equal(mask, expected.numpy() == segment["id"])


def test_a_single_tile_gives_the_models_instances(predictor, picture):
    found = predictor(picture)["instances"]
    threshold = float(found.scores[len(found) // 2])
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    segmenter = segmenter_of(predictor, "instance", threshold)
    tile = segmenter.segment(pixels)
    assert all(kind.is_thing for kind in segmenter.classes)
    assert 0 < len(tile.scores) <= int((found.scores >= threshold).sum())
    # each is what no better one has of a mask of its class, half of the mask or more
    taken = np.zeros(pixels.shape[:2], bool)
    for number, (place, score) in enumerate(zip(tile.classes, tile.scores), start=1):
        mine = tile.ids == number
        rows = [k for k, other in enumerate(found.scores.double().tolist()) if other == score]
        masks = [found.pred_masks[k].numpy() for k in rows]
        assert any(np.array_equal(mask & ~taken, mine) for mask in masks)
        assert any(mine.sum() >= mask.sum() / 2 for mask in masks)
        names = {c.label: c.name for c in predictor.categories}
        assert segmenter.classes[place].name in [names[int(found.pred_classes[k])] for k in rows]
        taken |= mine


def test_a_single_tile_gives_the_models_classes(predictor, picture, tmp_path):
    predict_tiles(predictor, [str(picture)], tile=96, output=str(tmp_path), task="semantic")
    scores = predictor(picture)["sem_seg"]
    labels = scores.argmax(0).numpy()
    assert np.array_equal(read_labels(tmp_path / "000001_labels.tif"), labels + 1)
    content = json.loads((tmp_path / "000001_segments.json").read_text())
    assert not any(category["isthing"] for category in content["categories"])
    for annotation in content["annotations"]:
        inside = labels == annotation["id"] - 1
        assert annotation["area"] == inside.sum()
        best = scores.max(0).values.numpy()[inside].astype(float).mean()
        assert annotation["score"] == pytest.approx(best, abs=1e-9)


def test_what_cannot_be_read_is_told_and_the_rest_done(predictor, picture, tmp_path):
    (tmp_path / "text.tif").write_text("no picture")
    (tmp_path / "text.png").write_text("no picture")
    broken = [str(tmp_path / name) for name in ("text.tif", "text.png")]
    with pytest.raises(UserError, match="would have one name"):
        predict_tiles(predictor, [*broken], tile=96, output=str(tmp_path / "out"))
    (tmp_path / "text.png").rename(tmp_path / "other.png")
    said = []
    done = predict_tiles(
        predictor, [broken[0], str(tmp_path / "other.png"), str(picture)], tile=96,
        output=str(tmp_path / "out"), say=said.append,
    )  # fmt: skip
    assert (done.count, done.problems) == (1, 2)
    assert "text.tif cannot be read as a TIFF" in said[0]
    assert "other.png cannot be read as a picture" in said[1]
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_results_never_replace_the_picture(predictor, picture, tmp_path):
    image = Image.open(picture)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a_labels.tif")
    names = [str(tmp_path / "a.png"), str(tmp_path / "a_labels.tif")]
    with pytest.raises(UserError, match=r"a_labels.tif would be overwritten by results"):
        predict_tiles(predictor, names, tile=96, output=str(tmp_path))
