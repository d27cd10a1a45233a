"""Weights & Biases and MLflow, with packages that only note what they are told."""

import sys
import types

import pytest
from detectron2.utils.events import EventStorage

from knet.errors import UserError
from knet.training.trackers import build_trackers
from knet.training.trainer import Trainer


@pytest.fixture
def told(monkeypatch):
    """What the services were told; both packages are fakes."""
    calls = []
    note = lambda name: lambda *args, **kwargs: calls.append((name, args, kwargs))  # noqa: E731
    wandb, mlflow = types.ModuleType("wandb"), types.ModuleType("mlflow")

    def init(**options):
        calls.append(("init", (), options))
        run = types.SimpleNamespace(id=options["id"] or "new", log=note("log"))
        run.finish = note("finish")
        return run

    def start_run(run_id=None, run_name=None):
        calls.append(("start_run", (), {"run_id": run_id, "run_name": run_name}))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "new"))

    wandb.init, mlflow.start_run = init, start_run
    for name in ("set_experiment", "log_text", "log_metrics", "end_run"):
        setattr(mlflow, name, note(name))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return calls


def test_a_run_has_each_value_once(told, cfg):
    cfg.TRACKING.WRITERS = ["wandb", "mlflow"]
    wandb, mlflow = build_trackers(cfg)
    with EventStorage(0) as storage:
        wandb.write()
        assert told == []  # no run without a value
        storage.put_scalars(total_loss=2.0, smoothing_hint=False)
        storage.put_scalar("segm/AP-Öl (%)", 7.0, smoothing_hint=False)
        storage.step()
        storage.put_scalars(total_loss=1.0, smoothing_hint=False)
        for tracker in (wandb, mlflow):
            tracker.write()
            tracker.write()
            tracker.close()
            tracker.close()
    names = [name for name, _, _ in told]
    assert names == ["init", "log", "log", "finish",
                     "set_experiment", "start_run", "log_text", "log_metrics", "log_metrics",
                     "end_run"]  # fmt: skip
    calls = dict(zip(names, told))
    options = calls["init"][2]
    assert (options["project"], options["name"], options["id"]) == ("knet", "out", None)
    assert options["config"]["SOLVER"]["IMS_PER_BATCH"] == 1
    assert told[1][1:] == (({"segm/AP-Öl (%)": 7.0},), {"step": 0})
    assert told[2][1:] == (({"total_loss": 1.0},), {"step": 1})
    assert told[7][1:] == (({"segm/AP-_l ___": 7.0},), {"step": 0})
    assert calls["start_run"][2] == {"run_id": None, "run_name": "out"}
    assert "IMS_PER_BATCH: 1" in calls["log_text"][1][0]


def test_a_resumed_training_goes_on_with_its_run(told, cfg):
    cfg.TRACKING.WRITERS = ["wandb", "mlflow"]
    cfg.SOLVER.MAX_ITER = 2
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    first = Trainer(cfg)
    first.resume_or_load(resume=False)
    first.train()
    first.iter = 1
    first.checkpointer.save("model_final", iteration=1)  # once the run has begun
    cfg.SOLVER.MAX_ITER = 3
    told.clear()
    second = Trainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 2
    second.train()
    assert ("init", "new") in [(name, options.get("id")) for name, _, options in told]
    assert ("start_run", (), {"run_id": "new", "run_name": None}) in told
    logged = [args[0] for name, args, _ in told if name == "log"]
    assert any("total_loss" in values and "lr" in values for values in logged)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_before_the_training(cfg, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    cfg.TRACKING.WRITERS = [name]
    with pytest.raises(UserError, match=rf"TRACKING\.WRITERS names {name}.*pip install {name}"):
        Trainer(cfg)
