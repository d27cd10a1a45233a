"""Outlines hold exactly the pixels of their masks, and images stay within their budget of bytes."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from knet.classes import Category
from knet.report.collect import ReportCollector
from knet.report.outlines import (
    BYTES_AN_IMAGE,
    draw_image,
    inner_point,
    outline,
    shrink_labels,
)


def filled(path, size):
    """The pixels inside of a path, by the even-odd rule: its vertical lines to their left."""
    crossings = np.zeros((size[0], size[1] + 1), int)
    x = y = 0
    for command, numbers in re.findall(r"([Mhvz])([-\d ]*)", path):
        if command == "M":
            x, y = map(int, numbers.split())
            start = (x, y)
        elif command == "h":
            x += int(numbers)
        else:
            end = y + int(numbers) if command == "v" else start[1]
            assert command == "v" or x == start[0]  # what closes a path is a straight line
            crossings[min(y, end) : max(y, end), x] += 1
            y = end
    return crossings.cumsum(1)[:, :-1] % 2 == 1


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_any_mask(share):
    mask = np.random.default_rng(0).random((23, 31)) < share
    assert (filled(outline(mask), mask.shape) == mask).all()


def test_simple_masks():
    mask = np.zeros((5, 6), bool)
    assert outline(mask) == ""
    mask[1:4, 2:5] = True
    assert outline(mask) == "M2 1h3v3h-3z"
    mask[2, 3] = False
    assert outline(mask).count("M") == 2  # a hole
    assert outline(np.ones((5, 6), bool)) == "M0 0h6v5h-6z"


def test_inner_point_is_deep_inside():
    mask = np.zeros((40, 60), bool)
    mask[10:31, 20:41] = True
    assert inner_point(mask) == (30, 20)
    mask[10:31, 29:32] = False  # two halves
    x, y = inner_point(mask)
    assert mask[y - 3 : y + 4, x - 3 : x + 4].all()


def test_small_maps_take_the_nearest_pixels():
    labels = np.arange(12).reshape(3, 4)
    assert shrink_labels(labels, (3, 4)).tolist() == labels.tolist()
    assert shrink_labels(np.kron(labels, np.ones((2, 2), int)), (3, 4)).tolist() == labels.tolist()


def test_images_stay_small(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.png"
    Image.fromarray(rng.integers(0, 256, (450, 600, 3), np.uint8)).save(path)
    labels = rng.integers(0, 8, (450, 600)).astype(np.uint8)  # the worst that there can be
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {"file_name": str(path), "sem_seg_file_name": str(tmp_path / "labels.png")}
    categories = [Category(k, k, f"class {k}", False) for k in range(8)]
    collector = ReportCollector(task="semantic", categories=categories)
    output = torch.nn.functional.one_hot(torch.as_tensor(labels).long(), 8).permute(2, 0, 1)
    collector.add(record, {"sem_seg": output})
    (image,) = collector.images
    assert image.quality == 1 and collector.pixel_confusion.counts.trace() == labels.size
    picture = draw_image(image)
    assert picture.num_bytes < BYTES_AN_IMAGE
    assert max(picture.width, picture.height) >= 64 and len(picture.truth) == 8
    assert 200 * BYTES_AN_IMAGE < 18e6
