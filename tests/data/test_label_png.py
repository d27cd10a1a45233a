"""Label PNGs: what is refused, and with which words."""

import numpy as np
import pytest
from PIL import Image

from knet.data.defects import DataError, raise_first
from knet.data.label_png import class_defects, open_label_png, read_label_png

from .breaking import few_bits

SIZE = (4, 6)


def read(tmp_path, image: Image.Image, **arguments):
    path = tmp_path / "sem.png"
    image.save(path)
    arguments = {"num_classes": 3, "ignore_label": 255, **arguments}
    return read_label_png(str(path), SIZE, **arguments)


def test_greyscale(tmp_path):
    labels = np.zeros(SIZE, np.uint8)
    labels[0, :3] = 2, 255, 9
    read_back = read(tmp_path, Image.fromarray(labels), num_classes=None)
    np.testing.assert_array_equal(read_back, labels)
    assert read_back.dtype == np.uint8
    labels[0, 1] = 1
    read_back = read(tmp_path, Image.fromarray(labels), ignore_label=9)
    assert read_back[0].tolist() == [2, 1, 255, 0, 0, 0]


@pytest.mark.parametrize("bits", [2, 4])
def test_greys_of_few_bits_keep_their_values_but_are_refused(tmp_path, bits):
    labels = (np.arange(24, dtype=np.uint8) % 2**bits).reshape(SIZE)
    few_bits(tmp_path / "few.png", labels, bits)
    mode, values = open_label_png(tmp_path / "few.png")
    assert mode == f"L;{bits}"
    np.testing.assert_array_equal(values, labels)
    words = rf"{bits} bit greyscale image \(mode L;{bits}; largest value {2**bits - 1}\)"
    with pytest.raises(DataError, match=words):
        read_label_png(str(tmp_path / "few.png"), SIZE, 16, 255)


def _palette(largest):
    image = Image.fromarray(np.full(SIZE, largest, np.uint8), mode=None)
    image = image.convert("L")
    image.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
    return image


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (_palette(7), r"palette image \(mode P; largest value 7\)"),
        (
            Image.fromarray(np.full(SIZE, 300, np.uint16)),
            r"16 or 32 bit greyscale image \(mode I\S*; largest value 300\)",
        ),
        (Image.fromarray(np.ones(SIZE, bool)), r"1 bit image \(mode 1; largest value 1\)"),
    ],
)
def test_other_kinds_are_refused_with_the_mend(tmp_path, image, words):
    mend = r"`python datasets/prepare_label_pngs\.py IN OUT`"
    with pytest.raises(ValueError, match=rf"sem\.png: a label map is .*{words}; convert .*{mend}"):
        read(tmp_path, image)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGBA", 4), ("LA", 2)])
def test_colours_are_refused(tmp_path, mode, channels):
    message = rf"sem\.png: a label map has one channel, this one has {channels} \(mode {mode}\)"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, Image.new(mode, SIZE[::-1]))


def test_size_and_range(tmp_path):
    with pytest.raises(ValueError, match=r"sem\.png is 6x5 \(width x height\), but .* 6x4"):
        read(tmp_path, Image.new("L", (6, 5)))
    with pytest.raises(ValueError, match=r"sem\.png: label 3, but there are 3, 0 to 2"):
        read(tmp_path, Image.new("L", SIZE[::-1], 3))


def test_known_classes():
    assert class_defects(np.array([11, 18]), range(11, 19), "x", "class") == []
    assert class_defects(np.array([]), range(2), "x", "class") == []
    assert class_defects(np.array([5]), None, "x", "class") == []
    for values, known, message in (
        ([11, 8], range(11, 19), r"x: class 8, but there are 8, 11 to 18"),
        ([2], [1, 3], r"x: class 2, but there are 2, 1, 3"),
        ([-1], None, "x: class -1, but must not be negative"),
        ([0], [], "x: class 0, but there are 0"),
    ):
        with pytest.raises(ValueError, match=message):
            raise_first(class_defects(np.array(values), known, "x", "class"))


def test_masks_of_0_and_255_are_noticed(tmp_path, caplog):
    from knet.data import KNetDatasetMapper

    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": SIZE[0], "width": SIZE[1],
              "sem_seg_file_name": str(tmp_path / "labels.png")}  # fmt: skip
    labels = np.zeros(SIZE, np.uint8)
    for foreground, warnings in ((255, 1), (1, 0)):
        mapper = KNetDatasetMapper(
            True, augmentations=[], image_format="RGB", targets=["sem_seg"], num_classes=2
        )
        labels[0] = foreground
        Image.fromarray(labels).save(tmp_path / "labels.png")
        caplog.clear()
        for _ in range(20):
            mapper(record)
        assert caplog.text.count("--map 255=1") == warnings
