"""The preparation scripts, imported by path: datasets/ is no package."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "datasets"


@pytest.fixture
def script(request) -> ModuleType:
    """The script that the test module names in SCRIPT."""
    spec = importlib.util.spec_from_file_location(
        request.module.SCRIPT, FOLDER / f"{request.module.SCRIPT}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
