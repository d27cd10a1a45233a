"""The ablation trains for a time, scores, goes on where it stopped, and writes its tables."""

import json

import ablation
import ablation_plan
import ablation_run
import numpy as np
import pytest
from ablation_plan import PHOTOS, SCENES, VARIANTS, Variant, config_of, frequent_classes
from ablation_run import Run
from ablation_table import effect, known_times, legend, read_rows, tables, with_tables

from knet.config import get_cfg_from_file
from knet.data import copy_paste, jitter
from knet.data.panoptic_png import read_panoptic_png, write_panoptic_png
from knet.modeling import (
    bifpn,
    grouping,
    instances,
    kernels,
    level_rounds,
    losses,
    peaks,
    positions,
    postprocess,
    task,
    training_kernels,
)
from knet.training import average


@pytest.fixture
def coco(tmp_path):
    """Two training images and one other; class 1 on both, class 2 on the first, class 3 nowhere."""
    folder = tmp_path / "annotations"
    categories = [{"id": k, "name": f"c{k}", "isthing": int(k < 3)} for k in (1, 2, 3)]
    for part, segments in (("train", [[1, 2], [1]]), ("val", [[2, 3]])):
        (folder / f"panoptic_{part}").mkdir(parents=True)
        annotations = []
        for number, labels in enumerate(segments):
            ids = np.zeros((4, 6), np.int64)
            info = []
            for place, label in enumerate(labels):
                ids[place] = 1000 * (place + 1)
                info.append({"id": 1000 * (place + 1), "category_id": label})
            name = f"{number}.png"
            write_panoptic_png(str(folder / f"panoptic_{part}" / name), ids)
            annotations.append({"image_id": number, "file_name": name, "segments_info": info})
        images = [{"id": number} for number in range(len(segments))]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"panoptic_{part}.json").write_text(json.dumps(content))
    return folder


def test_only_frequent_classes_are_kept(coco, tmp_path):
    made = frequent_classes(coco, tmp_path / "made", share=0.75)
    train = json.loads((made / "panoptic_train.json").read_text())
    assert [c["id"] for c in train["categories"]] == [1]
    kept = [[s["category_id"] for s in a["segments_info"]] for a in train["annotations"]]
    assert kept == [[1], [1]]
    ids = read_panoptic_png(str(made / "panoptic_train" / "0.png"), "", (4, 6), "")
    assert ids[:2].tolist() == [[1000] * 6, [0] * 6]
    # an image of other classes alone says nothing
    val = json.loads((made / "panoptic_val.json").read_text())
    assert val["images"] == val["annotations"] == []


def test_data_are_not_made_twice(coco, tmp_path):
    made = frequent_classes(coco, tmp_path / "made", share=0.5)
    before = (made / "panoptic_train.json").stat().st_mtime_ns
    assert frequent_classes(coco, made, share=0.5) == made
    assert (made / "panoptic_train.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_is_a_config(variant, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation_plan, "frequent_classes", lambda *_: tmp_path)
    for data in variant.data:
        config, opts = config_of(data, variant, tmp_path)
        cfg = get_cfg_from_file(config, opts)
        today = get_cfg_from_file(*config_of(data, VARIANTS[0], tmp_path))
        assert (cfg == today) == (variant.name == "today")


def test_variants_that_share_a_training_differ_at_test_alone():
    for variant in VARIANTS:
        if variant.trained_as is not None:
            assert all("TEST" in key for data in variant.data for key in variant.keys(data))
            assert ablation_plan.find_variant(variant.trained_as).trained_as is None


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match="no variant 'magic'; there are today"):
        ablation_plan.find_variant("magic")


@pytest.fixture
def small_scenes(monkeypatch, tiny_opts, tiny_shapes):
    """A tiny model and a few scenes."""
    keys = dict(zip(tiny_opts[::2], tiny_opts[1::2]))
    config, opts = ablation_plan._TODAY[SCENES]
    keys = {**opts, **keys, "DATASETS.TEST": ("tiny_val",), "DATASETS.TRAIN": ("tiny_train",)}
    monkeypatch.setitem(ablation_plan._TODAY, SCENES, (config, keys))
    monkeypatch.setattr(ablation_run, "_apart", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(ablation_run, "_TIMED_STEPS", 1)
    monkeypatch.setattr(ablation_run, "_TIMED_IMAGES", 1)


@pytest.mark.slow
def test_a_run_trains_for_its_steps_and_others_use_its_weights(small_scenes, tmp_path):
    base = VARIANTS[0]
    job = Run(SCENES, "today", seed=1, length=0.002)
    row = ablation_run.run(job, base, tmp_path)
    assert {key: row[key] for key in ("data", "variant", "seed", "length", "threads")} == {
        "data": SCENES, "variant": "today", "seed": 1, "length": 0.002, "threads": 1,
    }  # fmt: skip
    assert row["steps"] == 3 and row["step"] == row["test"] == 1 and 0 < row["parameters"] < 1
    assert 0 <= row["scores"]["panoptic_seg/PQ"] <= 100
    job = Run(SCENES, "two", seed=1, length=0.002)
    two = ablation_run.run(job, Variant("two", "", "", {"MODEL.KNET.NUM_ROUNDS": 2}), tmp_path)
    assert two["steps"] == max(1, round(3.2 / two["step"])) and two["test"] > 0
    # scored with the same weights, all things are left out
    strict = {"MODEL.KNET.TEST.THING_THRESH": 1.0}
    other = Variant("strict", "", "", strict, trained_as="today")
    again = ablation_run.run(Run(SCENES, "strict", 1, 0.002), other, tmp_path)
    assert again["scores"]["panoptic_seg/PQ_th"] == 0 and "steps" not in again
    stuff = "panoptic_seg/PQ_st"
    assert again["scores"][stuff] == pytest.approx(row["scores"][stuff], abs=5)


@pytest.mark.slow
def test_other_seeds_are_as_long_as_the_first(small_scenes, tmp_path, monkeypatch):
    def measured(*_):
        raise AssertionError("its times are known")

    monkeypatch.setattr(ablation_run, "relative_times", measured)
    table = tmp_path / "table.jsonl"
    first = {**rows_of(50.0, variant="EMA", length=0.002)[0], "step": 0.8, "test": 0.9}
    table.write_text(json.dumps(first) + "\n")
    row = ablation.train(Run(SCENES, "EMA", seed=2, length=0.002), table, tmp_path)
    assert row["steps"] == 4 and (row["step"], row["test"]) == (0.8, 0.9)


def test_known_times_are_of_the_same_training():
    rows = [*rows_of(50.0, length=2.0), *rows_of(1.0, variant="EMA")]
    assert known_times(rows, SCENES, "today", 2.0, 1) == {"step": 1.25, "test": 1.5}
    assert known_times(rows, SCENES, "today", 1.0, 1) == {}
    assert known_times(rows, PHOTOS, "today", 2.0, 1) == {}
    assert known_times(rows, SCENES, "today", 2.0, 2) == {}


def test_a_time_that_is_known_is_kept_when_the_other_is_measured(monkeypatch, tmp_path):
    first, later = rows_of(1.0, 2.0)
    del first["test"]
    assert known_times([first], SCENES, "today", 1.0, 1) == {"step": 1.25}
    times = known_times([first, {**later, "step": 9.0}], SCENES, "today", 1.0, 1)
    assert times == {"step": 1.25, "test": 1.5}  # seeds have equal steps: those of the first

    asked = []

    def measured(work, *arguments):
        asked.append(work)
        return {"step": 9.0, "test": 2.0}

    monkeypatch.setattr(ablation_run, "_apart", measured)
    job, variant = Run(SCENES, "today", 1), ablation_plan.find_variant("today")
    for known, result, calls in (
        (times, times, 0),
        ({"step": 1.25}, {"step": 1.25, "test": 2.0}, 1),
        ({}, {"step": 9.0, "test": 2.0}, 2),
    ):
        assert ablation_run._all_times(known, job, variant, tmp_path, None) == result
        assert len(asked) == calls


def test_times_are_medians_of_turns(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(ablation_run.time, "perf_counter", lambda: clock[0])
    taken = {"base": [9, 9, 9, 2, 2, 8], "other": [9, 9, 9, 3, 9, 3]}

    def work(name):
        clock[0] += taken[name].pop(0)

    share = ablation_run._share(lambda: work("base"), lambda: work("other"), rounds=3)
    assert share == 1.5 and taken == {"base": [], "other": []}


def test_weights_of_the_shared_training_must_be_there(small_scenes, tmp_path):
    other = Variant("strict", "", "", trained_as="today")
    with pytest.raises(FileNotFoundError, match="'strict' is scored with the weights of 'today'"):
        ablation_run.run(Run(SCENES, "strict", 1, 0.002), other, tmp_path)


def rows_of(*scores, variant="today", data=SCENES, length=1.0):
    name = ablation_plan.SCORES[data]
    return [
        {"data": data, "variant": variant, "seed": seed, "length": length, "threads": 1,
         "steps": 1000 * seed, "step": 1.25, "memory_mb": 100.0, "test": 1.5, "parameters": 1.5,
         "scores": {name: score}}
        for seed, score in enumerate(scores, start=1)
    ]  # fmt: skip


def test_differences_are_of_the_same_seeds():
    rows = rows_of(50.0, 60.0) + rows_of(58.0, variant="EMA") + rows_of(1.0, data=PHOTOS)
    lines = tables(rows, VARIANTS).splitlines()
    assert lines[0] == "### Scenes: PQ, the time of 1,600 steps of today's recipe"
    assert lines[4] == "| today | 50.0, 60.0 | 55.0 |  | 1,500 | 1.25 | 1.50 | 100 | 1.50 |"
    assert lines[5] == "| EMA | 58.0 | 58.0 | +8.0 | 1,000 | 1.25 | 1.50 | 100 | 1.50 |"
    assert lines[7] == "### Photos: PQ, the time of 850 steps of today's recipe"


def test_the_legend_has_the_keys_of_what_has_rows():
    lines = legend(rows_of(50.0, variant="EMA") + rows_of(1.0, variant="peaks"), VARIANTS)
    _, _, peaks, ema = lines.strip().splitlines()
    assert peaks.startswith("| peaks | CenterNet") and peaks.endswith("| `KERNEL_PEAKS` |")
    assert ema == "| EMA | Polyak; Mean Teacher | averaged weights | `SOLVER.EMA` |"


def test_the_rest_of_a_page_stays():
    page = "before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n"
    made = with_tables(page, rows_of(50.0), VARIANTS)
    assert made.startswith("before\n<!-- tables -->\n| row |") and "old" not in made
    assert "| today |" in made and "### Scenes" in made
    assert made.endswith("<!-- end of tables -->\nafter\n")
    assert with_tables(made, rows_of(50.0), VARIANTS) == made
    with pytest.raises(ValueError, match="the page has no"):
        with_tables("nothing", [], VARIANTS)


def test_a_broken_line_of_the_table_is_named(tmp_path):
    path = tmp_path / "table.jsonl"
    assert read_rows(path) == []
    path.write_text('{"data": "scenes"}\n{"data": \n')
    with pytest.raises(ValueError, match=r"line 2: .*; remove it"):
        read_rows(path)


def test_what_the_table_has_is_not_run_again(tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps(rows_of(50.0)[0]) + "\n")
    arguments = ["--data", SCENES, "--variants", "today", "EMA", "--table", str(table)]
    args = ablation.parse(arguments)
    jobs = ablation.missing_jobs(args, read_rows(table))
    assert [(job.variant, job.seed) for job in jobs] == [("EMA", 1), ("today", 2), ("EMA", 2)]
    # another length is another row
    args = ablation.parse([*arguments, "--length", "2"])
    assert len(ablation.missing_jobs(args, read_rows(table))) == 4


def test_committed_tables_are_those_of_the_page():
    text = ablation.PAGE.read_text(encoding="utf-8")
    assert with_tables(text, read_rows(ablation.TABLE), VARIANTS) == text


DESCRIBED = {
    "no peaks": peaks.PeakKernels,
    "places instead of peaks": positions.PlaceEncoding,
    "no residual masks": kernels.UpdateRound,
    "coarse masks": task.MaskTask,
    "class scores": instances.InstanceSelection,
    "peaks": peaks.PeakKernels,
    "places": positions.PlaceEncoding,
    "residual masks": kernels.UpdateRound,
    "fine masks": task.MaskTask,
    "sampled points": losses.SampledPoints,
    "EMA": average,
    "six rounds": kernels.KernelRounds,
    "three rounds twice": kernels.KernelRounds,
    "levels in turn": level_rounds.LevelRound,
    "mask pilots": training_kernels.MaskPilots,
    "one to many": training_kernels.ManyKernels,
    "exclusive": grouping.exclusive_groups,
    "BiFPN": bifpn,
    "quality in panoptic scores": postprocess.InferenceOptions,
    "the same, squared": postprocess.InferenceOptions,
    "scale jitter": jitter.ScaleJitter,
    "copy-paste": copy_paste.CopyPaste,
}


def test_every_idea_is_described():
    together = {"today", "published parts", "plus"}
    assert DESCRIBED.keys() == {variant.name for variant in VARIANTS} - together


@pytest.mark.parametrize("name", DESCRIBED)
def test_docstrings_have_the_effects_of_the_table(name):
    said = " ".join(DESCRIBED[name].__doc__.split())
    rows = [row for row in read_rows(ablation.TABLE) if row["length"] == 1]
    for data in ablation_plan.find_variant(name).data:
        own, base = (
            [row for row in rows if (row["data"], row["variant"]) == (data, variant)]
            for variant in (name, "today")
        )
        difference, score = effect(own, base, data), ablation_plan.SCORES[data].split("/")[1]
        assert difference and f"{data} {difference} {score}" in said
