"""Pictures that are read in windows, and label TIFFs that are written in blocks, by rasterio."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

try:
    import rasterio
    from rasterio.enums import ColorInterp
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.windows import Window
except ImportError as error:
    raise ImportError(
        "pictures in tiles need rasterio, which reads and writes TIFFs: pip install rasterio, or "
        "pip install -e '.[tiles]'"
    ) from error

BLOCK = 512  # pixels a side of the blocks of what is written
_CACHE = 32  # MB that GDAL keeps of decoded blocks, at least
_MOST_CACHE = 512
_TIFF = (".tif", ".tiff")


class Picture:
    """A picture that is read in windows.

    Args:
        size: (H, W).
        window: gives (h, w, 3) uint8 RGB of rows and columns.
        place: what GDAL calls the geo-reference, for `write_labels`: keys of a profile.
    """

    def __init__(
        self,
        size: tuple[int, int],
        window: Callable[[slice, slice], np.ndarray],
        place: dict[str, Any] | None = None,
    ) -> None:
        self.size = size
        self.window = window
        self.place = place or {}


@contextlib.contextmanager
def open_picture(path: Path, *, read: Callable[[Path], np.ndarray], rows: int) -> Iterator[Picture]:
    """A TIFF, which is read where it lies, or any other picture, which is read whole.

    A TIFF is read as it is stored: one band of grey, three of RGB or more, of which the first three
    count unless they are named.

    Args:
        path: of the picture.
        read: gives (H, W, 3) uint8 RGB of a picture that is no TIFF.
        rows: that are read at a time, for the cache.

    Raises:
        ValueError: naming the file and the mend: it is no TIFF, broken, or has other pixels than
            8 bit of grey or colour. `Picture.window` raises it too.
    """
    if path.suffix.lower() not in _TIFF:
        pixels = read(path)
        yield Picture((pixels.shape[0], pixels.shape[1]), lambda y, x: pixels[y, x])
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            source = stack.enter_context(rasterio.open(path))
        except RasterioError as error:
            raise ValueError(f"{path} cannot be read as a TIFF: {_reason(error)}") from error
        bands = _bands(source, path)
        decoded = rows * source.width * source.count
        megabytes = min(max(_CACHE, decoded * 5 // 4 >> 20), _MOST_CACHE)
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=megabytes))

        def window(y: slice, x: slice) -> np.ndarray:
            place = Window(x.start, y.start, x.stop - x.start, y.stop - y.start)
            try:
                pixels = source.read(bands, window=place)
            except RasterioError as error:
                raise ValueError(
                    f"{path}: rows {y.start} to {y.stop}, columns {x.start} to {x.stop} cannot be "
                    f"read, is the file whole? {_reason(error)}"
                ) from error
            return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))

        yield Picture((source.height, source.width), window, _place(source))


class LabelWriter:
    """A TIFF of one band in deflated blocks; use it in a ``with`` block.

    Args:
        path: of the file.
        size: (H, W).
        dtype: of the labels.
        place: the geo-reference, see `Picture`.
        nodata: the label that stands for none.

    Raises:
        OSError: it cannot be written; `write` raises it too.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: tuple[int, int],
        dtype: str = "uint32",
        place: dict[str, Any] | None = None,
        nodata: int | None = None,
    ) -> None:
        profile = dict(
            driver="GTiff", height=size[0], width=size[1], count=1, dtype=dtype, tiled=True,
            blockxsize=BLOCK, blockysize=BLOCK, compress="deflate", bigtiff="if_safer",
        )  # fmt: skip
        with warnings.catch_warnings(), _writing(path):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._file = rasterio.open(path, "w", **profile, **(place or {}), nodata=nodata)
        self._path = path

    def __enter__(self) -> LabelWriter:
        return self

    def __exit__(self, *error: object) -> None:
        with _writing(self._path):
            self._file.close()

    def write(self, y: int, x: int, labels: np.ndarray) -> None:
        """Write (h, w) labels; whole blocks, as others would be compressed twice."""
        with _writing(self._path):
            self._file.write(labels, 1, window=Window(x, y, labels.shape[1], labels.shape[0]))


@contextlib.contextmanager
def open_labels(path: Path) -> Iterator[Callable[[slice], np.ndarray]]:
    """A function that reads (H, w) labels of columns out of what `LabelWriter` wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            yield lambda x: source.read(
                1, window=Window(x.start, 0, x.stop - x.start, source.height)
            )


def _bands(source: Any, path: Path) -> list[int]:
    """The numbers of the bands that are red, green and blue."""
    kinds = set(source.dtypes)
    if kinds != {"uint8"}:
        raise ValueError(
            f"{path} has pixels of {' and '.join(sorted(kinds))}: convert them to 8 bit "
            "(gdal_translate -ot Byte -scale)"
        )
    named = list(source.colorinterp)
    if ColorInterp.palette in named:
        raise ValueError(f"{path} has a palette: convert it to RGB (gdal_translate -expand rgb)")
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    if all(colour in named for colour in colours):
        return [named.index(colour) + 1 for colour in colours]
    alpha = ColorInterp.alpha in named
    return [1, 2, 3] if source.count - alpha >= 3 else [1, 1, 1]


def _place(source: Any) -> dict[str, Any]:
    """The geo-reference as keys of a profile: corner and pixel size, control points, RPCs."""
    place: dict[str, Any] = {}
    points, points_crs = source.gcps
    if not source.transform.is_identity:
        place["transform"] = source.transform
    if points:
        place["gcps"] = points
    if source.crs or points_crs:
        place["crs"] = source.crs or points_crs
    if source.rpcs:
        place["rpcs"] = source.rpcs
    return place


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise OSError(f"{path} cannot be written: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """rasterio tells of a failure without its reason, which GDAL gives."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())
