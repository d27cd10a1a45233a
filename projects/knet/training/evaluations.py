"""When a training is scored, which of its weights are kept as the best, and when it is enough."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.data.images import save_image
from knet.evaluation.scores import MAIN_SCORES
from knet.training.average import averaged
from knet.training.curves import draw_curves
from knet.training.pictures import ValidationPictures

__all__ = ["Evaluations", "PatienceEnded", "main_score"]

logger = logging.getLogger(__name__)


class PatienceEnded(BaseException):
    """The scores have not risen for TEST.PATIENCE evaluations; the training is over.

    Like the exceptions that end a program it is no `Exception`: nothing has failed.
    """


class Evaluations(HookBase):
    """Scores every TEST.EVAL_PERIOD steps and at the end, in place of Detectron2's `EvalHook`.

    The weights that are scored are the average, if there is one. The best ones so far are in
    `model_best.pth`: weights alone, with their score and step. `pictures/` gets a sheet of a few
    images, `curves.png` is drawn anew.

    A checkpoint is written before each evaluation, so an interruption may cut off one whose step is
    never repeated: a resumed training makes up for it.

    Args:
        cfg: of the training.
        checkpointer: of the training.
        score: gives the results of the weights that the model has, at the end and in between:
            {"segm": {"AP": 40.1, …}, …}, a dict of these by data set if there are several; empty
            but in the main process.
        score_views: the same with test-time augmentation, at the end alone; None for none.
        write: brings `metrics.json` up to the event storage.
    """

    def __init__(
        self,
        cfg: CfgNode,
        checkpointer: KNetCheckpointer,
        *,
        score: Callable[[], dict[str, Any]],
        score_views: Callable[[], dict[str, Any]] | None,
        write: Callable[[], None],
    ) -> None:
        self._cfg = cfg
        self._checkpointer = checkpointer
        self._score, self._score_views, self._write = score, score_views, write
        self._period = cfg.TEST.EVAL_PERIOD
        self._pictures: ValidationPictures | None = None
        if cfg.TEST.PICTURES and cfg.DATASETS.TEST and comm.is_main_process():
            self._pictures = ValidationPictures(cfg)
        self._done = 0  # steps before the last evaluation
        self._metric = cfg.TEST.BEST_METRIC
        self._best = -math.inf
        self._best_step = 0
        self._without = 0  # evaluations since the best one

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, its step, and how many evaluations have not reached it."""
        return {
            "done": self._done,
            "metric": self._metric,
            "best": self._best,
            "best_step": self._best_step,
            "without": self._without,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; of another score nothing is known."""
        self._done = state["done"]
        if self._cfg.TEST.BEST_METRIC in ("", state["metric"]):
            self._metric, self._best = state["metric"], state["best"]
            self._best_step, self._without = state["best_step"], state["without"]

    def before_train(self) -> None:
        """Makes up for an evaluation that was cut off; PatienceEnded if there is nothing to do."""
        done, last = self.trainer.start_iter, self.trainer.max_iter
        if 0 < done < last and self._is_due(done) and self._done != done:
            logger.info("the evaluation after step %d was cut off: it is made up for", done)
            self.trainer.storage.iter = done - 1
            self._evaluate(done)
            self.trainer.storage.iter = done
        self._end_without_patience(done)

    def after_step(self) -> None:
        """Evaluates if it is time; raises PatienceEnded if that was in vain once more."""
        done = self.trainer.iter + 1
        if self._is_due(done) and done != self.trainer.max_iter:
            self._evaluate(done)
            self._end_without_patience(done)

    def after_train(self) -> None:
        """The last evaluation, unless the training has failed."""
        if self.trainer.iter < self.trainer.max_iter:
            return
        if self._done != self.trainer.max_iter:
            self._evaluate(self.trainer.max_iter, views=self._score_views)

    def _is_due(self, done: int) -> bool:
        return self._period > 0 and done % self._period == 0

    def _evaluate(self, done: int, views: Callable[[], dict[str, Any]] | None = None) -> None:
        self.trainer._trainer.flush_metrics()  # the curves reach to here
        with averaged(self._checkpointer.average):
            results = self._score()
            self._put(results)
            if views is not None:  # before the scores of the step are written, which is done once
                self._put(views())
            self._draw(done)
        self._done = done
        self._compare(results, done)
        if comm.is_main_process():
            self._write()
            folder = Path(self._cfg.OUTPUT_DIR)
            if (folder / "metrics.json").is_file():  # a program may have other writers
                draw_curves(folder / "metrics.json", folder / "curves.png")
        comm.synchronize()  # all go on together

    def _put(self, results: Mapping[str, Any]) -> None:
        if results:
            scores = flatten_results_dict(results)
            self.trainer.storage.put_scalars(**scores, smoothing_hint=False)

    def _draw(self, done: int) -> None:
        if self._pictures is None:
            return
        sheet = self._pictures.draw(self._checkpointer.model)
        folder = os.path.join(self._cfg.OUTPUT_DIR, "pictures")
        os.makedirs(folder, exist_ok=True)
        save_image(os.path.join(folder, f"step_{done:07d}.jpg"), sheet, quality=90)
        self.trainer.storage.put_image("validation", sheet.transpose(2, 0, 1))

    def _compare(self, results: Mapping[str, Any], done: int) -> None:
        """Keep the weights if they are the best so far."""
        found = main_score(results, self._cfg.DATASETS.TEST, self._metric) if results else None
        found = comm.all_gather(found)[0]  # all processes have the same patience
        if found is None:
            return
        self._metric, score = found
        if score > self._best:
            self._best, self._best_step, self._without = score, done, 0
            best = {"metric": self._metric, "score": score, "step": done}
            self._checkpointer.save_weights("model_best", best=best)
            logger.info("%s %.2f after step %d is the best so far", self._metric, score, done)
        else:
            self._without += 1
            logger.info(
                "%s %.2f after step %d; the best so far is %.2f after step %d",
                *(self._metric, score, done, self._best, self._best_step),
            )

    def _end_without_patience(self, done: int) -> None:
        patience = self._cfg.TEST.PATIENCE
        if not 0 < patience <= self._without or done >= self.trainer.max_iter:
            return
        logger.info(
            "ends after step %d of %d: in %d evaluations %s has not risen above the %.2f of step "
            "%d (TEST.PATIENCE)",
            *(done, self.trainer.max_iter, self._without, self._metric),
            *(self._best, self._best_step),
        )
        # as after the last step of all
        self.trainer.max_iter = done
        self.trainer.iter = done - 1
        self._checkpointer.save("model_final", iteration=done - 1)
        self.trainer.iter = done
        raise PatienceEnded


def main_score(
    results: Mapping[str, Any], test_sets: Sequence[str], metric: str = ""
) -> tuple[str, float] | None:
    """The name and value of the score that counts; None if there is none of the usual ones.

    Args:
        results: as of Detectron2's `DefaultTrainer.test`.
        test_sets: DATASETS.TEST; the first one counts.
        metric: "task/score"; empty for the first of PQ, mask AP and mIoU.

    Raises:
        ValueError: `metric` is not among the results.
    """
    first = results if len(test_sets) == 1 else results[test_sets[0]]
    scores = flatten_results_dict(first)
    name = next((name for name in ([metric] if metric else MAIN_SCORES) if name in scores), None)
    if name is not None:
        return name, float(scores[name])
    if metric:
        known = ", ".join(name for name in scores if "-" not in name)
        raise ValueError(
            f"TEST.BEST_METRIC is {metric}, which the scores on {test_sets[0]} do not have: set "
            f"it to one of {known}, and go on with --resume"
        )
    return None
