"""Video quality of hand-made videos, whose scores are known."""

import json
from itertools import count

import numpy as np
import pytest

from knet.data.panoptic_png import write_panoptic_png
from knet.evaluation.video_quality import VideoFrame, VideoScores, video_scores

THINGS, STUFF = 7, 9


def video(*frames, classes=None):
    """Frames out of rows of ids, of 2 pixels each; 1 to 9 are things, 10 on is stuff."""
    for number, row in zip(count(1), frames):
        if row is None:
            continue
        ids = np.array([row, row])
        segments = [
            {"id": int(i), "category_id": (classes or {}).get(i, THINGS if i < 10 else STUFF)}
            for i in np.unique(ids)
            if i
        ]
        yield VideoFrame(number, ids, segments)


def scored(truth, found, windows=(1, 2)):
    scores = VideoScores()
    scores.add(truth, found, things=[THINGS], windows=windows)
    return scores


def test_perfect_results_have_other_ids_and_full_marks():
    truth = [[1, 1, 2, 10], [10, 1, 1, 2], [10, 10, 1, 1]]
    renamed = [[{1: 5, 2: 4, 10: 30}[i] for i in row] for row in truth]
    scores = scored(video(*truth), video(*renamed))
    assert scores.quality([THINGS, STUFF]) == 1
    assert (scores.switches, scores.visible, scores.found) == (0, 5, 5)
    assert (scores.objects, scores.ids) == (2, 2)


def test_a_switch_costs_windows_that_hold_it():
    truth = [[1, 1, 10, 10]] * 4
    found = [[1, 1, 10, 10]] * 2 + [[2, 2, 10, 10]] * 2
    scores = scored(video(*truth), video(*found))
    assert scores.switches == 1
    assert scores.tubes[1].average([THINGS])["pq"] == 1
    # windows (1 2) and (3 4) match; in (2 3) each id covers half, which is no match: 2 / (2 + 3/2)
    assert scores.tubes[2].average([THINGS])["pq"] == pytest.approx(2 / 3.5)
    assert scores.quality([THINGS]) == pytest.approx((1 + 2 / 3.5) / 2)
    assert scores.quality([STUFF]) == 1


def test_a_switch_is_counted_after_any_gap_and_a_return_is_another():
    truth = [[1, 1, 10]] * 5
    found = [[1, 1, 10], [10, 10, 10], None, [2, 2, 10], [1, 1, 10]]
    scores = scored(video(*truth), video(*found))
    assert (scores.switches, scores.found, scores.visible) == (2, 3, 5)
    hidden = [[1, 1, 10], [10, 10, 10], [1, 1, 10]]
    assert scored(video(*hidden), video([1, 1, 10], [10, 10, 10], [3, 3, 10])).switches == 1


def test_a_thing_is_found_under_any_class_by_more_than_half():
    truth = [[1, 1, 10, 10]] * 2
    scores = scored(video(*truth), video(*truth, classes={1: 8}))
    assert scores.found == 0  # 8 is no thing
    both = VideoScores()
    both.add(video(*truth), video(*truth, classes={1: 8}), things=[THINGS, 8])
    assert both.found == 2 and both.quality([THINGS]) == 0
    half = scored(video(*truth), video([1, 10, 10, 10], [1, 1, 1, 10]))
    assert half.found == 1  # 1 of 2 is one half, 2 of 3 is more


def test_a_change_of_class_is_another_tube_of_the_same_object():
    truth = list(video(*[[1, 1, 10]] * 2))
    found = [
        VideoFrame(1, truth[0].ids, truth[0].segments),
        VideoFrame(2, truth[1].ids, [{"id": 1, "category_id": 8}, truth[1].segments[1]]),
    ]
    scores = VideoScores()
    scores.add(truth, found, things=[THINGS, 8], windows=(2,))
    assert scores.switches == 0 and scores.ids == 1
    statistics = scores.tubes[2][THINGS]
    assert (statistics.tp, statistics.fp, statistics.fn) == (0, 1, 1)


def test_short_videos_are_one_window():
    truth = [[1, 1, 10]] * 3
    scores = scored(video(*truth), video(*truth), windows=(15,))
    assert scores.tubes[15][THINGS].tp == 1


def test_what_does_not_belong_together_is_refused():
    truth = [[1, 1, 10]] * 2
    with pytest.raises(ValueError, match="no truth of frame 3"):
        scored(video(*truth), video(*truth, [1, 1, 10]))
    with pytest.raises(ValueError, match=r"frame 1: the results have the size \(2, 4\)"):
        scored(video(*truth), video([1, 1, 10, 10]))
    with pytest.raises(ValueError, match="no video to score"):
        video_scores([])


def write(folder, frames):
    (folder / "panoptic").mkdir(parents=True)
    categories = [{"id": THINGS, "isthing": 1}, {"id": STUFF, "isthing": 0}]
    annotations = []
    for frame in frames:
        name = f"{frame.number}.png"
        write_panoptic_png(str(folder / "panoptic" / name), frame.ids)
        annotations.append(
            {"image_id": frame.number, "file_name": name, "segments_info": frame.segments}
        )
    content = {"categories": categories, "annotations": annotations[::-1]}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return folder


def test_folders_of_several_videos(tmp_path):
    truth = [[1, 1, 10, 10]] * 2
    pairs = [
        (
            write(tmp_path / f"truth{k}", video(*truth)),
            write(tmp_path / f"found{k}", video(*found)),
        )
        for k, found in enumerate((truth, [truth[0], [2, 2, 10, 10]]))
    ]
    scores = video_scores(pairs, windows=(2,))
    assert scores == {
        "VPQ": pytest.approx(100 * (0.4 + 1) / 2),
        "VPQ_things": pytest.approx(40.0),  # one match, and a tube of truth and two ids alone
        "VPQ_stuff": 100.0,
        "PQ": 100.0,
        "switches": 1,
        "found": 100.0,
        "objects": 2,
        "ids": 3,
    }
