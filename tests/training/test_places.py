"""What torchrun and srun say of a process's place."""

import pytest

from knet.errors import UserError
from knet.training import places
from knet.training.launch import launch
from knet.training.places import Place, first_host, place_of_launcher, was_restarted

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "2",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "14",
    "SLURM_PROCID": "13", "SLURM_LOCALID": "1", "SLURM_NODEID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "4(x3),2", "SLURM_STEP_NODELIST": "gpu[07-09,12]",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """Replaces what launchers say."""

    def set_to(values):
        for name in [*TORCHRUN, *SRUN, "MASTER_ADDR", "MASTER_PORT"]:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


def test_torchrun(environment):
    environment({**TORCHRUN, **SRUN})  # srun may have started the agent
    assert place_of_launcher() == Place(5, 6, 1, 2, 2, "env://", "torchrun")
    assert place_of_launcher().shares_gpus()
    assert place_of_launcher().environment() == {
        name: TORCHRUN[name] for name in TORCHRUN if name != "TORCHELASTIC_RUN_ID"
    }


def test_srun(environment):
    environment(SRUN)
    place = place_of_launcher()
    assert place[:5] == (13, 14, 1, 2, 3) and not place.shares_gpus()
    assert place.url == f"tcp://gpu07:{15000 + 64 * 1234 % 15000}"
    assert places.host_of(place.url) == "gpu07"
    environment({**SRUN, "SLURM_NODEID": "0", "SLURM_STEP_ID": "1"})
    other = place_of_launcher()
    assert other.local_size == 4 and other.url != place.url  # steps beside each other
    environment({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert place_of_launcher().url == "tcp://10.0.0.1:29500"


def test_processes_are_started_here(environment):
    batch_script = {name: value for name, value in SRUN.items() if "STEP" not in name}
    for values in ({}, batch_script, {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}):
        environment(values)
        assert place_of_launcher() is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"SLURM_PROCID": "x"}, "srun: SLURM_PROCID is 'x', which is no number"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x3)"}, "'4(x3)' does not tell this machine's tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": "?"}, "'?' does not tell"),
    ],
)
def test_what_does_not_fit_is_named(environment, change, message):
    environment({**SRUN, **change})
    with pytest.raises(UserError) as error:
        place_of_launcher()
    assert message in str(error.value)


def test_missing_variables_are_named(environment):
    environment({name: value for name, value in SRUN.items() if name != "SLURM_NODEID"})
    with pytest.raises(UserError, match="srun: SLURM_NODEID is missing"):
        place_of_launcher()


@pytest.mark.parametrize(
    "names, first",
    [
        ("node1", "node1"), ("a,b", "a"), ("gpu[07-09,12],cpu1", "gpu07"), ("n[3,5]", "n3"),
        ("rack[1-2]n[04-05]", "rack1n04"), ("r[1-2].example.com,x", "r1.example.com"),
    ],
)  # fmt: skip
def test_first_of_the_machines(names, first):
    assert first_host(names) == first


def test_restarts(monkeypatch):
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.setenv(name, "0")
    assert not was_restarted()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert was_restarted()


def test_a_script_of_several_tasks_without_srun_is_told(environment, capsys):
    environment({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"})
    assert launch(lambda: 7, 1, on_gpu=False) == 7
    assert (
        "SLURM has given this job 2 tasks, of which 1 will work: srun in" in capsys.readouterr().err
    )
    environment({"SLURM_NTASKS": "1"})
    launch(lambda: 7, 1, on_gpu=False)
    assert not capsys.readouterr().err
