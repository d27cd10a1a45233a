"""What the pages name is there: commands with their flags and keys, functions, files, sections."""

import ast
import importlib
import importlib.util
import pkgutil
import re
import shlex
import textwrap
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from knet.cli.parser import Parser
from knet.config import add_knet_config
from knet_command import module_of

ROOT = Path(__file__).parents[1]
FILES = [*ROOT.glob("*.md"), ROOT / "datasets/README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}


def _blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_commands_take_these_flags_and_keys(page):
    cfg = get_cfg()
    add_knet_config(cfg)
    lines = "\n".join(_blocks(page, "bash")).replace("\\\n", " ").splitlines()
    for words in (shlex.split(line, comments=True) for line in lines):
        if words[:1] != ["knet"]:
            continue
        module = importlib.import_module(module_of(words[1]))
        parser = Parser(words[1], module.__doc__)
        module.add_arguments(parser)
        opts = parser.parse(words[2:]).opts  # ends the test if a flag is wrong
        assert len(opts) % 2 == 0, words
        for key in opts[::2]:
            node = cfg
            for part in key.split("."):
                node = node[part]


@pytest.mark.parametrize("page", PAGES)
def test_functions_and_imports_exist(page):
    for name in re.findall(r"`(knet(?:\.[A-Za-z_]+)+)(?<!\.py)`", PAGES[page]):
        if not name.startswith("knet.app.") or importlib.util.find_spec("gradio"):
            pkgutil.resolve_name(name)
    for code in _blocks(page, "python"):
        for node in ast.walk(ast.parse(textwrap.dedent(code))):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    getattr(module, alias.name)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page):
    folder = (ROOT / page).parent
    for path in re.findall(r"`((?:configs|datasets|tools|demo|tests)/[\w/.]+\.\w+)`", PAGES[page]):
        assert (ROOT / path).is_file(), path
    for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", PAGES[page]):
        target = (folder / link).resolve() if link else ROOT / page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            sections = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in sections, f"{link}#{anchor}"
