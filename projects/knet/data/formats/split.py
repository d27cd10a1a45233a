"""Which pictures are for training and which for validation."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from knet.data.defects import DataError
from knet.data.formats.tree import stem_of

# Roboflow: several augmented versions of one picture, a_jpg.rf.<hash>.jpg
_VERSION = re.compile(r"\.rf\.[0-9a-zA-Z]+$")
_SCALE = 2**64


@dataclass(frozen=True)
class Item:
    """A picture of a data set.

    Attributes:
        image: its path, relative to the data set's folder.
        label: that of its labels; ``""``: it has none.
        part: ``train``, ``val`` or ``test`` if the folder says it, or ``""``.
    """

    image: str
    label: str = ""
    part: str = ""


def split_items(
    items: Sequence[Item], val_share: float, seed: int
) -> tuple[list[Item], list[Item], str]:
    """Training, validation, and a sentence that says how they came about.

    Parts that the folder names are kept (``test`` stands in where there is no ``val``). Else a hash
    of seed and name decides on each picture by itself, so that pictures which are added later move
    none. Versions of one picture stay together.

    Raises:
        DataError: there are less than two pictures to divide.
    """
    counts = Counter(item.part for item in items)
    named = "train" if counts["train"] else ""  # what lies beside a part for validation
    if counts[named] and (counts["val"] or counts["test"]):
        held_out = "val" if counts["val"] else "test"
        train = [item for item in items if item.part == named]
        val = [item for item in items if item.part == held_out]
        text = f"the folder's own parts: {len(train)} pictures to train, {len(val)} to validate"
        text += " (its test part)" if held_out == "test" else ""
        rest = len(items) - len(train) - len(val)
        text += f"; {rest} others are not used" if rest else ""
        return train, val, text
    places = {item: _place(item, seed) for item in items}
    ordered = sorted(set(places.values()))
    if len(ordered) < 2:
        raise DataError(
            f"{len(items)} picture with labels cannot be divided into training and validation; "
            f"add pictures, or name a folder for validation"
        )
    # one group at least on each side
    limit = min(max(val_share * _SCALE, ordered[0] + 1), ordered[-1])
    train = [item for item in items if places[item] >= limit]
    val = [item for item in items if places[item] < limit]
    text = f"no part for validation: {len(val)} of {len(items)} pictures were split off by a hash "
    text += f"of their names (seed {seed}), {len(train)} are left to train"
    return train, val, text


def _place(item: Item, seed: int) -> int:
    group = _VERSION.sub("", stem_of(item.image))
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big")
