"""Detectron2's DefaultTrainer with K-Net's loader, optimiser, step and evaluators."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from knet.accel import accelerate_as_configured
from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.newest import holds_training
from knet.data.loader import build_train_loader, usable_workers
from knet.data.mapper import KNetDatasetMapper
from knet.data.on_error import RaisingLoader, SkipReport, hand_over
from knet.evaluation import build_evaluator
from knet.evaluation.scores import format_classes, format_scores
from knet.files import UNFINISHED, remove_unfinished
from knet.modeling.knet import KNet
from knet.training import optimizer
from knet.training.checkpoints import Checkpoints, format_changes, training_keys
from knet.training.console import Progress, is_reported
from knet.training.step import TrainStep, autocast_dtype
from knet.training.stop import Stopped, StopSignals, folder_lock, spare_workers, stop_at_once
from knet.tta import KNetWithTTA

logger = logging.getLogger(__name__)


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model for several processes, on GPUs or CPUs; one process keeps it as it is."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    if not on_gpu and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        raise ValueError(
            "SyncBN needs GPUs: for several processes on CPUs set MODEL.RESNETS.NORM and "
            "MODEL.KNET.SEMANTIC.NORM to BN or GN"
        )
    devices = [torch.cuda.current_device()] if on_gpu else None
    # the newer name first: PyTorch warns of the other
    known = inspect.signature(DistributedDataParallel).parameters
    sync = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
    options: dict[str, Any] = {"device_ids": devices, sync: False}
    return DistributedDataParallel(model, **options)


def check_batch_norm(model: nn.Module, images: int) -> None:
    """Refuse batch norms over a single value, which PyTorch would report without the remedy.

    Args:
        model: to be trained.
        images: that pass at a time in one process.
    """
    pooled = any(isinstance(m, nn.AdaptiveAvgPool2d) for m in model.modules())
    apart = comm.get_world_size() == 1  # SyncBN of several processes sees several images
    single = any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and name.startswith("heads")
        for name, m in model.named_modules()
        if apart or not isinstance(m, nn.SyncBatchNorm)
    )
    if images < 2 and pooled and single:
        raise ValueError(
            "batch norm behind a pooling to one pixel needs two images a process: raise "
            "SOLVER.IMS_PER_BATCH, lower SOLVER.ACCUMULATION_STEPS, or set "
            "MODEL.KNET.SEMANTIC.NORM to GN"
        )


def _mapped(mapper: Callable[..., Any], prepare: Callable[..., Any], record: Any) -> Any:
    return prepare(mapper(record))


class Trainer(DefaultTrainer):
    """`DefaultTrainer` for K-Net; use it in the same way.

    Training resumes exactly: weights, optimiser, schedule, data order and augmentation go on as
    if there had been no interruption.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = optimizer.scale_to_processes(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        passes = comm.get_world_size() * cfg.SOLVER.ACCUMULATION_STEPS
        check_batch_norm(model, cfg.SOLVER.IMS_PER_BATCH // passes)
        self._prepare = model.task.prepare if isinstance(model, KNet) else None
        adamw = self.build_optimizer(cfg, model)
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
        )
        self.scheduler = self.build_lr_scheduler(cfg, adamw)
        self.checkpointer = KNetCheckpointer.from_config(
            cfg, model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._signals = StopSignals()
        self.register_hooks(self.build_hooks())

    def _open_loader(self, seed: int, step: int) -> SkipReport:
        self._batches = self.build_train_loader(
            self.cfg, seed=seed, start_step=step, prepare=self._prepare
        )
        images = self._batches.epoch_size * comm.get_world_size()
        epochs = self.max_iter * self.cfg.SOLVER.IMS_PER_BATCH / images
        logger.info("  %s images, which all steps see %.1f times", f"{images:,}", epochs)
        return self._batches

    def train(self) -> Any:
        """As in Detectron2; SIGTERM, SIGINT or SIGHUP ends it after a step, with a checkpoint.

        Raises:
            Stopped: by a signal; an exit of the program with its status, if nobody catches it.
            UserError: another training writes to OUTPUT_DIR.
        """
        with self._alone(), self._signals:
            try:
                return super().train()
            except Stopped as stop:
                logger.warning(
                    "Stopped by %s after step %d of %d; --resume goes on from %s",
                    signal.Signals(stop.number).name,
                    min(self.iter + 1, self.max_iter),
                    self.max_iter,
                    self.checkpointer.get_checkpoint_file(),
                )
                raise

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
        # unknown in checkpoints of before it was recorded
        changes = format_changes(state.get("config", {}), training_keys(self.cfg))
        if changes:
            logger.warning(
                "Resumed after step %d with another config than before:\n%s", self.iter + 1, changes
            )

    def resume_or_load(self, resume: bool = True) -> None:
        """As in Detectron2, but from the newest whole checkpoint (see `KNetCheckpointer`).

        What a killed training left half written is removed. If the checkpoint is of the last step
        but the training was killed before `model_final.pth` was whole, that is written.

        Raises:
            UserError: another training writes to OUTPUT_DIR.
            ValueError: as of the checkpointer.
        """
        with self._alone():
            folder = self.cfg.OUTPUT_DIR
            if comm.is_main_process():
                for pattern in (f"*{UNFINISHED}*", f"inference*/**/*{UNFINISHED}*"):
                    remove_unfinished(folder, pattern)
                if not resume and holds_training(folder, trust=self.checkpointer.trust):
                    logger.warning(
                        "%s holds checkpoints of an earlier training, which this one replaces. To "
                        "go on with that one, press Ctrl-C twice now and start with --resume; to "
                        "keep both, choose another OUTPUT_DIR",
                        folder,
                    )
            self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
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
        """With K-Net's checkpoints, short lines of progress, and the scores of TEST.AUG.ENABLED."""
        built = super().build_hooks()
        built = [h for h in built if not isinstance(h, hooks.PeriodicCheckpointer)]
        evaluations = [i for i, h in enumerate(built) if isinstance(h, hooks.EvalHook)]
        checkpoints = Checkpoints(self.cfg, self.checkpointer, self._signals)
        built.insert(evaluations[0], checkpoints)
        if comm.is_main_process():
            # after the hook that measures the time and the one that knows the rate
            built.insert(2, Progress(self.cfg, self._trainer.autocast_dtype))
        if self.cfg.TEST.AUG.ENABLED:

            def test_with_tta() -> dict[str, Any]:
                results = self.test_with_tta(self.cfg, self.model)
                # the plain scores of the last step are there by now
                self._last_eval_results.update(results)
                return results

            writers = [i for i, h in enumerate(built) if isinstance(h, hooks.PeriodicWriter)]
            # before the writers, which close with the training
            built.insert(min(writers, default=len(built)), hooks.EvalHook(0, test_with_tta))
        return built

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
            seed, start_step: see `knet.data.loader.build_train_loader`.
            prepare: what the loader's workers do with each sample, such as `Task.prepare`.
        """
        mapper: Callable[..., Any] = KNetDatasetMapper(cfg, is_train=True)
        if prepare is not None:
            mapper = partial(_mapped, mapper, prepare)
        report = build_train_loader(cfg, mapper, seed=seed, start_step=start_step)
        spare_workers(report.batches)
        return report

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> RaisingLoader:
        """Detectron2's test loader with K-Net's mapper."""
        mapper = partial(hand_over, KNetDatasetMapper(cfg, is_train=False))
        workers = usable_workers(cfg.DATALOADER.NUM_WORKERS)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper, num_workers=workers)
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
                if not scores:
                    continue
                logger.info("scores on %s:\n%s", name, format_scores(scores))
                classes = format_classes(scores)
                few = classes.count("\n") <= 32  # else for the log file only
                logger.log(logging.INFO if few else logging.DEBUG, "classes:\n%s", classes)
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
