#!/usr/bin/env python3
"""Writes docs/CONFIG.md: every key that K-Net adds to Detectron2's, from the comments beside it.

    python tools/make_config_page.py

A key's meaning is the comment above its line in `config.py`, or behind it.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import knet  # noqa: F401  (before Detectron2, which it fits to current libraries)

# isort: split
from detectron2.config import get_cfg

from knet.config import add_knet_config
from knet.config_file import value_of
from knet.errors import run_command
from knet.files import write_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "CONFIG.md"
SOURCES = [ROOT / "projects" / "knet" / name for name in ("config.py", "data/config.py")]
HEAD = """# Config keys

Every key that K-Net adds to Detectron2's, with its default, which is the published value where
there is one, and its meaning; also the few keys of Detectron2 that have another default here. All
other keys of Detectron2 mean what they mean there. A YAML file sets them, or `KEY VALUE` at the end
of a command line; a value that cannot work is refused with its key and what it can be.

`python tools/make_config_page.py` makes this page from the comments in
[config.py](../projects/knet/config.py) and [data/config.py](../projects/knet/data/config.py).
"""


class Key(NamedTuple):
    """A key, or a section, as a source sets it."""

    name: str
    meaning: str
    is_section: bool


def read_keys(path: Path) -> Iterator[Key]:
    """What the functions of a file set, in order, of `cfg` and of names for its sections.

    Raises:
        ValueError: a line sets a key of something else, or a key has no comment.
    """
    text = path.read_text(encoding="utf-8")
    comments = {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    functions = [f for f in ast.parse(text).body if isinstance(f, ast.FunctionDef)]
    for function in functions:
        sections = {"cfg": ""}
        for line in (line for line in function.body if isinstance(line, ast.Assign)):
            for target in (t for t in line.targets if isinstance(t, ast.Attribute)):
                root, _, rest = ast.unparse(target).partition(".")
                if root not in sections:
                    raise ValueError(f"{path}:{line.lineno}: {root} is no section of cfg")
                name = f"{sections[root]}.{rest}".lstrip(".")
                sections.update((t.id, name) for t in line.targets if isinstance(t, ast.Name))
                first = line.lineno
                while comments.get(first - 1, ("", False))[1]:
                    first -= 1
                numbers = range(first, (line.end_lineno or line.lineno) + 1)
                meaning = " ".join(comments[n][0] for n in numbers if n in comments)
                # `CN(new_allowed=True)` is a key, below which stands what a user writes there
                is_section = ast.unparse(line.value) == "CN()"
                if not meaning and not is_section:
                    raise ValueError(f"{path}:{line.lineno}: {name} has no comment")
                yield Key(name, meaning, is_section)


def make_page() -> str:
    """The page as Markdown; ValueError as of `read_keys`."""
    cfg = get_cfg()
    add_knet_config(cfg)
    keys = [key for path in SOURCES for key in read_keys(path)]
    introductions = {key.name: key.meaning for key in keys if key.is_section}
    tables: dict[str, str] = {}
    for key in (key for key in keys if not key.is_section):
        value = value_of(cfg, key.name)
        default = repr(dict(value) if isinstance(value, dict) else value)
        row = f"| `{key.name}` | `{default}` | {_sentence(key.meaning)} |\n"
        section = key.name.rpartition(".")[0]
        tables[section] = tables.get(section, "") + row
    page = HEAD
    for section, rows in tables.items():
        about = _sentence(introductions.get(section, ""))
        page += f"\n## {section}\n\n" + (about and f"{about}\n\n")
        page += f"| key | default | meaning |\n|---|---|---|\n{rows}"
    return page


def _sentence(text: str) -> str:
    """With a capital and a full stop; safe in a table."""
    end = "" if not text or text.endswith((".", "…")) else "."
    return (text[:1].upper() + text[1:] + end).replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    sys.exit(run_command("make_config_page.py", lambda: write_text(PAGE, make_page())))
