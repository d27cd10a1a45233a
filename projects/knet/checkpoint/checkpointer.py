"""Detectron2's checkpointer, which does not go on silently with weights of another model."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn

from knet.checkpoint.class_names import ClassNames, match_classes
from knet.checkpoint.finetune import adapt_weights
from knet.checkpoint.fit import describe, load_weights, require_fit
from knet.checkpoint.newest import (
    LAST,
    Newest,
    check_state,
    find_newest,
    last_run,
    require_finite_state,
)
from knet.checkpoint.read_file import read_file
from knet.checkpoint.recognise import recognise
from knet.checkpoint.write_file import write_torch
from knet.files import write_text
from knet.zoo.handlers import register_handlers

if TYPE_CHECKING:
    from knet.training.average import WeightAverage

logger = logging.getLogger(__name__)
# of a model's weights, those that a pre-trained backbone does not bring
_BEHIND_BACKBONE = ("heads.", "backbone.fpn", "backbone.pyramid.")

register_handlers()  # knet:// and package://

FINETUNE = ("strict", "adapt")


class KNetCheckpointer(DetectionCheckpointer):
    """Reads weights of many kinds, and refuses those that do not fit.

    Checkpoints are written whole or not at all, with a checksum; a kill at any moment leaves a
    folder from which `resume_or_load` goes on.

    Args:
        model: whose weights are read and written.
        save_dir: where checkpoints go.
        strict: every weight of the model must be in the checkpoint, as evaluation and resuming
            need. Otherwise whole parts may be missing, such as all behind the backbone, and are
            said to be freshly initialised; but what is there must have the right shape.
        trust: read files even if that runs code that they hold (MODEL.KNET.UNSAFE_WEIGHTS).
        finetune: "adapt" brings weights of a model with other classes or another number of
            kernels to this one, see `knet.checkpoint.finetune`; "strict" refuses them
            (MODEL.KNET.FINETUNE). Without meaning if `strict`.
        classes: names of the model's classes, which are saved with its weights.
        average: of the weights. Files have it as `model`, which every reader takes for inference,
            and the weights as trained as `trained`, which resuming goes on with.
        checkpointables: further objects with a state.

    Attributes:
        resumed: path of the checkpoint that `resume_or_load` went on from; empty if none.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        strict: bool = False,
        trust: bool = False,
        finetune: str = "strict",
        classes: ClassNames | None = None,
        average: WeightAverage | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        if finetune not in FINETUNE:
            raise ValueError(f"MODEL.KNET.FINETUNE is {finetune!r}; it can be {FINETUNE}")
        self.strict = strict
        self.trust = trust
        self.finetune = finetune
        self.classes = classes
        self.average = average
        self.resumed = ""
        self._run: int | None = None

    @classmethod
    def from_config(
        cls, cfg: CfgNode, model: nn.Module, save_dir: str = "", **arguments: Any
    ) -> KNetCheckpointer:
        """With `trust`, `finetune` and `classes` of a config.

        Args:
            cfg: whose MODEL.KNET.UNSAFE_WEIGHTS and FINETUNE are read, and the data sets.
            model, save_dir, arguments: as of the constructor.
        """
        return cls(
            model,
            save_dir,
            trust=cfg.MODEL.KNET.UNSAFE_WEIGHTS,
            finetune=cfg.MODEL.KNET.FINETUNE,
            classes=ClassNames.from_config(cfg),
            **arguments,
        )

    def save(self, name: str, **kwargs: Any) -> None:
        """As in Detectron2, with the names of the classes as `classes`, see `newest` for `run`.

        Raises:
            FloatingPointError: a value is not finite; nothing is written.
            OSError: the file cannot be written; the checkpoints before it stay.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if self._run is None:
            self._run = last_run(self.save_dir, trust=self.trust) + 1
        data: dict[str, Any] = {"model": self.model.state_dict()}
        if self.average is not None:
            data["model"], data["trained"] = self.average.split(data["model"])
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        path = self._write(name, {**data, "run": self._run, **kwargs})
        self.tag_last_checkpoint(os.path.basename(path))

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Weights alone, for inference (the average, if there is one), and the names of classes.

        Args:
            name: of the file, without `.pth`.
            kwargs: further entries.

        Raises:
            FloatingPointError, OSError: as `save`.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = self.model.state_dict()
        if self.average is not None:
            state, _ = self.average.split(state)
        self._write(name, {"model": state, **kwargs})

    def _write(self, name: str, data: dict[str, Any]) -> str:
        path = os.path.join(self.save_dir, f"{name}.pth")
        require_finite_state(data, path)
        if self.classes is not None:
            data["classes"] = self.classes.to_dict()
        logger.info("Saving checkpoint to %s", path)
        write_torch(path, data)
        return path

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As in Detectron2, written whole."""
        write_text(os.path.join(self.save_dir, LAST), last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint, or nothing for an empty path; arguments as in Detectron2.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the checkpoint is of another model or training, damaged, would run code, or
                has values that are not finite.
        """
        if not path:
            if self.strict:
                raise ValueError("MODEL.WEIGHTS is empty: name the checkpoint to evaluate")
            logger.info("MODEL.WEIGHTS is empty: the model starts from scratch")
            return {}
        if "://" not in path and not self.path_manager.isfile(path):
            raise FileNotFoundError(
                f"{path}: no such checkpoint (MODEL.WEIGHTS); to train from scratch set it to ''"
            )
        logger.info("Loading %s", path)  # which may take its time
        local = self.path_manager.get_local_path(path)
        saved = read_file(local, name=path, trust=self.trust)
        return self._take(path, saved, checkpointables, strict=self.strict)

    def resume_or_load(
        self, path: str, *, resume: bool = True, restarted: bool = False
    ) -> dict[str, Any]:
        """Load the newest whole checkpoint in the folder, or `path` if there is none.

        A checkpoint that is resumed must fit entirely.

        Args:
            path: of weights; empty for none.
            resume: whether to look into the folder.
            restarted: go on with the training that has last begun there alone, see `newest`.

        Raises:
            ValueError: the folder has checkpoints, but none is whole; or as `load`.
        """
        found = Newest()
        if resume or restarted:
            found = find_newest(
                self.save_dir, self.checkpointables, trust=self.trust, noted=restarted
            )
        for reason in found.passed_over:
            logger.warning("passed over: %s", reason)
        self.resumed = found.path
        if not found.path:
            if resume or restarted:
                logger.info(
                    "no checkpoint in %s to resume from: starting from MODEL.WEIGHTS %r",
                    self.save_dir,
                    path,
                )
            return self.load(path, checkpointables=[])
        logger.info("resuming from %s, the newest whole checkpoint", found.path)
        saved = found.saved
        if saved is None:  # not the main process, which has read it
            saved = read_file(found.path, trust=self.trust)
        rest = self._resume(found.path, saved)
        self._run = rest.get("run", 0)
        return rest

    def _resume(self, path: str, saved: dict[str, Any]) -> dict[str, Any]:
        """Load weights as they were trained, their average, and all parts.

        Without parts no training goes on: then the average is what is wanted.
        """
        trained = saved.get("trained") if self.checkpointables else None
        if trained is None:
            if self.average is not None:
                logger.info("%s has no average of the weights: it starts from these", path)
            return self._take(path, saved, None, strict=True)
        averages = saved["model"]
        try:
            weights = {**averages, **trained["weights"]}
            steps = int(trained["steps"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: its entry `trained` is damaged ({error!r})") from error
        rest = self._take(path, {**saved, "model": weights}, None, strict=True)
        if self.average is None:
            logger.info("%s: its average of the weights is dropped (SOLVER.EMA is 0)", path)
        else:
            self.average.load(averages, steps)
        return rest

    def _take(
        self, path: str, saved: Any, checkpointables: list[str] | None, *, strict: bool
    ) -> dict[str, Any]:
        """Load what a file holds, as `load`."""
        ours = self.model.state_dict()
        weights = recognise(saved, ours, name=path)
        if self.finetune == "adapt" and not strict:
            weights.state, changes = adapt_weights(
                weights.state, ours, theirs=weights.classes, ours=self.classes
            )
            if changes:
                logger.info("%s: adapted (MODEL.KNET.FINETUNE adapt)\n%s", path, changes)
        else:
            self._require_same_order(path, weights.classes)
        misfits = load_weights(self.model, weights.state)
        if self.average is not None:
            self.average.restart()
        require_fit(misfits, weights, self.model, strict=strict, name=path)
        # the usual start of a training: a backbone alone
        rest_is_new = not any(name.startswith(_BEHIND_BACKBONE) for name in weights.state)
        known = (name.startswith(_BEHIND_BACKBONE) for name in misfits.missing)
        as_usual = not misfits.surplus and (not misfits.missing or (rest_is_new and all(known)))
        log = logger.info if as_usual else logger.warning
        log("%s: %s", path, describe(misfits, weights, len(ours)))
        rest = weights.rest
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in rest:
                self._load_part(path, key, rest.pop(key))
        return rest

    def _load_part(self, path: str, key: str, state: Any) -> None:
        part = self.checkpointables[key]
        logger.info("%s: loading %s", path, key)
        try:
            check_state(state, part.state_dict(), key)
            part.load_state_dict(state)
        except Exception as error:  # a foreign state can fail in any way
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path}: the state of its {key} does not fit ({reason}): resume with the "
                "config that the training was started with, or start a new training from its "
                "weights: MODEL.WEIGHTS in another OUTPUT_DIR"
            ) from error

    def _require_same_order(self, path: str, theirs: ClassNames | None) -> None:
        """Rows of the same shape may still be of other classes."""
        ours = self.classes
        if theirs is None or ours is None or len(theirs.names) != len(ours.names):
            return
        for i, row in enumerate(match_classes(theirs, ours)):
            if row is not None and row != i:
                raise ValueError(
                    f"{path}: checkpoint of other classes: {ours.names[i]!r} is class {row} "
                    f"there and class {i} here. Use the data set it was trained on, or to train "
                    "on from it set MODEL.KNET.FINETUNE adapt"
                )
