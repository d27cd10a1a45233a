"""Video files and cameras in, video files and windows out, by OpenCV. Audio is not kept."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np

from knet.errors import UserError

# Tried in this order: MPEG-4 part 2 is in every build of OpenCV; H.264, which browsers play, in
# few. AVI files take MPEG-4 under its other name.
CODECS = ("mp4v", "avc1", "XVID")
_FRAMES_A_SECOND = 25.0  # where a video does not say
# frames in a row that cannot be decoded, after which nothing more is expected
_MOST_LOST = 300
_MOST_LOST_OF_CAMERA = 5  # each is waited for, for seconds
_ESCAPE = 27


class VideoReader(AbstractContextManager):
    """The frames of a video file or camera; those that cannot be decoded are left out.

    Args:
        source: a file, or the number of a camera.

    Attributes:
        num_frames: as the header says, which may be wrong; None if it does not.
        frames_a_second: as the header says, else 25.
        number: of the frame that was read last, from 1 on; frames that were left out count.
        lost: (first, last) numbers of those left out just before it; None if there are none.

    Raises:
        UserError: the file is missing or no video, has no frame, or there is no such camera.
    """

    def __init__(self, source: str | int) -> None:
        self.source = source
        if isinstance(source, str) and not os.path.isfile(source):
            raise UserError(f"{source}: no such video file")
        self._capture = cv2.VideoCapture(source)
        opened = self._capture.isOpened()
        if not opened and isinstance(source, int):
            raise UserError(f"no camera {source} found, or it is in use")
        if not opened:
            raise UserError(f"{source} cannot be read as a video")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_a_second = rate if math.isfinite(rate) and rate > 0 else _FRAMES_A_SECOND
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.num_frames = int(count) if math.isfinite(count) and count > 0 else None
        self.number = 0
        self.lost: tuple[int, int] | None = None
        self._time = 0.0  # of the last frame, in frames
        # read here, so that nothing is begun for a video that has none
        self._first = self._read()
        if self._first is None:
            self._capture.release()
            raise UserError(f"{source}: no frame in this video")

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB frames, turned as the file says; once."""
        frame = self._first
        while frame is not None:
            yield np.ascontiguousarray(frame[..., ::-1])
            frame = self._read()

    def _read(self) -> np.ndarray | None:
        """The next frame that can be decoded; None at the end.

        OpenCV says of a broken frame what it says of the end, and goes on if it is asked again.
        """
        if isinstance(self.source, int):
            most = _MOST_LOST_OF_CAMERA
        elif self.num_frames is None:
            most = _MOST_LOST
        else:
            most = min(_MOST_LOST, self.num_frames - self.number - 1)
        failures = 0
        there, frame = self._capture.read()
        while not there:
            failures += 1
            if failures > most:
                return None
            there, frame = self._capture.read()
        time = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 * self.frames_a_second
        if failures:
            # a decoder may drop more than it fails at: the frame's time tells how many
            passed = round(time - self._time) if time > self._time else 0
            failures = max(failures, passed - 1)
        self.lost = (self.number + 1, self.number + failures) if failures else None
        self.number += 1 + failures
        self._time = time
        return frame


class VideoWriter(AbstractContextManager):
    """A video file that takes frames.

    Args:
        path: its suffix names the container (mp4, avi, mkv, mov).
        frames_a_second: of the video.
        codecs: to try, in this order; `CODECS` by default.

    Attributes:
        codec: the one of them that works here; None before the first frame.
        num_frames: written so far.

    Raises:
        UserError: the file is already there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        frames_a_second: float,
        codecs: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.exists():
            raise UserError(f"--output {self.path} exists: remove it, or name another file")
        self.codec: str | None = None
        self.num_frames = 0
        self._frames_a_second = frames_a_second
        avi = self.path.suffix.lower() == ".avi"
        self._codecs = codecs or sorted(CODECS, key=lambda codec: avi and codec != "XVID")
        self._size = (0, 0)
        self._writer: cv2.VideoWriter | None = None

    def add(self, frame: np.ndarray) -> None:
        """Write one frame.

        Args:
            frame: (H, W, 3) uint8 RGB, all of one size. Codecs want even sides: the last row or
                column of an odd one is cut.

        Raises:
            UserError: no codec works for this file, or the frame has another size than the first.
        """
        size = (frame.shape[1], frame.shape[0])
        if self._writer is None:
            self._writer = self._open(size)
        if size != self._size:
            raise UserError(f"{self.path}: a frame of {size} pixels after ones of {self._size}")
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))
        self.num_frames += 1

    def __exit__(self, *error: object) -> None:
        """Finish the file, and count its frames: OpenCV reports no error in writing.

        Raises:
            UserError: frames are missing in it.
        """
        if self._writer is None:
            return
        self._writer.release()
        capture, readable = cv2.VideoCapture(str(self.path)), 0
        while capture.grab():
            readable += 1
        capture.release()
        if readable < self.num_frames:
            raise UserError(
                f"--output {self.path} was not written whole: {readable} of {self.num_frames} "
                "frames can be read back; disk full?"
            )

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter:
        self._size = size
        for codec in self._codecs:
            fourcc = cv2.VideoWriter.fourcc(*codec)
            writer = cv2.VideoWriter(str(self.path), fourcc, self._frames_a_second, size)
            if writer.isOpened():
                self.codec = codec
                return writer
            writer.release()
            self.path.unlink(missing_ok=True)
        raise UserError(
            f"--output {self.path}: OpenCV here writes no such video (codecs tried: "
            f"{', '.join(self._codecs)}); take the suffix .mp4 or .avi"
        )


class Window(AbstractContextManager):
    """A window that shows pictures, where there is a screen.

    Args:
        title: of the window.

    Raises:
        UserError: there is no screen, or this OpenCV has no windows.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        screens = ("DISPLAY", "WAYLAND_DISPLAY")
        if sys.platform.startswith("linux") and not any(os.environ.get(key) for key in screens):
            raise UserError("no screen to open a window on: name a file or folder with --output")
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise UserError(
                "this OpenCV cannot open windows (opencv-python-headless has none): name a file "
                "or folder with --output, or install opencv-python in its place"
            ) from error

    def __exit__(self, *error: object) -> None:
        cv2.destroyWindow(self.title)

    def show(self, image: np.ndarray, *, milliseconds: int) -> bool:
        """Show an (H, W, 3) RGB image; False once the user pressed Esc or q.

        Args:
            image: to be shown.
            milliseconds: to wait for a key; 0 waits until there is one.
        """
        cv2.imshow(self.title, np.ascontiguousarray(image[..., ::-1]))
        return cv2.waitKey(milliseconds) & 0xFF not in (_ESCAPE, ord("q"))
