import warnings

import pytest

from knet.deprecation import deprecated


@deprecated(instead="knet.train", gone_in="0.3")
def old(a, *, b):
    """Sums."""
    return a + b


@deprecated(instead="knet.KNet", gone_in="0.3")
class Old:
    def __init__(self, value):
        self.value = value


def test_calls_work_and_warn_at_the_caller():
    with pytest.warns(
        FutureWarning, match=r"old will be gone in knet 0\.3; use knet\.train"
    ) as seen:
        assert old(1, b=2) == 3
    assert seen[0].filename == __file__ and old.__doc__ == "Sums."


def test_classes_stay_classes():
    with pytest.warns(
        FutureWarning, match=r"Old will be gone in knet 0\.3; use knet\.KNet"
    ) as seen:
        made = Old(7)
    assert isinstance(made, Old) and made.value == 7 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(Old, type)
