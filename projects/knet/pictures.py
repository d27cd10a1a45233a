"""Pictures as programs have them: files, arrays, PIL images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image

from knet.data.images import BROKEN_FILE, has_deep_channels, read_picture, upright_rgb

Picture: TypeAlias = str | os.PathLike[str] | np.ndarray | Image.Image


def read_any(image: Picture, max_pixels: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels of a picture, upright.

    Args:
        image: a file, an (H, W, 3) uint8 array in RGB order, or a PIL image.
        max_pixels: more are refused, before a file is decoded.

    Raises:
        ValueError: it is none of these, broken, empty or too large, or has more than 8 bit a
            channel; a file that is missing is a FileNotFoundError too.
    """
    if isinstance(image, Image.Image):
        kind = f"the PIL image of {image.width}x{image.height} pixels (mode {image.mode})"
        if has_deep_channels(image):
            raise ValueError(
                f"{kind} has more than 8 bit a channel, a part would be cut: scale its values to "
                "0 … 255 and convert it to 8 bit a channel"
            )
        _check_size((image.height, image.width), kind, max_pixels)
        try:
            return upright_rgb(image)
        except BROKEN_FILE as error:
            raise ValueError(
                f"{kind} cannot be read: {str(error) or type(error).__name__}"
            ) from error
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"an image must be an (H, W, 3) uint8 array in RGB order, not {image.shape} "
                f"{image.dtype}"
            )
        _check_size(image.shape[:2], f"the array of shape {image.shape}", max_pixels)
        return image
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(
            f"an image is a file's path, an array or a PIL image, not {type(image).__name__}"
        )
    name = os.fspath(image)
    if "://" in name:
        raise ValueError(f"{name}: an image is a local file; download it first")
    return read_picture({"file_name": name}, image_format="RGB", max_pixels=max_pixels)


def _check_size(size: Sequence[int], kind: str, max_pixels: int) -> None:
    pixels = size[0] * size[1]
    if not pixels:
        raise ValueError(f"{kind} has no pixel")
    if pixels > max_pixels:
        raise ValueError(
            f"{kind} has {pixels:,} pixels, more than INPUT.MAX_PIXELS ({max_pixels:,}) allows: "
            "scale it down or cut it into tiles, or raise INPUT.MAX_PIXELS"
        )
