"""The benchmark of ids over frames, on two short clips and a model without training."""

from tracking import SIDES, compare_links, memory_of_a_long_video


def test_all_sides_see_the_same_clips(predictor):
    predictor.model.task.options = type(predictor.model.task.options)(
        thing_threshold=0.0, overlap_threshold=0.0
    )
    rows = compare_links(predictor, clips=1, num_frames=24)
    assert [row["linked by"] for row in rows] == list(SIDES)
    for row in rows:
        assert row["objects"] >= 3 and row["vanish and come back"] >= 2
        assert 0 <= row["VPQ"] <= row["PQ"] <= 100 and row["ids"] > 0
    # carrying kernels changes what is found, linking does not
    assert rows[0]["PQ"] == rows[1]["PQ"] and rows[0]["found"] == rows[1]["found"]


def test_memory_is_told_for_parts_of_the_video(predictor):
    rows = memory_of_a_long_video(predictor, 40)
    assert rows and rows[-1]["frames to"] == 40
    assert all(row["resident, MB"] > 100 for row in rows)
