"""Small data sets that come with the package: below datasets/ of a checkout, inside a wheel."""

from __future__ import annotations

from pathlib import Path

__all__ = ["TOY_DATA", "toy_data"]

TOY_DATA = ("coco_photos", "nuclei")
_PACKAGE = Path(__file__).parents[1]


def toy_data(name: str) -> Path:
    """The folder of a small data set: pictures and annotations, for trying things out.

    Args:
        name: "nuclei", microscopy images with instances (CC0), or "coco_photos", seven photographs
            with panoptic, instance and semantic labels (CC BY 2.0); README.md in it says more.

    Raises:
        ValueError: another name.
        FileNotFoundError: the folder is missing from the installation.
    """
    if name not in TOY_DATA:
        raise ValueError(f"{name!r} does not come with knet; there are {', '.join(TOY_DATA)}")
    # setup.py puts them into wheels
    places = (_PACKAGE / "toy_data" / name, _PACKAGE.parents[1] / "datasets" / name)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{places[0]}: missing from this installation; install knet anew")
