"""Small data sets on disk, written once a run."""

from pathlib import Path

import pytest

# isort: off
import knet  # noqa: F401  (applies the compatibility module before Detectron2 is imported)
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
    return Path(__file__).parents[2] / "datasets" / "coco_photos"
