"""A model's results of pictures and frames: run, drawn, told, written."""

from __future__ import annotations

from typing import Any

import numpy as np

from knet.errors import UserError
from knet.predict.describe import describe_result
from knet.predictor import KNetPredictor
from knet.results.coco_files import ResultFiles
from knet.tracking import FollowedFiles, ObjectFollower
from knet.visualization import TASKS, draw_objects, draw_result

_READABLE = 320  # pixels of the shorter side


def richest_task(predictor: KNetPredictor) -> str:
    """The kind of results that says most, of those that a model gives.

    Raises:
        UserError: it gives none, or maps of classes that it does not have.
    """
    test = predictor.cfg.MODEL.KNET.TEST
    given = [task for task in TASKS if test[f"{task.upper()}_ON"]]
    if not given:
        raise UserError("the config turns all results off: name one with --task")
    return possible_task(predictor, given[0])


class Drawer:
    """Runs a model and draws one kind of its results.

    Args:
        predictor: the model.
        task: what is drawn; the richest by default.
        score_threshold: instances with a lower score are not drawn.

    Raises:
        UserError: the model does not give it.
    """

    def __init__(self, predictor: KNetPredictor, task: str | None, score_threshold: float) -> None:
        self.predictor = predictor
        self.task = possible_task(predictor, task) if task else richest_task(predictor)
        self.score_threshold = score_threshold

    def result_files(self, folder: str, video: str = "") -> ResultFiles:
        """Files of the model's classes in a folder; `video` is the name of one."""
        return ResultFiles(folder, categories=self.predictor.categories)

    def results(self, frame: np.ndarray, number: int) -> dict[str, Any]:
        """The results of a video's frame."""
        return self.predictor(frame)

    def draw(self, image: np.ndarray, results: Any, *, enlarge: bool) -> np.ndarray:
        """Small pictures may be enlarged, so that the labels are readable."""
        return draw_result(
            image,
            results[TASKS[self.task]],
            self.predictor.metadata,
            task=self.task,
            score_threshold=self.score_threshold,
            min_side=_READABLE if enlarge else 1,
        )

    def describe(self, results: Any) -> str:
        """What is found, in words."""
        return describe_result(
            results[TASKS[self.task]],
            self.predictor.categories,
            task=self.task,
            score_threshold=self.score_threshold,
        )


class FollowingDrawer(Drawer):
    """The same with objects that keep their ids and colours.

    Args:
        predictor, task, score_threshold: see `Drawer`.
        carry_kernels: of `ObjectFollower`.

    Raises:
        UserError: the model has no objects to follow.
    """

    def __init__(
        self,
        predictor: KNetPredictor,
        task: str | None,
        score_threshold: float,
        *,
        carry_kernels: bool,
    ) -> None:
        self.follower = ObjectFollower(
            predictor, task=task, score_threshold=score_threshold, carry_kernels=carry_kernels
        )
        super().__init__(predictor, self.follower.task, score_threshold)

    def result_files(self, folder: str, video: str = "") -> ResultFiles:
        """As of `Drawer`, and ``tracks.json``."""
        return FollowedFiles(folder, categories=self.predictor.categories, video=video)

    def results(self, frame: np.ndarray, number: int) -> dict[str, Any]:
        """As of `Drawer`, with the ids of objects."""
        return self.follower(frame, number)

    def draw(self, image: np.ndarray, results: Any, *, enlarge: bool) -> np.ndarray:
        """As of `Drawer`."""
        min_side = _READABLE if enlarge else 1
        metadata = self.predictor.metadata
        return draw_objects(image, results["panoptic_seg"], metadata, min_side=min_side)


def possible_task(predictor: KNetPredictor, task: str) -> str:
    """The task, which the model gives; UserError if it does not."""
    if not predictor.cfg.MODEL.KNET.TEST[f"{task.upper()}_ON"]:
        raise UserError(f"the config turns MODEL.KNET.TEST.{task.upper()}_ON off")
    if task == "semantic" and not predictor.metadata.get("stuff_classes"):
        raise UserError("this model finds objects only: take --task instance")
    return task
