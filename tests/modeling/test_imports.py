"""The core knows neither where data come from, nor how it is trained or made faster."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "projects" / "knet"
CORE = ("modeling",)
# the check of a config before a model is built from it, the classes of its data sets, and how
# messages name what is near
ALLOWED = {"knet.classes", "knet.config_check", "knet.config_file", "knet.errors"}


def _imported(path):
    """Modules of the package, whether they are named whole, by their folder, or by dots."""
    folder = ["knet", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            # `from knet import accel`
            yield from (f"{module}.{a.name}" if module == "knet" else module for a in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_import_from_the_core_outwards():
    files = [file for folder in CORE for file in (PACKAGE / folder).rglob("*.py")]
    assert len(files) > 20
    within = tuple(f"knet.{folder}" for folder in CORE)
    found = {
        name
        for path in files
        for name in _imported(path)
        if name.split(".")[0] == "knet" and name != "knet" and not name.startswith(within)
    }
    assert found == ALLOWED
