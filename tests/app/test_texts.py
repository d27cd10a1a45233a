"""Words and HTML of the page."""

import numpy as np
import pytest

pytest.importorskip("gradio", reason="no gradio: pip install -e '.[app]'")

from knet.app.texts import header, notice, summary, table_rows
from knet.app.views import Found, Photo
from knet.classes import Category
from knet.predictor import Prediction

DISC = Found("disc", 0.98765, 0.25, 1000)
SKY = Found("sky", None, 0.123456, 500)


def photo(name="a.png"):
    return Photo(name, np.zeros((4, 6, 3), np.uint8), [], Prediction(None, (4, 6)))


def test_names_are_text_and_no_markup():
    classes = [Category(1, 0, "<b>cat</b>", True), Category(2, 1, "sky", False)]
    text = header("<script>", classes)
    assert "&lt;script&gt;" in text and "<script" not in text
    assert "1 things" not in text and "<b>1 thing</b> &lt;b&gt;cat&lt;/b&gt;" in text
    assert "2 classes" in text and "1 stuff class" in text
    assert notice("<i>", kind="wrong") == (
        "<div class='notice wrong' role='alert'><p>&lt;i&gt;</p></div>"
    )


def test_counts_are_said_in_words():
    start = "a.png, 6x4 pixels: "
    assert summary(photo(), "instance", [DISC]) == start + "1 object found."
    assert summary(photo(), "panoptic", [DISC, DISC]) == start + "2 segments found."
    assert summary(photo(), "semantic", [SKY, SKY]) == start + "2 classes found."
    assert "nothing found" in summary(photo(), "instance", [])
    assert "a row a kernel" in summary(photo(), "kernels", [])


def test_tables_have_scores_where_there_are_any():
    assert table_rows([DISC]) == {
        "headers": ["class", "score", "area (pixels)", "area (%)"],
        "data": [["disc", 0.988, 1000, 25.0]],
    }
    assert table_rows([SKY])["data"] == [["sky", 500, 12.35]]
