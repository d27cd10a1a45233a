"""What a training starts from: the recipe's own config, or a model that is named; and overrides."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from knet.config import get_cfg_from_file
from knet.model_folder import CONFIG, WEIGHTS, find_folder
from knet.modeling.build import is_semantic
from knet.recipe.choices import Choice
from knet.zoo.models import config_path, find_model

TASKS = ("instance", "panoptic", "semantic")


@dataclass(frozen=True)
class Start:
    """A config, with keys and values on top, and why it is this one.

    Attributes:
        config: the file.
        opts: keys and values.
        reason: in words.
        whole: whether the weights are those of a whole model, not of a backbone.
        trusted: whether the config is this project's, and may read other files.
    """

    config: Path
    opts: tuple[Any, ...]
    reason: str
    whole: bool
    trusted: bool = True


def start_from(task: str, model: str | None) -> Start:
    """The start for a task.

    Args:
        task: one of TASKS.
        model: a name of the zoo, a folder of `KNetPredictor.save_pretrained`, `owner/name` on the
            Hugging Face Hub, or None for the recipe's own: EfficientNet-Lite0 with weights of
            ImageNet.

    Raises:
        ValueError: no such model, or one of another task.
    """
    if model is None:
        return Start(
            config_path(f"custom/{task}.yaml"),
            (),
            "a small backbone that knows ImageNet, for laptops and little data",
            whole=False,
        )
    # adapt: classes of the same name are taken over
    adapt = ("MODEL.KNET.FINETUNE", "adapt")
    if not os.path.isdir(model) and "/" not in model:
        named = find_model(model)
        config, weights = config_path(named.config), f"knet://{named.name}"
        reason, trusted = f"trained by the authors on {named.data}", True
        opts: tuple[Any, ...] = ("MODEL.WEIGHTS", weights, *adapt)
    else:
        if os.path.isdir(os.path.dirname(model) or "?") and not os.path.isdir(model):
            raise ValueError(f"--model {model}: there is no such folder")
        folder = find_folder(model, None).resolve()
        config, weights = folder / CONFIG, str(folder / WEIGHTS)
        reason, trusted = "the model that was asked for", False
        # the classes are those of the data
        numbers = ("MODEL.KNET.NUM_THING_CLASSES", -1, "MODEL.KNET.NUM_STUFF_CLASSES", -1)
        names = ("MODEL.KNET.THING_IDS", (), "MODEL.KNET.TEST.CLASSES", ())
        opts = ("MODEL.WEIGHTS", weights, *adapt, *numbers, *names)
    start = Start(config, opts, reason, whole=True, trusted=trusted)
    if is_semantic(get_cfg_from_file(config, allow_base=trusted)) != (task == "semantic"):
        raise ValueError(
            f"--model {model} is {'no' if task == 'semantic' else 'a'} semantic model, but the "
            f"data are for the task {task!r}: name another model, or another --task"
        )
    return start


class Settings:
    """A start, what was chosen on top of it, and what the user wants, which wins.

    Args:
        start: the config and its weights.
        opts: config keys and values of the user.
    """

    def __init__(self, start: Start, opts: Sequence[Any]) -> None:
        self.start = start
        self.chosen: list[Choice] = []
        self._fixed: list[Any] = list(start.opts)
        self._opts = list(opts)
        self._wanted = {str(key) for key in opts[::2]}

    def fix(self, key: str, value: Any) -> None:
        """Set what is no choice."""
        self._fixed += [key, value]

    def choose(self, choices: Iterable[Choice]) -> None:
        """Add choices, but for keys that the user sets."""
        self.chosen += [choice for choice in choices if self.leaves(choice.key)]

    def leaves(self, key: str) -> bool:
        """Whether a key may be chosen, which the user does not set."""
        return key not in self._wanted

    def config(self) -> CfgNode:
        """The config, not frozen; ValueError names all keys and values that are wrong."""
        chosen = [part for choice in self.chosen for part in (choice.key, choice.value)]
        opts = [*self._fixed, *chosen, *self._opts]
        return get_cfg_from_file(self.start.config, opts, allow_base=self.start.trusted)
