"""Video files in and out."""

import resource

import numpy as np
import pytest

from knet.errors import UserError
from knet.predict.video import VideoReader, VideoWriter


def write(path, shades, size=(48, 64), rate=12.0):
    with VideoWriter(path, frames_a_second=rate) as video:
        for shade in shades:
            video.add(np.full((*size, 3), shade, np.uint8))
    return video


@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "v.mkv"])
def test_frames_come_back_in_order(tmp_path, name):
    shades = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (120, 120, 120)]
    video = write(tmp_path / name, shades)
    assert video.codec in ("mp4v", "XVID") and video.num_frames == 4
    with VideoReader(str(tmp_path / name)) as reader:
        assert reader.num_frames == 4 and reader.frames_a_second == pytest.approx(12)
        frames = list(reader)
    assert [f.shape for f in frames] == [(48, 64, 3)] * 4
    means = np.array([f.mean(axis=(0, 1)) for f in frames])
    assert np.abs(means - shades).max() < 12  # RGB, as written


@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "v.mkv"])
def test_a_full_disk_is_told(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (60, 240, 320, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))  # writes fail beyond
    try:
        with (
            pytest.raises(UserError, match="of 60 frames can be read back; disk full"),
            VideoWriter(tmp_path / name, frames_a_second=10) as video,
        ):
            for frame in noise:
                video.add(frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_frames_that_cannot_be_decoded_are_numbered(tmp_path, break_frames):
    path = tmp_path / "v.avi"
    write(path, [(8 * k, 90, 120) for k in range(20)])
    break_frames(path, (5, 6, 7, 12))
    lost, numbers, reds = {}, [], []
    with VideoReader(str(path)) as reader:
        for frame in reader:
            numbers.append(reader.number)
            reds.append(frame[..., 0].mean())
            if reader.lost:
                lost[reader.number] = reader.lost
    assert lost == {8: (5, 7), 13: (12, 12)}
    assert numbers == [n for n in range(1, 21) if n not in (5, 6, 7, 12)]
    assert np.abs(np.array(reds) - 8 * (np.array(numbers) - 1)).max() < 12  # the right pictures


def test_a_camera_may_fail_for_a_moment(monkeypatch):
    answers = [1, 2, None, None, 3, None]  # then it is gone

    class Camera:
        def __init__(self, source):
            self.calls = 0

        def isOpened(self):
            return True

        def get(self, key):
            return 0.0

        def read(self):
            self.calls += 1
            shade = answers[self.calls - 1] if self.calls <= len(answers) else None
            frame = None if shade is None else np.full((2, 2, 3), shade, np.uint8)
            return frame is not None, frame

        def release(self):
            pass

    monkeypatch.setattr("cv2.VideoCapture", Camera)
    with VideoReader(0) as reader:
        seen = [(reader.number, reader.lost, int(frame[0, 0, 0])) for frame in reader]
    assert seen == [(1, None, 1), (2, None, 2), (5, (3, 4), 3)]


def test_odd_sizes_lose_a_row_or_column(tmp_path):
    write(tmp_path / "v.mp4", [100], size=(49, 65))
    with VideoReader(str(tmp_path / "v.mp4")) as reader:
        assert next(iter(reader)).shape == (48, 64, 3)


def test_what_is_no_video_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.mp4: no such video file"):
        VideoReader(str(tmp_path / "gone.mp4"))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"text\.mp4 cannot be read as a video"):
        VideoReader(str(tmp_path / "text.mp4"))
    with pytest.raises(UserError, match="no camera 99 found"):
        VideoReader(99)


def test_a_video_without_frames_is_refused(tmp_path, monkeypatch):
    import cv2

    class Empty:
        def __init__(self, source):
            self.open = True

        def isOpened(self):
            return self.open

        def get(self, key):
            return 0.0

        def read(self):
            return False, None

        def release(self):
            self.open = False

    (tmp_path / "v.mp4").write_bytes(b"header")
    monkeypatch.setattr(cv2, "VideoCapture", Empty)
    with pytest.raises(UserError, match=r"v\.mp4: no frame in this video"):
        VideoReader(str(tmp_path / "v.mp4"))


def test_videos_that_cannot_be_written(tmp_path):
    write(tmp_path / "v.mp4", [0])
    with pytest.raises(UserError, match=r"v\.mp4 exists"):
        VideoWriter(tmp_path / "v.mp4", frames_a_second=5)
    with pytest.raises(UserError, match=r"codecs tried: mp4v, avc1, XVID"):
        write(tmp_path / "v.webm", [0])
    assert not (tmp_path / "v.webm").exists()
    with (
        pytest.raises(UserError, match="after ones of"),
        VideoWriter(tmp_path / "w.mp4", frames_a_second=5) as video,
    ):
        video.add(np.zeros((48, 64, 3), np.uint8))
        video.add(np.zeros((50, 64, 3), np.uint8))
