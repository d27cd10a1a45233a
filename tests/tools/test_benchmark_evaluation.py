"""Both sides of the evaluation's benchmark judge the same predictions, and get the same numbers."""

from __future__ import annotations

import benchmark_evaluation
import pytest


def test_both_sides_find_the_same_quality():
    ours, theirs = (
        benchmark_evaluation.measure(side, 6, 12, (48, 64)) for side in ("ours", "detectron2")
    )
    assert (ours["AP"], ours["PQ"]) == (theirs["AP"], theirs["PQ"])
    assert 0 < ours["AP"] < 100 and 0 < ours["PQ"] < 100
    assert ours["image_ms"] > 0 and theirs["images"] == 6


def test_what_more_images_would_take_is_extrapolated(monkeypatch, capsys):
    class Pool:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, function, side, images, *rest):
            self.row = {"side": side, "images": images, "mb": 100 + images, "image_ms": 1.0,
                        "end_s": 1.0, "AP": 1.0, "PQ": 1.0}  # fmt: skip
            return self

        def result(self):
            return self.row

    monkeypatch.setattr(benchmark_evaluation, "ProcessPoolExecutor", Pool)
    rows = benchmark_evaluation.main(["--images", "10", "30", "--sides", "ours"])
    assert [row["mb"] for row in rows] == [110, 130]
    assert "ours: 1000 KB more an image; 5000 images would take 5100 MB" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark_evaluation.main(["--sides", "nobody"])
