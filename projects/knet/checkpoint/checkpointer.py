"""Detectron2's checkpointer, which does not go on silently with weights of another model."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from torch import Tensor, nn

from knet.checkpoint.advice import keys_to_change, may_lack, stage
from knet.checkpoint.class_names import ClassNames, match_classes
from knet.checkpoint.finetune import adapt_weights, format_changes, is_adaptable
from knet.checkpoint.newest import LAST, Newest, last_run, newest_for_all
from knet.checkpoint.read_file import read_file
from knet.checkpoint.recognise import Weights, leave_out_counters, recognise
from knet.checkpoint.training_state import check_state, require_finite_state
from knet.checkpoint.write_file import write_torch
from knet.files import write_text

logger = logging.getLogger(__name__)

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
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        if finetune not in FINETUNE:
            raise ValueError(f"MODEL.KNET.FINETUNE is {finetune!r}; it can be {FINETUNE}")
        self.strict = strict
        self.trust = trust
        self.finetune = finetune
        self.classes = classes
        self.resumed = ""
        self._run: int | None = None
        self._path = ""
        self._weights = Weights("", {})

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
        path = os.path.join(self.save_dir, f"{name}.pth")
        data = {"model": self.model.state_dict()}
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        require_finite_state(data, path)
        if self._run is None:
            self._run = last_run(self.save_dir, trust=self.trust) + 1
        if self.classes is not None:
            data["classes"] = self.classes.to_dict()
        logger.info("Saving checkpoint to %s", path)
        write_torch(path, {**data, "run": self._run, **kwargs})
        self.tag_last_checkpoint(os.path.basename(path))

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
        self._path = path
        if self.strict and not path:
            raise ValueError("MODEL.WEIGHTS is empty: name the checkpoint to evaluate")
        if path and "://" not in path and not self.path_manager.isfile(path):
            raise FileNotFoundError(
                f"{path}: no such checkpoint (MODEL.WEIGHTS); to train from scratch set it to ''"
            )
        rest = super().load(path, checkpointables=[])
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in rest:
                self._load_part(key, rest.pop(key))
        return rest

    def _load_part(self, key: str, state: Any) -> None:
        part = self.checkpointables[key]
        logger.info("%s: loading %s", self._path, key)
        try:
            check_state(state, part.state_dict(), key)
            part.load_state_dict(state)
        except Exception as error:  # a foreign state can fail in any way
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{self._path}: the state of its {key} does not fit ({reason}): resume with the "
                "config that the training was started with, or start a new training from its "
                "weights: MODEL.WEIGHTS in another OUTPUT_DIR"
            ) from error

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the newest whole checkpoint in the folder, or `path` if there is none.

        A checkpoint that is resumed must fit entirely.

        Raises:
            ValueError: the folder has checkpoints, but none is whole; or as `load`.
        """
        found = Newest("", [])
        if resume:
            found = newest_for_all(self.save_dir, self.checkpointables, trust=self.trust)
        for reason in found.passed_over:
            logger.warning("passed over: %s", reason)
        self.resumed = found.path
        if not found.path:
            if resume:
                logger.info(
                    "no checkpoint in %s to resume from: starting from MODEL.WEIGHTS %r",
                    self.save_dir,
                    path,
                )
            return self.load(path, checkpointables=[])
        logger.info("resuming from %s, the newest whole checkpoint", found.path)
        strict, self.strict = self.strict, True
        try:
            rest = self.load(found.path)
        finally:
            self.strict = strict
        self._run = rest.get("run", 0)
        return rest

    def _load_file(self, filename: str) -> dict[str, Any]:
        saved = read_file(filename, name=self._path, trust=self.trust)
        try:
            weights = recognise(saved, self.model.state_dict().keys())
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from error
        if weights.heuristics:
            try:
                weights.state = align_and_update_state_dicts(
                    self.model.state_dict(), weights.state, c2_conversion=weights.caffe2
                )
            except Exception as error:  # the heuristics take odd names and shapes for granted
                raise ValueError(
                    f"{self._path}: {weights.kind} that cannot be matched with the model ({error}):"
                    " copy or download the file again"
                ) from error
        leave_out_counters(weights, self.model.state_dict().keys())
        require_finite(weights.state, self._path)
        self._require_same_types(weights.state)
        self._weights = weights
        return {**weights.rest, "model": weights.state}

    def _load_model(self, checkpoint: Any) -> Any:
        weights = self._weights
        if self.finetune == "adapt" and not self.strict:
            weights.state, changes = adapt_weights(
                weights.state, self.model.state_dict(), theirs=weights.classes, ours=self.classes
            )
            if changes:
                logger.info(
                    "%s: adapted (MODEL.KNET.FINETUNE adapt)\n%s",
                    self._path,
                    format_changes(changes),
                )
        else:
            self._require_same_order(weights.classes)
        checkpoint["model"] = dict(weights.state)
        incompatible = super()._load_model(checkpoint)
        names = set(self.model.state_dict())
        wrong = {entry[0]: entry for entry in incompatible.incorrect_shapes}
        # a key of another shape counts as missing too
        missing = (names & set(incompatible.missing_keys)) - set(wrong)
        surplus = set(incompatible.unexpected_keys)
        parameters = {name for name, _ in self.model.named_parameters()}
        nothing_fits = parameters <= missing | set(wrong)
        if nothing_fits or wrong or (self.strict and (missing or surplus)):
            raise ValueError(self._misfit(wrong, missing, surplus))
        if not self.strict:
            self._require_whole_backbone(missing, surplus)
        self._report(len(names), missing, surplus)
        return incompatible

    def _require_same_types(self, state: Mapping[str, Tensor]) -> None:
        """Whole numbers in place of others are quantised, or another weight's."""
        for name, ours in self.model.state_dict().items():
            theirs = state.get(name)
            if theirs is not None and theirs.is_floating_point() != ours.is_floating_point():
                raise ValueError(
                    f"{self._path}: the weight {name} is of type {theirs.dtype}, here it is "
                    f"{ours.dtype}: save the model's state_dict as float32"
                )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """`_report` has said it in one line."""

    def _require_same_order(self, theirs: ClassNames | None) -> None:
        """Rows of the same shape may still be of other classes."""
        ours = self.classes
        if theirs is None or ours is None or len(theirs.names) != len(ours.names):
            return
        for i, row in enumerate(match_classes(theirs, ours)):
            if row is not None and row != i:
                raise ValueError(
                    f"{self._path}: checkpoint of other classes: {ours.names[i]!r} is class {row} "
                    f"there and class {i} here. Use the data set it was trained on, or to train "
                    "on from it set MODEL.KNET.FINETUNE adapt"
                )

    def _misfit(
        self, wrong: dict[str, Sequence[Any]], missing: Collection[str], surplus: Collection[str]
    ) -> str:
        examples = [f"{e[0]} (is {e[1]}, should be {e[2]})" for e in list(wrong.values())[:3]]
        examples += [f"{name} (missing)" for name in sorted(missing)[:3]]
        examples += [f"{name} (unknown)" for name in sorted(surplus)[:3]]
        states = (self._weights.state, self.model.state_dict())
        total = len(states[1])
        if not self.strict and wrong and all(is_adaptable(name) for name in wrong):
            mend = (
                "To train on from it with other classes or kernels set MODEL.KNET.FINETUNE adapt; "
                f"or else change {keys_to_change(wrong)}"
            )
        elif {_is_semantic(state) for state in states} == {True, False}:
            mend = (
                "One is of a semantic model, the other of an instance or panoptic one: see "
                "MODEL.KNET.KERNEL_HEAD"
            )
        elif self.strict and not any(name.startswith("heads.") for name in self._weights.state):
            mend = "The file has no heads of K-Net, only a backbone: name a whole K-Net checkpoint"
        else:
            unmatched = [*sorted(missing), *sorted(surplus)]
            keys = keys_to_change(wrong, unmatched)
            mend = f"Use the config it was trained with; what differs is {keys}"
        return (
            f"{self._path}: checkpoint of another model: {len(missing) + len(wrong)} of {total} "
            f"weights do not fit and {len(surplus)} are unknown, such as {'; '.join(examples)}. "
            f"It was read as {self._weights.kind}. {mend}"
        )

    def _require_whole_backbone(self, missing: Iterable[str], surplus: Iterable[str]) -> None:
        """A backbone that is part new, part loaded is of another depth or width."""
        given = {stage(name) for name in self._weights.state} - {None}
        stages = {stage(name) for name in self.model.state_dict()} - {None}
        lost = {name for name in missing if stage(name) in given and not may_lack(name)}
        unknown = {name for name in surplus if stage(name) in stages}
        if lost or unknown:
            raise ValueError(self._misfit({}, lost, unknown))

    def _report(self, total: int, missing: Iterable[str], surplus: Iterable[str]) -> None:
        missing, surplus = set(missing), set(surplus)
        counts = self._weights.left_out.items()
        left_out = [f"{count} {reason}" for reason, count in counts if count]
        if surplus:
            left_out.append(f"{len(surplus)} that the model lacks ({_parts(surplus)})")
        text = f"{self._weights.kind}: {total - len(missing)} of the model's {total} weights set"
        text += f"; left out: {', '.join(left_out)}" if left_out else "; nothing left out"
        if missing:
            text += f"; freshly initialised: {len(missing)} ({_parts(missing)})"
        log = logger.warning if surplus or missing else logger.info
        log("%s: %s", self._path, text)


def _is_semantic(names: Collection[str]) -> bool | None:
    """None without heads."""
    if "heads.kernel_head.classifier.weight" in names:
        return True
    return False if "heads.kernel_head.seg_predictor.weight" in names else None


def require_finite(state: Mapping[str, Tensor], path: str) -> None:
    """Raise ValueError, with the first name and the number, unless all values are finite."""
    broken = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if broken:
        raise ValueError(
            f"{path}: {len(broken)} of {len(state)} weights are not finite (NaN or infinite), the "
            f"first is {broken[0]}: the training diverged or the file is damaged; take an earlier "
            "checkpoint"
        )


def _parts(names: Iterable[str]) -> str:
    """The parts that weights belong to, most frequent first."""
    parts = Counter(".".join(name.split(".")[:2]) for name in names)
    most = [part for part, _ in parts.most_common(6)]
    return ", ".join(most) + (" …" if len(parts) > len(most) else "")
