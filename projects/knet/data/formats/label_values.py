"""What the values, or the colours, of label PNGs mean, and label maps made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from knet.data.defects import DataError, data_error, failure
from knet.data.formats.class_list import LabelClass
from knet.data.formats.maps import BACKGROUND, MOST_CLASSES, MapSource, lookup
from knet.data.formats.objects import absent_notes, each
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, spread
from knet.data.images import BROKEN_FILE, open_image, unreadable
from knet.data.label_png import open_label_png
from knet.errors import first_of
from knet.modeling.targets import IGNORE_LABEL

_EXACT = ("PNG", "BMP", "GIF", "TIFF", "PPM")  # formats that keep values
_SAMPLE = 20  # maps whose palettes are looked at
_VOC_VOID = (224, 224, 192)  # of pixels without a label, in the palette of Pascal VOC
_MOST_UNNAMED = 100  # values of label maps without a list of classes
_MOST_UNKNOWN = 0.5  # of the pixels, in colours of no class


def read_values(path: Path, *, colors: bool = False) -> tuple[str, np.ndarray]:
    """Mode and values of a label map: (H, W) integers, or (H, W, 3) uint8 colours (mode ``RGB``).

    Palettes are read as indices, or as their colours if `colors`. A map that is stored as RGB with
    three equal channels is one of greys.

    Raises:
        DataError: it cannot be read, or its file format does not keep values.
    """
    with_mode: tuple[str, np.ndarray]
    try:
        with open_image(path) as image:
            if image.format not in _EXACT:
                problem = f"is a {image.format} file, which does not keep the values of labels"
                mend = "write it again, from its source, as PNG"
                raise failure("label-png-mode", str(path), "", problem, mend=mend)
            is_png = image.format == "PNG"
            if image.mode in ("RGB", "RGBA", "CMYK", "LA") or (colors and image.mode == "P"):
                with_mode = "RGB", np.array(image.convert("RGB"))
            elif not is_png:
                with_mode = image.mode, np.array(image)
            else:
                with_mode = open_label_png(path)
    except DataError:
        raise
    except BROKEN_FILE as error:
        raise _unreadable(path, error) from error
    mode, values = with_mode
    if mode == "RGB" and not colors and (values == values[..., :1]).all():
        return "L;RGB", values[..., 0]
    if mode == "F":
        raise failure("label-png-mode", str(path), "", "holds fractions, not labels")
    return mode, values.astype(np.uint8) if values.dtype == bool else values


def _unreadable(path: Path, error: Exception) -> DataError:
    return data_error(unreadable(error, str(path), "", label="label map"))


def read_codes(path: Path, *, colors: bool = False) -> np.ndarray:
    """(H, W) integers: values as of :func:`read_values`, colours as R + 256 G + 65536 B."""
    values = read_values(path, colors=colors)[1]
    return values if values.ndim == 2 else pack(values)


def pack(colors: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 colours as integers, R + 256 G + 65536 B."""
    wide = colors.astype(np.int64)
    return wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]


class LabelMapSource(MapSource):
    """Label PNGs of values or colours.

    Args:
        tree: of the folder.
        classes: what their list says; None: no list, the values themselves are the classes.
        file: of that list, for messages.
    """

    def __init__(self, tree: Tree, classes: Sequence[LabelClass] | None, file: str = "") -> None:
        super().__init__(tree)
        self.classes, self.file = classes, file
        self._found: dict[str, tuple[str, dict[int, int]]] = {}  # label → mode, pixels of codes
        self._names: dict[int, str | None] | None = None  # code → class, None: no label
        if classes and not all(c.color for c in classes) and any(c.color for c in classes):
            bare = next(c for c in classes if not c.color)
            raise DataError(f"{tree.root / file}: class {bare.name!r} has no colour; give it one")

    def class_names(self, items: list[Item]) -> list[str]:
        """The classes; reads every map once."""
        colors = bool(self.classes and self.classes[0].color) and all(
            self._is_colored(self.tree.root / path)
            for path in spread([item.label for item in items], _SAMPLE)
        )
        for item in each(items, "read"):
            if item.label not in self._found:
                path = self.tree.root / item.label
                mode, values = read_values(path, colors=colors)
                codes = values if values.ndim == 2 else pack(values)
                found, counts = np.unique(codes, return_counts=True)
                pixels = dict(zip(found.tolist(), counts.tolist()))
                self._found[item.label] = (mode, pixels)
        total: Counter[int] = Counter()
        for item in items:
            total.update(self._found[item.label][1])
        self._names = self._meaning(total)
        names = list(dict.fromkeys(name for name in self._names.values() if name is not None))
        known = sum(count for code, count in total.items() if self._names.get(code))
        self._say_unknown(total, known)
        shown = {self._names.get(code) for code in total}
        self.notes += absent_notes("labels", [name for name in names if name not in shown])
        if len(names) < 2:
            raise DataError(
                f"{self.tree.root}: the label maps show {first_of(names) or 'no class'} alone; "
                f"semantic segmentation needs two classes or more"
            )
        if len(names) > MOST_CLASSES:
            raise DataError(f"{self.tree.root}: {len(names)} classes; at most {MOST_CLASSES} fit")
        return names

    def _is_colored(self, path: Path) -> bool:
        """Whether the colours of a map, not its values, name its classes."""
        try:
            with open_image(path) as image:
                return _fits(image, self.classes or [])
        except BROKEN_FILE as error:
            raise _unreadable(path, error) from error

    def _meaning(self, total: Counter[int]) -> dict[int, str | None]:
        """code → class, None: no label."""
        if self.classes:
            named = {}
            colored = any(mode == "RGB" for mode, _ in self._found.values())
            for index, entry in enumerate(self.classes):
                code = index if entry.value is None else entry.value
                if colored and entry.color is not None:
                    code = int(pack(np.array(entry.color)))
                named[code] = None if entry.is_void else entry.name
            return _two_valued(named, set(total))
        if any(mode == "RGB" for mode, _ in self._found.values()):
            raise DataError(
                f"{self.tree.root}: the label maps are colours, and no file says which class each "
                f"is; add classes.txt with a line `name R G B` for each, or take the instance task "
                f"if every object has a colour of its own"
            )
        values = sorted(total)
        if len(values) > _MOST_UNNAMED:
            raise DataError(
                f"{self.tree.root}: the label maps hold {len(values)} values, which are no classes "
                f"unless a file (classes.txt) names them; masks with soft edges have to be cut at "
                f"a threshold"
            )
        if values == [0, IGNORE_LABEL] or [v for v in values if v != IGNORE_LABEL] == [0, 1]:
            self.notes.append(f"value {values[1]} of the maps is the foreground, 0 the background")
            return {0: BACKGROUND, values[1]: "foreground"}
        self.notes.append(
            f"no file names the classes: they are called by their values, {first_of(values, 12)} "
            f"(255, if it is there, means no label); classes.txt beside the maps would name them"
        )
        return {value: f"class {value}" for value in values if value != IGNORE_LABEL}

    def _say_unknown(self, total: Counter[int], known: int) -> None:
        names = self._names or {}
        colored = any(mode == "RGB" for mode, _ in self._found.values())
        unknown = sorted(total.keys() - names.keys() - (set() if colored else {IGNORE_LABEL}))
        pixels = sum(total.values())
        if not unknown:
            return
        share = sum(total[code] for code in unknown) / pixels
        texts = [_text(code, colored) for code in unknown]
        text = f"{share:.1%} of the pixels have values that {self.file or 'the list of classes'} "
        text += f"does not name ({first_of(texts)})"
        if known < _MOST_UNKNOWN * pixels and share > _MOST_UNKNOWN:
            raise DataError(f"{self.tree.root}: {text}; correct the list")
        self.notes.append(f"{text}; they count as `no label`")

    def is_usable(self, item: Item, classes: list[str]) -> bool:
        """As of :class:`MapSource`."""
        mode, pixels = self._found[item.label]
        names = self._names or {}
        allowed = {IGNORE_LABEL: None, **dict(enumerate(classes))}
        if mode != "L" or not item.label.lower().endswith(".png"):
            return False
        return all(code in allowed and names.get(code) == allowed[code] for code in pixels)

    def labels(self, item: Item, classes: list[str]) -> np.ndarray:
        """As of :class:`MapSource`."""
        if self._names is None or item.label not in self._found:
            self.class_names([item])
        path = self.tree.root / item.label
        codes = read_codes(path, colors=self._found[item.label][0] == "RGB")
        size = self.tree.size(item.image)
        if codes.shape != size:
            problem = f"{path} is {codes.shape[1]}x{codes.shape[0]} (width x height), but its "
            problem += f"picture {item.image} is {size[1]}x{size[0]}"
            raise failure("png-size", str(path), "", problem)
        names = self._names or {}
        return lookup(codes, {c: classes.index(n) for c, n in names.items() if n is not None})


def _two_valued(named: dict[int, str | None], shown: set[int]) -> dict[int, str | None]:
    """The classes of masks of 0 and 255 or 1, which are listed with or without the background."""
    foreground = 255 if shown == {0, 255} else 1
    if shown - {IGNORE_LABEL} | {0, foreground} != {0, foreground}:
        return named
    if set(named) == {0} and BACKGROUND not in named.values():
        return {0: BACKGROUND, foreground: named[0]}
    if set(named) == {0, 1}:
        return {0: named[0], foreground: named[1]}
    return named


def _fits(image: Image.Image, classes: Sequence[LabelClass]) -> bool:
    """Whether a map has colours: those that a palette image shows have to be of classes."""
    if image.mode != "P":
        return image.mode in ("RGB", "RGBA")
    palette = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
    shown = np.unique(np.array(image))
    known = {_VOC_VOID, *(c.color for c in classes)}
    return all(i < len(palette) and tuple(map(int, palette[i])) in known for i in shown)


def _text(code: int, colored: bool) -> str:
    return f"{code & 255} {code >> 8 & 255} {code >> 16}" if colored else str(code)
