"""A window that shows pictures, where there is a screen."""

from __future__ import annotations

import os
import sys

import cv2
import numpy as np

from knet.errors import UserError

__all__ = ["Window"]

_ESCAPE = 27


class Window:
    """A window of OpenCV.

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

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def show(self, image: np.ndarray, *, milliseconds: int) -> bool:
        """Show an (H, W, 3) RGB image; False once the user pressed Esc or q.

        Args:
            image: to be shown.
            milliseconds: to wait for a key; 0 waits until there is one.
        """
        cv2.imshow(self.title, np.ascontiguousarray(image[..., ::-1]))
        return cv2.waitKey(milliseconds) & 0xFF not in (_ESCAPE, ord("q"))

    def close(self) -> None:
        """Close the window."""
        cv2.destroyWindow(self.title)
