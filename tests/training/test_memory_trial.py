"""Trials end with the first failure; what is no want of memory is an error."""

import pytest

from knet.training import memory_trial
from knet.training.memory_trial import attempts


@pytest.fixture
def outcome(monkeypatch):
    """What happens at a number of images: an error to raise, or what the steps' function gives."""
    at = {}

    def run(images):
        if isinstance(at.get(images), Exception):
            raise at[images]
        return at.get(images, True)

    monkeypatch.setattr(memory_trial, "_steps", lambda *_: run)
    monkeypatch.setattr(memory_trial, "_limit", lambda budget: None)  # of this process
    return at


def texts(cfg, sizes=(1, 2, 4)):
    return [(trial.images, trial.failure) for trial in attempts(cfg, {}, sizes, 1)]


def test_all_fit(cfg, outcome):
    assert texts(cfg) == [(1, ""), (2, ""), (4, "")]
    outcome[1] = False  # a norm over one value
    assert texts(cfg) == [(2, ""), (4, "")]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you …"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_out_of_memory_ends(cfg, outcome, error):
    outcome[2] = error
    (_, (images, failure)) = texts(cfg)
    assert images == 2 and failure.startswith("ran out of memory (limit: ")
    outcome[1] = error
    assert len(texts(cfg)) == 1


def test_what_worked_with_fewer_images_fails_for_memory(cfg, outcome):
    outcome[4] = RuntimeError("could not execute")
    assert texts(cfg)[2][1].startswith("failed: could not execute")
    outcome[1] = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="do not match"):
        texts(cfg)


def test_memory_beyond_the_budget_is_a_failure(cfg, outcome, monkeypatch):
    """Where the system knows no limits."""
    held = iter([100, 150, 190])
    monkeypatch.setattr(memory_trial, "_held", lambda device: next(held) << 30)
    monkeypatch.setattr(memory_trial, "_free", lambda device: 100 << 30)
    (first, second) = attempts(cfg, {}, [1, 2, 4], 1)
    assert first == (1, 150 << 30, "")
    assert (second.images, second.failure) == (2, "took 90.0 GB of 75.0 GB")


def test_steps_of_a_model_are_steps(cfg):
    from knet.training.batch_size import _without_data, worst_sample

    run = memory_trial._steps(_without_data(cfg), worst_sample(cfg), 2)
    assert run(1) and run(2)


def test_norms_over_one_value_are_passed_over(semantic_cfg):
    from knet.training.batch_size import _without_data, worst_sample

    run = memory_trial._steps(_without_data(semantic_cfg), worst_sample(semantic_cfg), 2)
    assert not run(1) and run(2)
    run = memory_trial._steps(_without_data(semantic_cfg), worst_sample(semantic_cfg), 1)
    with pytest.raises(ValueError, match="two images a process"):
        run(1)
