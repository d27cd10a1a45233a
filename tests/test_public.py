"""What docs/API.md names is there and in `__all__`; importing knet is quick and silent."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import knet

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/API.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^::: (\S+)$", PAGE, re.MULTILINE)


def test_the_page_names_what_is_in_all_of_its_modules():
    assert len(NAMES) == len(set(NAMES)) > 40
    for name in NAMES:
        home, _, last = name.rpartition(".")
        module = importlib.import_module(home)
        assert pkgutil.resolve_name(name).__doc__, name
        assert last in module.__all__, name
        for listed in module.__all__:
            getattr(module, listed)


def test_names_in_knet_are_those_of_the_page():
    (line,) = re.findall(r"Names directly in `knet`: (.*?)\n\n", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", line)) == {*knet.__all__, "__version__"}
    assert set(knet.__all__) == set(knet._HOMES) and set(knet.__all__) <= set(dir(knet))
    for name in knet.__all__:
        assert getattr(knet, name) is getattr(importlib.import_module(knet._HOMES[name]), name)


def test_strictly_typed_modules_are_those_of_the_page():
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"as strict as mypy.*?module = \[(.*?)\]", config, re.DOTALL)
    strict = set(re.findall(r'"([\w.]+)"', listed))
    for name in NAMES:
        thing = pkgutil.resolve_name(name)
        home = getattr(thing, "__module__", "")
        assert name.rpartition(".")[0] in strict or home in strict, name
    assert (ROOT / "projects/knet/py.typed").is_file()


def test_import_is_silent_and_imports_neither_torch_nor_detectron2():
    code = (
        "import sys, knet\n"
        "assert not {'torch', 'numpy', 'detectron2'} & set(sys.modules)\n"
        "print(hasattr(knet, 'no_such_name'))"
    )
    command = [sys.executable, "-W", "default", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.slow
def test_detectron2_is_fitted_when_it_is_imported_and_knows_the_model_with_its_keys():
    code = (
        "import knet\n"
        "import detectron2\n"  # nothing of knet asked for it
        "from PIL import Image\n"
        "assert Image.LINEAR == Image.BILINEAR\n"
        "assert type(detectron2.__loader__).__module__ != 'knet.compat'\n"
        "import detectron2.model_zoo\n"
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "from detectron2.config import get_cfg\n"
        "knet.add_knet_config(get_cfg())\n"
        "assert META_ARCH_REGISTRY.get('KNet') is knet.KNet\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
