"""What a check found in a data set, and that as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from knet.data.defects import Defect

_FIRST = 10  # defects of a kind that are shown
_SMALL, _MEDIUM = 32**2, 96**2  # pixels; COCO's limits


@dataclass
class DatasetReport:
    """What is in a data set and what is wrong with it; areas are in pixels."""

    name: str
    class_names: list[str] = field(default_factory=list)  # by contiguous id
    num_images: int = 0  # records that were read
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (H, W) of each readable picture
    # of each class the number of images that show it, of objects (no crowds, no stuff), of pixels
    class_images: list[int] = field(default_factory=list)
    class_objects: list[int] = field(default_factory=list)
    class_pixels: list[int] = field(default_factory=list)
    # of each image the number of objects (no crowds); empty for semantic data
    objects: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)  # of each object
    crowds: int = 0
    ignored: int = 0  # pixels of semantic maps without a label
    # of each image with objects, (H, W) and the areas of its objects
    image_areas: list[tuple[tuple[int, int], list[int]]] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)  # in the order of the files
    usable: list[dict[str, Any]] = field(default_factory=list)  # records without an error

    @property
    def num_errors(self) -> int:
        return sum(defect.severity == "error" for defect in self.defects)

    @property
    def num_warnings(self) -> int:
        return len(self.defects) - self.num_errors

    def as_dict(self) -> dict[str, Any]:
        """All but what belongs to single records, for JSON."""
        left_out = ("usable", "image_areas")
        fields = {key: value for key, value in vars(self).items() if key not in left_out}
        defects = [asdict(defect) for defect in self.defects]
        counts = {"num_errors": self.num_errors, "num_warnings": self.num_warnings}
        return {**fields, "defects": defects, **counts}


def format_report(
    report: DatasetReport, *, num_kernels: int | None = None, show_all: bool = False
) -> str:
    """What is in the data set, what is wrong with it, and a verdict, as lines of text.

    Args:
        report: of a data set.
        num_kernels: ``MODEL.KNET.NUM_KERNELS`` of the model that is to be trained on it.
        show_all: all defects, not the first ten of each kind.
    """
    lines = [f"Data set {report.name}: {_plural(report.num_images, 'image')}"]
    if report.sizes:
        heights, widths = np.array(report.sizes).T
        lines += [
            f"  width   {_spread(widths)} pixels",
            f"  height  {_spread(heights)} pixels",
        ]
    if report.objects:
        lines += _objects(report)
        lines.append(f"  {kernel_advice(report.objects, num_kernels)}")
    if report.num_images and report.class_names:
        lines += ["", *_classes(report)]
    lines += ["", *_defects(report.defects, show_all)]
    errors, warnings = report.num_errors, report.num_warnings
    verdict = f"{report.name}: {_plural(errors, 'error')}, {_plural(warnings, 'warning')}"
    if errors:
        verdict += (
            f"; {len(report.usable)} of the images read are without an error. Training stops at "
            "an error, or leaves the image out with DATASETS.ON_ERROR skip"
        )
    return "\n".join([*lines, verdict])


def kernel_advice(objects: Sequence[int], num_kernels: int | None) -> str:
    """What the numbers of objects an image mean for ``MODEL.KNET.NUM_KERNELS``."""
    most = max(objects)
    enough = int(np.ceil(np.percentile(objects, 99)))
    text = (
        f"MODEL.KNET.NUM_KERNELS: {most} kernels suffice for every image, {enough} for 99 % of them"
    )
    if num_kernels is None:
        return text
    counts = np.array(objects)
    fuller = int((counts > num_kernels).sum())
    if not fuller:
        return f"{text}; the config's {num_kernels} are enough"
    surplus = int((counts - num_kernels).clip(0).sum())
    return (
        f"{text}; the config's {num_kernels} are too few for {_plural(fuller, 'image')}, where "
        f"{_plural(surplus, 'object')} cannot be found"
    )


def _objects(report: DatasetReport) -> list[str]:
    counts, areas = np.array(report.objects), np.array(report.areas)
    at_95 = float(np.percentile(counts, 95))
    lines = [
        f"  objects an image  {_spread(counts)} (95 % have at most {at_95:.0f}); "
        f"{int((counts == 0).sum())} images without any; {_plural(report.crowds, 'crowd')}",
    ]
    if len(areas):
        small = int((areas < _SMALL).sum())
        large = int((areas >= _MEDIUM).sum())
        lines.append(
            f"  object sizes      {_spread(areas)} pixels; {small} small (below 32²), "
            f"{len(areas) - small - large} medium, {large} large (from 96²)"
        )
    return lines


def _classes(report: DatasetReport) -> list[str]:
    names = [*report.class_names]
    names += [str(index) for index in range(len(names), len(report.class_images))]
    width = max(len("class"), *(len(name) for name in names))
    total = max(1, sum(report.class_pixels))
    lines = [f"  {'class':<{width}}  {'images':>8}  {'objects':>8}  {'pixels':>7}"]
    for index, name in enumerate(names):
        share = 100 * report.class_pixels[index] / total
        objects = str(report.class_objects[index]) if report.objects else "-"
        lines.append(
            f"  {name:<{width}}  {report.class_images[index]:>8}  {objects:>8}  {share:>5.1f} %"
            + ("  (nothing to learn it from)" if not report.class_images[index] else "")
        )
    return lines


def _defects(defects: Sequence[Defect], show_all: bool) -> list[str]:
    groups: dict[tuple[str, str], list[Defect]] = defaultdict(list)
    for defect in defects:
        groups[defect.severity, defect.kind].append(defect)
    lines = []
    # Errors first, each by its number.
    for (severity, kind), group in sorted(groups.items(), key=lambda g: (g[0][0], -len(g[1]))):
        lines.append(f"{severity.upper()} {kind}: {len(group)}; {group[0].mend}")
        shown = group if show_all else group[:_FIRST]
        for defect in shown:
            # The mend is in the heading, unless this one has its own.
            line = str(defect)
            end = f"; {group[0].mend}"
            lines.append(f"  {line[: -len(end)] if line.endswith(end) else line}")
        if len(shown) < len(group):
            lines.append(f"  … and {len(group) - len(shown)} more (--all-defects shows them)")
    return [*lines, ""] if lines else lines


def _spread(values: np.ndarray) -> str:
    return f"{values.min()} / {np.median(values):.0f} / {values.max()} (min/median/max)"


def _plural(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
