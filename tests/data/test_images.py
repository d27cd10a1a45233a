"""What is refused before it costs memory or time, and that every message names the file."""

import os
import socket
import struct
import threading
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from workload import peak_memory

from knet.data.defects import DataError
from knet.data.images import (
    MAX_PIXELS,
    TooManyPixelsError,
    check_picture,
    open_image,
    pillow_limit,
    read_header,
    read_picture,
)
from knet.data.label_png import open_label_png
from knet.data.panoptic_png import read_panoptic_png
from knet.predictor import KNetPredictor


@pytest.fixture
def read(tiny_cfg):
    """The predictor's reader; no model is needed."""
    nothing = SimpleNamespace(eval=lambda: nothing, device=torch.device("meta"))
    predictor = KNetPredictor(tiny_cfg, nothing, None)
    return lambda image: predictor.prepare(image)["image"]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_bomb(path, side, *, color=2, rows=4):
    """A PNG whose header claims side x side pixels; only the first rows are there."""
    header = struct.pack(">IIBBBBB", side, side, 8, color, 0, 0, 0)
    line = b"\0" + bytes(side * (3 if color == 2 else 1))
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(line * rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return str(path)


def doors(path, read):
    yield lambda: read_picture({"file_name": path}, image_format="RGB")
    yield lambda: read(path)
    yield lambda: read_panoptic_png(path)
    yield lambda: open_label_png(path)


@pytest.mark.parametrize("side", [10_001, 13_000, 60_000])
def test_bombs_are_refused_by_their_header(read, tmp_path, side, monkeypatch):
    path = write_bomb(tmp_path / "bomb.png", side)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own
        for door in doors(path, read):
            with pytest.raises(DataError) as caught:
                door()
            text = str(caught.value)
            assert caught.value.defect.kind == "image-too-large" and path in text
            assert f"{side * side:,} pixels, more than INPUT.MAX_PIXELS (100,000,000)" in text
    _, (defect,) = check_picture({"file_name": path})
    assert (defect.kind, defect.severity) == ("image-too-large", "error")
    assert read_header({"file_name": path}).size == (side, side)  # sizes cost nothing


def test_the_limit_is_the_configs(read, tiny_cfg, tmp_path):
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    tiny_cfg.INPUT.MAX_PIXELS = 1999
    picture = Image.open(tmp_path / "a.png")
    for image in (tmp_path / "a.png", picture, np.asarray(picture)):
        with pytest.raises(
            ValueError, match=r"2,000 pixels, more than INPUT\.MAX_PIXELS \(1,999\)"
        ):
            read(image)
    tiny_cfg.INPUT.MAX_PIXELS = 2000
    read(tmp_path / "a.png")
    # more than Pillow allows by itself, where the key does
    bomb = write_bomb(tmp_path / "bomb.png", 20_000)
    pillow = Image.MAX_IMAGE_PIXELS
    try:
        with open_image(bomb, max_pixels=400_000_000) as image:
            assert image.size == (20_000, 20_000)
        with pytest.raises(TooManyPixelsError), open_image(bomb, max_pixels=MAX_PIXELS):
            pass
    finally:
        Image.MAX_IMAGE_PIXELS = pillow


def test_pillows_limit_survives_threads(tmp_path, monkeypatch):
    """One thread lifts the limit while another opens, as evaluators of two kinds do."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    inside, leave = threading.Event(), threading.Event()

    def lift():
        with pillow_limit(None):
            inside.set()
            leave.wait(0.2)

    thread = threading.Thread(target=lift)
    thread.start()
    inside.wait()
    with open_image(tmp_path / "a.png", max_pixels=None) as image:  # waits for the other
        assert image.size == (40, 40)
    thread.join()
    assert Image.MAX_IMAGE_PIXELS == 100


def test_text_that_unpacks_to_much_is_not_unpacked(read, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    packer, big = zlib.compressobj(), b""
    for _ in range(64):
        big += packer.compress(bytes(1 << 20))
    big += packer.flush()
    for kind, head in ((b"zTXt", b"note\0\0"), (b"iCCP", b"profile\0\0")):
        bomb = tmp_path / f"{kind.decode()}.png"
        bomb.write_bytes(content[:33] + chunk(kind, head + big) + content[33:])

        def refuse(bomb=bomb):
            with pytest.raises(DataError, match=rf"{bomb}.*too large"):
                read(bomb)

        assert peak_memory(refuse, "cpu") < 30 << 20


def test_only_regular_files_are_opened(read, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # names of sockets are short
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        for path, kind in (
            (tmp_path / "pipe.png", "a named pipe"),
            (tmp_path / "folder.png", "a folder"),
            (tmp_path / "socket.png", "a socket"),
            ("/dev/zero", "a device"),
        ):
            for door in doors(str(path), read):
                with pytest.raises(DataError) as caught:
                    door()
                assert f"it is {kind}, not a file" in str(caught.value)
                assert str(path) in str(caught.value)


def test_damaged_pictures_are_one_error_that_names_them(read, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), np.uint8)
    image, rng = Image.fromarray(pixels), np.random.default_rng(5)
    bad = 0
    for form in ("png", "jpg", "tif", "bmp", "gif", "webp", "ppm", "tga", "avif", "jp2"):
        whole = tmp_path / f"whole.{form}"
        image.save(whole)
        content = whole.read_bytes()
        for case in range(24):
            damaged = bytearray(content)
            if case % 3 == 0:
                damaged = damaged[: int(rng.integers(len(content)))]
            for place in rng.integers(0, min(len(damaged), 120) or 1, (case % 3) * 4):
                damaged[place] = rng.integers(256)
            path = tmp_path / f"{case}.{form}"
            path.write_bytes(damaged)
            errors = []
            for door in list(doors(str(path), read))[:2]:
                try:
                    door()
                    errors.append("")
                except DataError as error:
                    errors.append(str(error))
                    assert str(path) in str(error) and ";" in str(error)
            assert errors[0] == errors[1]
            bad += bool(errors[0])
    assert bad > 100


def test_what_would_be_cut_or_is_no_picture(read, tmp_path):
    deep = np.full((6, 6), 40_000, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "long.tif")
    for name in ("deep.png", "float.tif", "long.tif"):
        with pytest.raises(DataError) as expected:
            read_picture({"file_name": str(tmp_path / name)}, image_format="RGB")
        with pytest.raises(DataError, match="more than 8 bit a channel") as caught:
            read(tmp_path / name)
        assert str(caught.value) == str(expected.value)
        with pytest.raises(ValueError, match="more than 8 bit a channel"):
            read(Image.open(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"gone\.png.*correct the name"):
        read(tmp_path / "gone.png")
    Image.effect_noise((60, 60), 9).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"the PIL image of 60x60 pixels .* cannot be read"):
        read(Image.open(tmp_path / "cut.jpg"))
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(DataError, match="PostScript"):
        read(tmp_path / "script.eps")
    for image in (
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3)),
        np.zeros((2, 5, 5, 3), np.uint8),
        Image.new("RGB", (0, 5)),
        5,
        None,
        b"a.png",
        "https://example.org/a.png",
    ):
        with pytest.raises(ValueError, match=r"pixel|array|PIL|file"):
            read(image)
