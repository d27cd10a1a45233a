"""A report of toy scenes whose results are known."""

import pytest

from knet_command import main

from . import results


@pytest.fixture
def results_folder(tiny_shapes, tmp_path):
    return results.write_results(tmp_path / "results")


@pytest.fixture
def report_file(results_folder, tiny_opts, tmp_path):
    path = tmp_path / "report.html"
    flags = ["--predictions", results_folder, "--output", path]
    assert main(results.arguments(tiny_opts, *flags)) == 0
    return path
