"""Detectron2's DefaultTrainer with K-Net's loader, optimiser, step and evaluators."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluators, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter
from torch import nn

from knet.accel import accelerate_as_configured
from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.newest import holds_training
from knet.data.chosen_records import load_records
from knet.data.loader import build_train_loader, usable_workers
from knet.data.mapper import KNetDatasetMapper
from knet.data.on_error import RaisingLoader, SkipReport, hand_over
from knet.evaluation import build_evaluator
from knet.evaluation.scores import log_scores
from knet.files import UNFINISHED, remove_unfinished
from knet.modeling.knet import KNet
from knet.training import optimizer
from knet.training.average import WeightAverage
from knet.training.bad_batches import keep_broken
from knet.training.checkpoints import Checkpoints, format_changes, training_keys
from knet.training.console import Progress, is_reported
from knet.training.distribute import check_batch_norm, distribute
from knet.training.evaluations import Evaluations, PatienceEnded
from knet.training.group import name_of
from knet.training.places import was_restarted
from knet.training.step import TrainStep, autocast_dtype
from knet.training.stop import Stopped, StopSignals, folder_lock, spare_workers, stop_at_once
from knet.training.trackers import Tracker, build_trackers
from knet.tta import KNetWithTTA

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """`DefaultTrainer` for K-Net; use it in the same way.

    Training resumes exactly: weights, optimiser, schedule, data order and augmentation go on as
    if there had been no interruption.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        given = cfg
        cfg = optimizer.scale_to_processes(cfg, comm.get_world_size())
        cfg = optimizer.scale_to_batch(cfg)
        model = self.build_model(cfg)
        passes = comm.get_world_size() * cfg.SOLVER.ACCUMULATION_STEPS
        check_batch_norm(model, cfg.SOLVER.IMS_PER_BATCH // passes)
        self._prepare = model.task.prepare if isinstance(model, KNet) else None
        adamw = self.build_optimizer(cfg, model)
        average = WeightAverage(model, cfg.SOLVER.EMA) if cfg.SOLVER.EMA else None
        model = distribute(model)
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        clip = cfg.SOLVER.CLIP_GRADIENTS
        self._batches: SkipReport | None = None
        self._trainer = TrainStep(
            model,
            self._open_loader,
            adamw,
            seed=seed,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            autocast_dtype=autocast_dtype(cfg),
            clip_norm=clip.CLIP_VALUE if clip.ENABLED else None,
            average=average,
            keep_broken=partial(keep_broken, cfg.OUTPUT_DIR, self._remake),
        )
        self.scheduler = self.build_lr_scheduler(cfg, adamw)
        self.checkpointer = KNetCheckpointer.from_config(
            cfg, model, cfg.OUTPUT_DIR, average=average, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._rate_from = optimizer.rate_origin(given, cfg)
        self._signals = StopSignals()
        self._writers: list[EventWriter] = []
        self._trackers: dict[str, Tracker] = {}
        self.register_hooks(self.build_hooks())

    def _open_loader(self, seed: int, step: int) -> SkipReport:
        self._batches = self.build_train_loader(
            self.cfg, seed=seed, start_step=step, prepare=self._prepare
        )
        images = self._batches.epoch_size * comm.get_world_size()
        self.steps_an_epoch = images / self.cfg.SOLVER.IMS_PER_BATCH
        epochs = self.max_iter / self.steps_an_epoch
        logger.info("  %s images an epoch; all steps are %.1f epochs", f"{images:,}", epochs)
        return self._batches

    def _remake(self, seed: int, step: int) -> Iterable[list[dict[str, Any]]]:
        """The batches from a step on as the mapper gives them, in Detectron2's format."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        return self.build_train_loader(cfg, seed=seed, start_step=step)

    def train(self) -> Any:
        """As in Detectron2; returns the results of the last evaluation.

        SIGTERM, SIGINT, SIGHUP or SIGUSR1 ends it after a step, with a checkpoint; so do
        TEST.PATIENCE evaluations without a better score, with `model_final.pth`.

        Raises:
            Stopped: by a signal; an exit of the program with its status, if nobody catches it.
            UserError: another training writes to OUTPUT_DIR.
        """
        with self._alone(), self._signals:
            try:
                with suppress(PatienceEnded):
                    TrainerBase.train(self, self.start_iter, self.max_iter)
            except Stopped as stop:
                who = name_of(stop.rank)
                logger.warning(
                    "Stopped by %s after step %d of %d; --resume goes on from %s",
                    f"{stop.signal_name} to {who}" if who else stop.signal_name,
                    min(self.iter + 1, self.max_iter),
                    self.max_iter,
                    self.checkpointer.get_checkpoint_file(),
                )
                raise
        results = getattr(self, "_last_eval_results", None)
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, results)
        return results

    def run_step(self) -> None:
        """One step; nothing waits for its metrics but the steps that are shown or written."""
        super().run_step()
        if is_reported(self):
            self._trainer.flush_metrics()

    def after_train(self) -> None:
        """As in Detectron2; then what has been skipped is summed up, after a failure too."""
        self._trainer.keep_pending()  # before the writers close
        super().after_train()
        if self._batches is not None:
            self._batches.close()

    def state_dict(self) -> dict[str, Any]:
        """Adds the step's state (optimiser, seed), which Detectron2 v0.6 leaves out, and config."""
        state = {"_trainer": self._trainer.state_dict(), "config": training_keys(self.cfg)}
        if self._trackers:
            state["runs"] = {name: tracker.run_id for name, tracker in self._trackers.items()}
        return {**super().state_dict(), **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called, by this run's config, see `training.checkpoints`.

        Raises:
            ValueError: nothing is left to train, or the optimiser's state does not fit.
        """
        super().load_state_dict(state)
        if self.iter >= self.max_iter:
            raise ValueError(
                f"the checkpoint to resume has {self.iter + 1} steps behind it, more than "
                f"SOLVER.MAX_ITER {self.max_iter}: raise that, or train without --resume"
            )
        self._trainer.load_state_dict(state["_trainer"])
        optimizer.resume_schedule(self.scheduler, self.optimizer)
        for name, tracker in self._trackers.items():
            tracker.run_id = state.get("runs", {}).get(name, "")
        # unknown in checkpoints of before it was recorded
        changes = format_changes(state.get("config", {}), training_keys(self.cfg))
        if changes:
            logger.warning(
                "Resumed after step %d with another config than before:\n%s", self.iter + 1, changes
            )

    def resume_or_load(self, resume: bool = True) -> None:
        """As in Detectron2, but from the newest whole checkpoint (see `KNetCheckpointer`).

        Where a launcher has started the processes anew, the training that it had begun goes on,
        whatever `resume` is.

        What a killed training left half written is removed. If the checkpoint is of the last step
        but the training was killed before `model_final.pth` was whole, that is written.

        Raises:
            UserError: another training writes to OUTPUT_DIR.
            ValueError: as of the checkpointer.
        """
        restarted = was_restarted()
        with self._alone():
            folder = self.cfg.OUTPUT_DIR
            if comm.is_main_process():
                for place in ("", "inference*/**/", "pictures/", "bad_batches/"):
                    remove_unfinished(folder, f"{place}*{UNFINISHED}*")
                if not (resume or restarted) and holds_training(
                    folder, trust=self.checkpointer.trust
                ):
                    logger.warning(
                        "%s holds checkpoints of an earlier training, which this one replaces. To "
                        "go on with that one, press Ctrl-C twice now and start with --resume; to "
                        "keep both, choose another OUTPUT_DIR",
                        folder,
                    )
            weights = self.cfg.MODEL.WEIGHTS
            self.checkpointer.resume_or_load(weights, resume=resume, restarted=restarted)
            if not self.checkpointer.resumed:
                return
            self.start_iter = self.iter + 1
            name = os.path.basename(self.checkpointer.resumed)
            if self.start_iter >= self.max_iter and name != "model_final.pth":
                logger.info("the training was complete but for model_final.pth: writing it")
                self.checkpointer.save("model_final", iteration=self.iter)
            elif comm.is_main_process():
                self.checkpointer.tag_last_checkpoint(name)

    def _alone(self) -> AbstractContextManager[None]:
        return folder_lock(self.cfg.OUTPUT_DIR) if comm.is_main_process() else nullcontext()

    def build_hooks(self) -> list[HookBase | None]:
        """With K-Net's checkpoints, evaluations and short lines of progress."""
        built = super().build_hooks()
        built = [h for h in built if not isinstance(h, hooks.PeriodicCheckpointer)]
        (place,) = (i for i, h in enumerate(built) if isinstance(h, hooks.EvalHook))
        this = weakref.proxy(self)
        built[place : place + 1] = [
            Checkpoints(self.cfg, self.checkpointer, self._signals),
            Evaluations(
                self.cfg,
                self.checkpointer,
                score=lambda: this._score(),
                score_views=(lambda: this._score_views()) if self.cfg.TEST.AUG.ENABLED else None,
                write=lambda: this._write(),
            ),
        ]
        if comm.is_main_process():
            # after the hook that measures the time and the one that knows the rate
            dtype = self._trainer.autocast_dtype
            built.insert(2, Progress(self.cfg, dtype, rate_from=self._rate_from))
        return built

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, and those of TRACKING.WRITERS."""
        trackers = build_trackers(self.cfg)
        self._trackers = {tracker.package: tracker for tracker in trackers}
        self._writers = [*super().build_writers(), *trackers]
        return self._writers

    def _write(self) -> None:
        for writer in self._writers:
            if isinstance(writer, JSONWriter):  # others do it when their time comes
                writer.write()

    def _score(self) -> dict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _score_views(self) -> dict[str, Any]:
        results = self.test_with_tta(self.cfg, self.model)
        self._last_eval_results.update(results)  # the plain scores are there by now
        return results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of a config, made faster."""
        return accelerate_as_configured(super().build_model(cfg), cfg)

    build_optimizer = staticmethod(optimizer.build_optimizer)
    build_lr_scheduler = staticmethod(optimizer.build_lr_scheduler)

    @classmethod
    def build_train_loader(
        cls,
        cfg: CfgNode,
        *,
        seed: int = 0,
        start_step: int = 0,
        prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> SkipReport:
        """Batches of this process from a step on.

        Args:
            cfg: the config.
            seed, start_step, prepare: see `knet.data.loader.build_train_loader`.
        """
        mapper = KNetDatasetMapper(cfg, is_train=True)
        report = build_train_loader(cfg, mapper, seed=seed, start_step=start_step, prepare=prepare)
        spare_workers(report.batches)
        return report

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> RaisingLoader:
        """Detectron2's test loader with K-Net's mapper."""
        mapper = partial(hand_over, KNetDatasetMapper(cfg, is_train=False))
        workers = usable_workers(cfg.DATALOADER.NUM_WORKERS)
        records = load_records(cfg, [dataset_name], filter_empty=False)
        loader = build_detection_test_loader(records, mapper=mapper, num_workers=workers)
        return RaisingLoader(spare_workers(loader))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        """As in Detectron2, with the batch norm statistics of the first process in all of them.

        The scores are logged as tables.
        """
        if comm.get_world_size() > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        names = cfg.DATASETS.TEST
        if names:
            logger.info("scoring on %s", ", ".join(names))
        with stop_at_once():  # the weights are in a checkpoint by now
            results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            for name, scores in (results if len(names) != 1 else {names[0]: results}).items():
                if scores:
                    log_scores(name, scores)
        return results

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> dict[str, dict[str, float]]:
        """Scores with test-time augmentation (TEST.AUG), each task's name ending in `_TTA`."""
        logger.info("Evaluation with test-time augmentation: sizes %s", cfg.TEST.AUG.MIN_SIZES)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.MIN_SIZE_TEST = 0  # the views are made from the original image
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, KNetWithTTA(cfg, model).eval(), evaluators)
        return {f"{name}_TTA": value for name, value in results.items()}

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluators:
        """Evaluators that fit the data set and the results of the model."""
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        return build_evaluator(cfg, dataset_name, folder)
