"""Tests mirror the package: the tests of a module are found by its path."""

from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "projects" / "knet"
# folders of tests of what stands beside the package
OTHERS = {"benchmarks", "datasets", "examples", "fuzz", "knet_run", "parity", "tools"}
# of a script, a page, the whole program, or one question to many modules
WHOLE = {
    "app/test_browser.py", "checkpoint/test_damaged.py", "checkpoint/test_full_size.py",
    "data/shapes/test_shapes.py",
    "data/test_fuzz.py", "demo/test_demo.py", "demo/test_run_demo.py",
    "export/test_cpp.py", "export/test_knet_run.py", "export/test_knet_run_model.py",
    "export/test_knet_run_runtimes.py", "modeling/test_imports.py",
    "report/test_browser.py", "report/test_report_errors.py", "test_blocks.py",
    "test_build_detectron2_wheel.py",
    "test_configs.py", "test_custom_data_page.py", "test_knet_command.py", "test_layout.py",
    "test_model_page.py", "test_odd_data_sets.py", "test_pages.py", "test_picture_doors.py",
    "test_plus.py", "test_public.py", "test_reference.py", "test_train_net.py",
    "training/test_kills.py",
}  # fmt: skip


def test_every_test_file_is_named_after_a_module_or_listed():
    found = set()
    for path in TESTS.rglob("test_*.py"):
        place = path.relative_to(TESTS)
        module = PACKAGE / place.parent / place.name[len("test_") :]
        if place.parts[0] not in OTHERS and not module.is_file():
            found.add(place.as_posix())
    assert found == WHOLE
