"""From a folder of data to a trained model: formats, checks, settings with reasons, training."""

from knet.recipe.choices import Choice, Data, Machine, choose
from knet.recipe.folder import train_folder

__all__ = ["Choice", "Data", "Machine", "choose", "train_folder"]
