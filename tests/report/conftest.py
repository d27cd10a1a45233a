"""A report of toy scenes whose results are known."""

import pytest
import report as tool

from . import results


@pytest.fixture
def results_folder(tiny_shapes, tmp_path):
    return results.write_results(tmp_path / "results")


@pytest.fixture
def report_file(results_folder, tiny_opts, tmp_path):
    path = tmp_path / "report.html"
    flags = ["--predictions", results_folder, "--output", path]
    assert tool.main(results.arguments(tiny_opts, *flags)) == 0
    return path
