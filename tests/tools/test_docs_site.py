"""`make docs`: no warning, so no dead link; pages that load nothing from other hosts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; strict, so that a warning ends it."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_pages_load_nothing_from_other_hosts(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link[^>]* rel=\"?stylesheet\"?[^>]* href=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link[^>]* href=\"?([^\" >]+)\"?[^>]* rel=\"?stylesheet", text)
        for address in loaded:
            assert "://" not in address and not address.startswith("//"), (page, address)
            if not address.startswith("data:"):
                # the page of a wrong address does not know where it is
                folder = site if page.name == "404.html" else page.parent
                assert (folder / address.split("?")[0].lstrip("/")).is_file(), (page, address)


@pytest.mark.slow
def test_the_index_of_the_search_has_pages_keys_and_functions(site):
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"] for entry in index["docs"]}
    assert {"index.html", "HOW_TO.html", "CHANGELOG.html", "DATASETS.html"} <= places
    assert "API.html#knet.predictor.KNetPredictor.from_pretrained" in places
    assert "CONFIG.html#modelknettest" in places
    assert not any(place.startswith("files/") for place in places)  # sources are not searched


@pytest.mark.slow
def test_links_to_sources_lead_to_pages_with_their_text(site):
    assert 'href="files/projects/knet/modeling/neck.py.html"' in _text(site / "EXTEND.html")
    assert "SemanticFPNNeck" in _text(site / "files/projects/knet/modeling/neck.py.html")
    assert "knet_r50_fpn_1x.yaml" in _text(site / "files/configs/coco/panoptic.html")


def _text(path):
    return path.read_text(encoding="utf-8")
