"""Detectron2's checkpointer, which does not go on silently with weights of another model."""

from __future__ import annotations

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from knet.checkpoint.published_names import import_resnet_v1c


class KNetCheckpointer(DetectionCheckpointer):
    """Refuses checkpoints that do not fit.

    Args:
        model: whose weights are read and written.
        save_dir: where checkpoints go.
        strict: every weight of the model must be in the checkpoint, as evaluation and resuming
            need. Otherwise at least the backbone must profit: a checkpoint of which nothing fits
            is of another model.
        checkpointables: further objects with a state.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, strict: bool = False, **checkpointables: Any
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.strict = strict
        self._path = ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint, or nothing for an empty path.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the checkpoint is of another model.
        """
        self._path = path
        if self.strict and not path:
            raise ValueError("MODEL.WEIGHTS is empty: name the checkpoint to evaluate")
        if path and "://" not in path and not self.path_manager.isfile(path):
            raise FileNotFoundError(
                f"{path}: no such checkpoint (MODEL.WEIGHTS); to train from scratch set it to ''"
            )
        return super().load(path, *args, **kwargs)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As in Detectron2; a checkpoint that is resumed must fit entirely."""
        strict, self.strict = self.strict, self.strict or (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self.strict = strict

    def _load_file(self, filename: str) -> Any:
        loaded = super()._load_file(filename)
        weights = loaded.get("model", {})
        weights = import_resnet_v1c(weights.get("state_dict", weights))
        return loaded if weights is None else {"model": weights}

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        names = set(self.model.state_dict())
        wrong = {entry[0]: entry for entry in incompatible.incorrect_shapes}
        # a key of another shape counts as missing too
        missing = (names & set(incompatible.missing_keys)) - set(wrong)
        surplus = set(incompatible.unexpected_keys)
        lost = len(missing) + len(wrong)
        parameters = {name for name, _ in self.model.named_parameters()}
        nothing_fits = parameters <= missing | set(wrong)
        if nothing_fits or (self.strict and (lost or surplus)):
            examples = [f"{e[0]} (is {e[1]}, should be {e[2]})" for e in list(wrong.values())[:3]]
            examples += [f"{name} (missing)" for name in sorted(missing)[:3]]
            examples += [f"{name} (unknown)" for name in sorted(surplus)[:3]]
            raise ValueError(
                f"{self._path}: checkpoint of another model: {lost} of {len(names)} weights do "
                f"not fit and {len(surplus)} are unknown, such as {'; '.join(examples)}. "
                "Use the config it was trained with"
            )
        return incompatible
