"""The page of config keys: up to date, whole, and readable."""

import make_config_page
import pytest
from detectron2.config import get_cfg

from knet.config import add_knet_config
from knet.config_file import flat_keys


def test_the_page_is_what_the_script_makes():
    page = make_config_page.PAGE.read_text(encoding="utf-8")
    assert page == make_config_page.make_page(), "run python tools/make_config_page.py"


def test_every_own_key_has_a_row_with_a_meaning():
    cfg, theirs = get_cfg(), get_cfg()
    add_knet_config(cfg)
    new = set(flat_keys(cfg)) - set(flat_keys(theirs))
    page = make_config_page.PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    keys = {row[0].strip("| `"): row[-1] for row in rows}
    assert new <= set(keys) and len(new) > 80 and len(rows) == len(keys)
    assert all(len(meaning.split()) >= 3 for meaning in keys.values()), keys
    # the others are keys of Detectron2 with another default
    for key in set(keys) - new - {"MODEL.TIMM.KWARGS"}:
        assert key in flat_keys(theirs)
    assert "| `MODEL.KNET.NUM_ROUNDS` | `3` | How often " in page
    assert "| `MODEL.TIMM.KWARGS` | `{}` | Further arguments " in page


def test_comments_are_above_or_behind(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "# of nothing\n\ndef add(cfg):\n    # a section\n    cfg.A = a = CN()\n    # two\n"
        "    # lines\n    a.ONE = 1  # and more\n\n    cfg.A.B.TWO = [\n        2,  # here\n    ]\n"
    )
    assert [tuple(key) for key in make_config_page.read_keys(path)] == [
        ("A", "a section", True), ("A.ONE", "two lines and more", False), ("A.B.TWO", "here", False)
    ]  # fmt: skip
    path.write_text("def add(cfg):\n    cfg.A = 1  # one\n    cfg.B = 2\n")
    with pytest.raises(ValueError, match=r"config\.py:3: B has no comment"):
        list(make_config_page.read_keys(path))
    path.write_text("def add(cfg):\n    other.A = 1  # one\n")
    with pytest.raises(ValueError, match=r"config\.py:2: other is no section of cfg"):
        list(make_config_page.read_keys(path))
