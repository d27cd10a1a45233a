"""Named models, and where their weights come from."""

from knet.zoo.models import (
    MODELS,
    ZooModel,
    config_path,
    fetch_weights,
    find_model,
    format_models,
)

__all__ = ["MODELS", "ZooModel", "config_path", "fetch_weights", "find_model", "format_models"]
