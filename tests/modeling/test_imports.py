"""The core knows neither where data come from, nor how it is trained or made faster."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "projects" / "knet"
OUTWARD = ("knet.accel", "knet.data", "knet.training", "knet.evaluation", "knet.checkpoint")


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_import_from_the_core_outwards():
    files = [*(PACKAGE / "modeling").rglob("*.py"), *(PACKAGE / "inference").rglob("*.py")]
    assert len(files) > 30
    wrong = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in files
        for name in _imported(path)
        if name.startswith(OUTWARD)
    ]
    assert not wrong
