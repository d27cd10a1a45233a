"""Small data sets on disk, written once a run, and names that vanish after each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

# isort: off
import knet  # noqa: F401  (applies the compatibility module before Detectron2 is imported)
from detectron2.data import DatasetCatalog, MetadataCatalog

from knet.data import write_shapes

# isort: on


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, split="train", num_scenes=24, seed=3)
    write_shapes(root, split="val", num_scenes=8, seed=3)
    return root


@pytest.fixture(scope="session")
def coco_root() -> Path:
    return Path(__file__).parents[1] / "fixtures" / "coco_panoptic_fixture"


@pytest.fixture(autouse=True)
def clean_catalogs() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
