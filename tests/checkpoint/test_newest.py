"""From which checkpoint a training goes on, whatever a kill or a full disk left."""

import os
import resource
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import PeriodicCheckpointer
from torch import nn

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.newest import note_run, noted_run
from knet.checkpoint.read_file import read_file
from knet.files import UNFINISHED
from knet.training.step import TrainStep
from knet.training.trainer import Trainer

from .test_damaged import KERNELS, Tiny, same, state_of


class Training:
    """What a trainer keeps."""

    def __init__(self, model, groups=1):
        parameters = list(model.parameters())
        split = [parameters] if groups == 1 else [parameters[:1], parameters[1:]]
        optimizer = torch.optim.AdamW([{"params": part} for part in split])
        self.step, self.iteration = TrainStep(model, lambda a, b: [], optimizer, seed=1), 0

    def state_dict(self):
        return {"iteration": self.iteration, "_trainer": self.step.state_dict()}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]
        self.step.load_state_dict(state["_trainer"])


def start(folder, groups=1, model=None):
    model = model or Tiny()
    training = Training(model, groups)
    return KNetCheckpointer(model, str(folder), trainer=training), model, training


def advance(checkpointer, training, iteration, name=None):
    """One step, and its checkpoint."""
    for parameter in checkpointer.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    training.step.optimizer.step()
    training.iteration = iteration
    checkpointer.save(name or f"model_{iteration:07d}", iteration=iteration)
    return state_of(checkpointer.model)


@pytest.fixture
def run(tmp_path):
    """A folder with the checkpoints of steps 0, 1 and 2, and the weights at each."""
    checkpointer, _, training = start(tmp_path)
    return tmp_path, [advance(checkpointer, training, i) for i in range(3)]


def resume(folder, **arguments):
    checkpointer, model, training = start(folder, **arguments)
    checkpointer.resume_or_load("", resume=True)
    return os.path.basename(checkpointer.resumed), state_of(model), training.iteration


@pytest.mark.parametrize("last", [b"", b"model_00", b"\xff\x00\x80", b"model_0000000.pth", None])
def test_last_checkpoint_does_not_decide(run, last):
    folder, states = run
    assert (folder / "last_checkpoint").read_bytes() == b"model_0000002.pth"
    (folder / "last_checkpoint").unlink()
    if last is not None:
        (folder / "last_checkpoint").write_bytes(last)
    name, state, iteration = resume(folder)
    assert (name, iteration) == ("model_0000002.pth", 2) and same(state, states[2])


def test_the_newest_checkpoint_is_read_once(run, monkeypatch):
    folder, _ = run
    read = []
    for module in ("newest", "checkpointer"):
        monkeypatch.setattr(
            f"knet.checkpoint.{module}.read_file",
            lambda path, **arguments: read.append(path) or read_file(path, **arguments),
        )
    resume(folder)
    assert read == [str(folder / "model_0000002.pth")]


def test_broken_checkpoints_are_passed_over_and_told(run, caplog):
    folder, states = run
    newest, before = (folder / f"model_000000{i}.pth" for i in (2, 1))
    newest.write_bytes(b"")
    content = bytearray(before.read_bytes())
    content[content.index(states[1][KERNELS].numpy().tobytes())] ^= 1  # one bit of a value
    before.write_bytes(content)
    (folder / f"model_0000009{UNFINISHED}1.pth").write_bytes(newest.read_bytes()[:100])
    torch.save({"model": states[2]}, folder / "backbone.pth")  # weights alone
    with caplog.at_level("INFO"):
        name, state, iteration = resume(folder)
    assert (name, iteration) == ("model_0000000.pth", 0) and same(state, states[0])
    told = [r.getMessage() for r in caplog.records if "passed over" in r.getMessage()]
    assert len(told) == 2 and "model_0000001.pth" in " ".join(told) and "is empty" in " ".join(told)
    assert "resuming from" in caplog.text


def test_without_a_whole_checkpoint_nothing_starts(run):
    folder, _ = run
    for path in folder.glob("*.pth"):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"no checkpoint there is whole.*0000000\.pth.*start anew"):
        resume(folder)
    for path in folder.glob("*.pth"):
        path.unlink()
    with pytest.raises(ValueError, match=r"last_checkpoint is there \('model_0000002\.pth'\)"):
        resume(folder)


def test_an_empty_folder_starts_from_the_weights(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert resume(tmp_path)[0] == ""
    assert caplog.text.count("no checkpoint in") == 1


def test_files_of_an_earlier_longer_training_are_not_its_own(run):
    folder, _ = run
    checkpointer, _, training = start(folder)
    state = advance(checkpointer, training, 0)
    name, resumed, _ = resume(folder)
    assert name == "model_0000000.pth" and same(resumed, state)
    again, _, training = start(folder)
    again.resume_or_load("", resume=True)
    state = advance(again, training, 1, "model_final")
    assert same(resume(folder)[1], state)


def test_values_that_are_not_finite_are_not_saved(run):
    folder, _ = run
    checkpointer, model, training = start(folder)
    with torch.no_grad():
        model.backbone[0].weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"0000003\.pth is not written: backbone\.0\.weig"):
        advance(checkpointer, training, 3)
    checkpointer, model, training = start(folder)
    advance(checkpointer, training, 1)
    training.step.optimizer.state[model.backbone[0].bias]["exp_avg"][0] = float("inf")
    with pytest.raises(
        FloatingPointError, match=r"trainer\._trainer\.optimizer\.state\.1\.exp_avg"
    ):
        checkpointer.save("model_0000004")
    assert sorted(p.name for p in folder.glob("*.pth")) == [
        f"model_000000{i}.pth" for i in range(3)
    ]
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"


def test_a_full_disk_leaves_the_last_checkpoint(run):
    folder, states = run
    checkpointer, _, training = start(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"model_0000002\.pth: cannot be written.*disk full.*large"
        ):
            advance(checkpointer, training, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(resume(folder)[1], states[2])
    assert not list(folder.glob(f"*{UNFINISHED}*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("iteration"), "lacks 'iteration'"),
        (lambda t: t.update(iteration="7"), "trainer.iteration is a str"),
        (lambda t: t.update(_trainer=[1]), "trainer._trainer is a list"),
        (lambda t: t["_trainer"].pop("optimizer"), "lacks 'optimizer'"),
        (lambda t: t["_trainer"]["optimizer"].update(param_groups=3), "param_groups is a int"),
        (lambda t: t["_trainer"]["optimizer"].update(param_groups=[{}]), "no groups"),
        (lambda t: t["_trainer"]["optimizer"]["state"].update({0: 3}), "parameter 0 is no dict"),
        (
            lambda t: t["_trainer"]["optimizer"]["state"][0].update(exp_avg=torch.ones(2)),
            r"exp_avg of parameter 0 has the shape \(2,\)",
        ),
        (lambda t: t["_trainer"]["optimizer"]["state"][0].update(exp_avg="x"), "no dense tensor"),
    ],
)
def test_state_of_another_training(run, change, message):
    folder, _ = run
    saved = torch.load(folder / "model_0000002.pth", weights_only=True)
    saved.pop("knet_digest")
    change(saved["trainer"])
    torch.save(saved, folder / "model_0000002.pth")
    with pytest.raises(
        ValueError, match=rf"model_0000002\.pth: the state of its trainer.*{message}"
    ):
        resume(folder)


def test_other_groups_of_parameters(run):
    with pytest.raises(ValueError, match=r"0002\.pth: .*groups its parameters otherwise"):
        resume(run[0], groups=2)


def test_another_number_of_parameters_in_the_model(run):
    class More(Tiny):
        def __init__(self):
            super().__init__()
            self.more = nn.Linear(2, 2)

    with pytest.raises(ValueError, match=r"0002\.pth: checkpoint of another model"):
        resume(run[0], model=More())


@pytest.mark.parametrize("final", ["missing", "empty", "of an earlier, shorter training"])
def test_a_training_killed_at_its_end_is_finished(tiny_cfg, final):
    """MAX_ITER is 6: the checkpoint of step 5 is the last one."""
    folder = Path(tiny_cfg.OUTPUT_DIR)
    folder.mkdir()
    killed = Trainer(tiny_cfg)
    if final == "of an earlier, shorter training":
        killed.iter = 3
        killed.checkpointer.save("model_final", iteration=3)
    elif final == "empty":
        (folder / "model_final.pth").touch()
    killed.iter = 5
    killed.checkpointer.save("model_0000005", iteration=5)
    labels = folder / "inference" / "derived" / "val" / f"semantic{UNFINISHED}12"
    labels.mkdir(parents=True)
    rest = [folder / f"model_final{UNFINISHED}1.pth", folder / "inference" / f"a{UNFINISHED}2.json"]
    rest += [labels / "1.png", labels / f"2{UNFINISHED}3.png"]
    for path in rest:
        path.touch()
    rest.append(labels)

    trainer = Trainer(tiny_cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 6 and not any(path.exists() for path in rest)
    written = read_file(str(folder / "model_final.pth"))
    assert written["iteration"] == 5 and same(written["model"], killed.model.state_dict())
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    (folder / "last_checkpoint").unlink()
    before = (folder / "model_final.pth").stat().st_mtime_ns
    trainer.resume_or_load(resume=True)  # now it is over
    assert (folder / "model_final.pth").stat().st_mtime_ns == before
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_old_checkpoints_go_after_new_ones_are_whole(tmp_path):
    checkpointer, _, training = start(tmp_path)
    periodic = PeriodicCheckpointer(checkpointer, 1, max_iter=4, max_to_keep=2)
    for training.iteration in range(4):
        periodic.step(training.iteration)
    names = {path.name for path in tmp_path.iterdir()}
    kept = {"model_0000002.pth", "model_0000003.pth", "model_final.pth", "last_checkpoint"}
    assert names == kept and resume(tmp_path)[0] == "model_final.pth"


def test_a_launcher_goes_on_with_the_training_that_it_has_started(run):
    folder, _ = run
    note_run(folder, fresh=True)  # a second one, which is lost before its first checkpoint
    checkpointer, model, training = start(folder)
    before = state_of(model)
    checkpointer.resume_or_load("", resume=False, restarted=True)
    assert checkpointer.resumed == "" and same(state_of(model), before)
    second = advance(checkpointer, training, 0)
    checkpointer, model, _ = start(folder)
    checkpointer.resume_or_load("", resume=False, restarted=True)
    assert same(state_of(model), second)

    note_run(folder, fresh=False, job="7")  # somebody has gone on with the newest there is
    assert noted_run(folder) == (None, "7")
    note_run(folder, fresh=True)
    assert noted_run(folder) == (3, "")
    (folder / ".training.run").write_text("x")
    with pytest.raises(ValueError, match=r"\.training\.run is damaged .*: remove it"):
        checkpointer.resume_or_load("", restarted=True)
