"""Ways to damage bytes, JSON and pictures, each drawn by a generator of its own."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

__all__ = ["ODD", "damage_bytes", "damage_file", "damage_json", "damage_picture", "pick"]

# values of a type or size that nobody expects
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 3, 7, 1000, 2**31, 2**63, -(2**63), 0.5, -0.5, 1e308, math.nan,
    math.inf, -math.inf, "", "x", "5", "été", "a\0b", "../../etc/passwd", [], [[]], [0], [1, 2],
    [None], ["x"], [-1, -1, -1, -1], {}, {"x": 1}, {"size": [4, 4], "counts": "x"},
]  # fmt: skip


def pick(rng: Generator, choices: Any) -> Any:
    """One of a sequence, whatever its elements are."""
    return choices[int(rng.integers(len(choices)))]


def damage_bytes(rng: Generator, content: bytes) -> bytes:
    """Bytes flipped, cut, inserted, repeated or blotted out; never the same as before."""
    while True:
        data = bytearray(content)
        kind = int(rng.integers(8))
        place = int(rng.integers(max(len(data), 1)))
        length = int(rng.integers(1, 64))
        if kind < 3:  # the hardest to see
            for _ in range(1 if kind == 0 else int(rng.integers(1, 9))):
                place = int(rng.integers(max(len(data), 1)))
                if data:
                    data[place] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            del data[place:]
        elif kind == 4:
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif kind == 5:
            data[place:place] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        elif kind == 6:
            del data[place : place + length]
        else:
            data[place:place] = data[:length]
        if bytes(data) != content:
            return bytes(data)


def damage_json(rng: Generator, content: Any) -> bytes:
    """Text of JSON in which one or two values are odd, missing or double; or damaged text."""
    kind = int(rng.integers(10))
    if kind == 0:
        return damage_bytes(rng, json.dumps(content).encode())
    if kind == 1:
        text = json.dumps(content)
        return pick(rng, [
            b"", b"null", b"[]", b"{}", b"7", b"[" * 100_000, b'{"a":' * 5000,
            text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(), b"\xff" + text.encode(),
            text.encode()[: len(text) // 2], b"\x1f\x8b" + text.encode(), text.encode() * 2,
        ])  # fmt: skip
    content = copy.deepcopy(content)
    for _ in range(1 + int(rng.integers(2))):
        content = _damage_tree(rng, content)
    return json.dumps(content).encode()


def _damage_tree(rng: Generator, tree: Any) -> Any:
    places = list(_places(tree))
    if not places:
        return pick(rng, ODD)
    holder, key = pick(rng, places)
    kind = int(rng.integers(6))
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == 2:
        other, other_key = pick(rng, places)
        holder[key] = copy.deepcopy(other[other_key])
    elif kind == 3 and type(holder[key]) in (int, float):
        holder[key] = pick(rng, [-holder[key], holder[key] * 1000, holder[key] + 0.5,
                                 str(holder[key])])  # fmt: skip
    else:
        holder[key] = copy.deepcopy(pick(rng, ODD))
    return tree


def _places(tree: Any) -> Any:
    """(holder, key) of every value below."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def damage_file(rng: Generator, path: Path) -> str:
    """Damage a file's bytes, or put something else in its place; says what."""
    kind = int(rng.integers(16))
    content = path.read_bytes()
    path.unlink()
    if kind == 0:
        os.mkfifo(path)
        return "pipe"
    if kind == 1:
        path.mkdir()
        return "folder"
    if kind == 2:
        path.symlink_to(path)
        return "loop"
    if kind == 3:
        return "missing"
    if kind == 4:
        path.write_bytes(pick(rng, [b"", b"\0" * 100, b"<!DOCTYPE html>", b"x", b"{}"]))
        return "other content"
    path.write_bytes(damage_bytes(rng, content))
    return "bytes"


def damage_picture(rng: Generator, path: Path) -> str:
    """A picture of another kind or size, with damaged bytes or none of its own; says what."""
    kind = int(rng.integers(3))
    if kind == 0:
        return damage_file(rng, path)
    with Image.open(path) as opened:
        image = opened.convert("RGB") if opened.mode == "RGB" else opened.copy()
    names = list(_PICTURES)
    name = pick(rng, names)
    content = _PICTURES[name](image)
    path.write_bytes(damage_bytes(rng, content) if kind == 1 else content)
    return f"{name}, damaged" if kind == 1 else name


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _large(width: int, height: int) -> Callable[[Image.Image], bytes]:
    """A PNG whose header says that it is large; it has no more pixels than before."""

    def make(image: Image.Image) -> bytes:
        import zlib

        content = bytearray(_saved(image, "PNG"))
        content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        return bytes(content)

    return make


def _bomb(image: Image.Image) -> bytes:
    """A few kilobytes that are 169 million pixels."""
    return _saved(Image.new("1", (13_000, 13_000)), "PNG")


def _deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)


def _turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(image.convert("RGB"), "JPEG", exif=exif)


_PICTURES: dict[str, Callable[[Image.Image], bytes]] = {
    "png": lambda image: _saved(image, "PNG"),
    "jpeg": lambda image: _saved(image.convert("RGB"), "JPEG"),
    "bmp": lambda image: _saved(image.convert("RGB"), "BMP"),
    "gif": lambda image: _saved(image, "GIF"),
    "tiff": lambda image: _saved(image.convert("RGB"), "TIFF", compression="tiff_lzw"),
    "webp": lambda image: _saved(image.convert("RGB"), "WEBP"),
    "ppm": lambda image: _saved(image.convert("RGB"), "PPM"),
    "cmyk": lambda image: _saved(image.convert("CMYK"), "JPEG"),
    "16 bit": lambda image: _saved(_deep(image), "PNG"),
    "16 bit tiff": lambda image: _saved(_deep(image), "TIFF"),
    "32 bit": lambda image: _saved(image.convert("L").convert("I"), "TIFF"),
    "float": lambda image: _saved(image.convert("L").convert("F"), "TIFF"),
    "palette": lambda image: _saved(image.convert("RGB").convert("P"), "PNG"),
    "1 bit": lambda image: _saved(image.convert("1"), "PNG"),
    "grey": lambda image: _saved(image.convert("L"), "PNG"),
    "grey, alpha": lambda image: _saved(image.convert("RGB").convert("LA"), "PNG"),
    "alpha": lambda image: _saved(image.convert("RGB").convert("RGBA"), "PNG"),
    "turned": _turned,
    "frames": lambda image: _saved(image, "GIF", save_all=True, append_images=[image] * 3),
    "small": lambda image: _saved(image.resize((1, 1)), "PNG"),
    "narrow": lambda image: _saved(image.resize((1, 300)), "PNG"),
    "other size": lambda image: _saved(image.resize((31, 57)), "PNG"),
    "black": lambda image: _saved(Image.new("RGB", image.size), "PNG"),
    "white": lambda image: _saved(Image.new("L", image.size, 255), "PNG"),
    "bomb": _bomb,
    "very large": _large(20_000, 20_000),
    "large": _large(13_000, 13_000),
    "long": _large(2_000_000, 1),
    "no width": _large(0, 40),
}


def damage_yaml(rng: Generator, content: dict[str, Any]) -> tuple[str, bytes]:
    """Text of a config in which a value is odd, a key unknown, or the text itself damaged.

    Args:
        content: of a whole config.
    """
    import yaml

    kind = int(rng.integers(8))
    if kind == 0:
        return "bytes", damage_bytes(rng, yaml.safe_dump(content).encode())
    if kind == 1:
        text = yaml.safe_dump(content)
        return "text", pick(rng, [
            b"", b"[1, 2]", b"text", b"a: [", b"a: b: c", b"\t", b"MODEL: 5", b"MODEL: []",
            b"MODEL:\n  KNET:\n", b"MODEL: &a\n  X: *a", b"? [1]\n: 2", b"_BASE_: config.yaml",
            b"_BASE_: 5", b"_BASE_: [x]", b"!!python/object/apply:os.getcwd []", b"[" * 5000,
            "MODEL: {WEIGHTS: été}".encode("latin1"), text.encode("utf-16"),
            b"\xef\xbb\xbf" + text.encode(), text.encode() + b"\0", b"VERSION: 99", b"VERSION: x",
        ])  # fmt: skip
    content = copy.deepcopy(content)
    path: list[str] = []
    section = content
    # as likely in a small section as in a large one
    while True:
        key = pick(rng, list(section))
        path.append(key)
        if not isinstance(section[key], dict) or not section[key] or rng.random() < 0.02:
            break
        section = section[key]
    before = section[key]
    if kind == 2 and rng.random() < 0.3:
        path[-1] = key = f"{key}X"
        section[key] = before
    elif isinstance(before, list) and before and rng.random() < 0.5:
        place = int(rng.integers(len(before)))
        before[place] = pick(rng, ODD_VALUES)
    else:
        section[key] = copy.deepcopy(pick(rng, ODD_VALUES))
    return f"{'.'.join(path)} = {section.get(key)!r}", yaml.safe_dump(content).encode()


# of a config, where a large number is a wish to be granted
ODD_VALUES: list[Any] = [value for value in ODD if type(value) is not int or abs(value) <= 7] + [
    -1.0,
    0.0,
    -7,
    2,
    5,
    100,
    "RGB",
    [1, 1, 1],
    [0, 0],
    [-1],
    ["res2"],
    [math.nan] * 3,
    [0] * 4,
]
