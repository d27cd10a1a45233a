"""Trainings on several "machines" of this one: equal weights, lost machines, restarts.

    python benchmarks/machines.py               # two torchrun agents, then two tasks as of srun
    python benchmarks/machines.py --what ray    # two workers of Ray Train
    python benchmarks/machines.py --what cable  # a network between them that is cut; as root

A tiny model learns for 12 steps in float64, in which sums of one and of several processes differ
by rounding alone. Machines are processes with gloo between them; a machine that is lost is its
agent and its worker, killed at once; one behind a cable is in a network of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import torch

from knet.data import write_shapes
from knet.files import read_text, write_text

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "shapes" / "panoptic.yaml")
STEPS, PERIOD = 12, 4
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.SMALL_RESNET.CHANNELS"),
    *("[16, 32, 48, 64]", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
    *("MODEL.KNET.HIDDEN_DIM", "16", "MODEL.KNET.FFN_DIM", "32", "MODEL.KNET.NORM_GROUPS", "4"),
    *("MODEL.KNET.NUM_HEADS", "4", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", str(STEPS)),
    *("SOLVER.CHECKPOINT_PERIOD", str(PERIOD), "DATASETS.TEST", "()", "SEED", "5"),
    # else the statistics of batch norms are those of one process
    *("DATALOADER.NUM_WORKERS", "0", "MODEL.KNET.FREEZE_NORM_STATS", "True"),
]  # fmt: skip
AGENT = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
# else a new agent waits for what one that has stayed has told in the first round alone
SHARE_NOTHING = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
SECONDS = 600
PARTS = ("machines", "cable", "ray")


def work(config: Mapping[str, Any], train: Callable[..., Any], rank: str) -> None:
    """A training in float64 by `train(config)`, whose process can be found."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    write_text(Path(config["opts"][1], f"pid_{rank}"), str(os.getpid()))
    train(config)


def in_worker(output: str) -> None:
    """What a process of a machine does."""
    from knet.errors import run_command
    from knet.training.run import train

    config = {"config_file": CONFIG, "opts": ["OUTPUT_DIR", output, *TINY]}
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))

    def main() -> None:
        work(config, lambda c: train(c["config_file"], c["opts"], resume=True), rank)

    sys.exit(run_command("machines.py", main))


def start(
    command: Sequence[str], said: Path, inside: Sequence[str] = (), **env: str
) -> subprocess.Popen:
    with open(said, "a", encoding="utf-8") as file:
        return subprocess.Popen(
            [*inside, sys.executable, "-W", "ignore", *command], stdout=file, stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1", **SHARE_NOTHING, **env},
        )  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def agents(output: Path, port: int = 0, restarts: int = 0) -> Iterator[list[subprocess.Popen]]:
    """Two agents of torchrun, each with a worker."""
    port = port or free_port()
    commands = [torchrun(output, i, port, restarts) for i in (0, 1)]
    with running([start(c, output / f"said_{i}") for i, c in enumerate(commands)]) as two:
        yield two


def torchrun(output: Path, index: int, port: int, restarts: int) -> list[str]:
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    meeting += ["--rdzv-conf", f"is_host={index == 0}", "--max-restarts", str(restarts)]
    return [*AGENT, *meeting, __file__, "--worker", str(output)]


@contextlib.contextmanager
def agents_with_a_cable(output: Path) -> Iterator[list[subprocess.Popen]]:
    """The same, the second one in a network namespace of its own; `cut` ends the connection."""
    names = [f"knet{os.getpid()}{end}" for end in "ab"]
    try:
        ip("netns", "add", names[1])
        ip("link", "add", names[0], "type", "veth", "peer", names[1], "netns", names[1])
        ip("addr", "add", "10.213.0.1/24", "dev", names[0])
        ip("-n", names[1], "addr", "add", "10.213.0.2/24", "dev", names[1])
        ip("link", "set", names[0], "up")
        for device in (names[1], "lo"):
            ip("-n", names[1], "link", "set", device, "up")
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"10.213.0.1:{free_port()}"]
        started = []
        for i, name in enumerate(names):
            here = ["--local-addr", f"10.213.0.{i + 1}", "--rdzv-conf", f"is_host={i == 0}"]
            worker = [*here, __file__, "--worker", str(output)]
            inside = ["ip", "netns", "exec", name] if i else []
            started.append(
                start(
                    [*AGENT, *meeting, *worker], output / f"said_{i}", inside=inside,
                    GLOO_SOCKET_IFNAME=name,
                )
            )  # fmt: skip
        with running(started) as two:
            yield two
    finally:
        for rank in (0, 1):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(worker_pid(output, rank), signal.SIGKILL)
        ip("link", "del", names[0])
        ip("netns", "del", names[1])


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def tasks(output: Path) -> Iterator[list[subprocess.Popen]]:
    """Two processes that find what srun tells its tasks, each on a node of its own."""
    slurm = {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "localhost,other", "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
    }  # fmt: skip
    started = [
        start(
            [__file__, "--worker", str(output)], output / f"said_{i}",
            SLURM_PROCID=str(i), SLURM_NODEID=str(i), **slurm,
        )
        for i in (0, 1)
    ]  # fmt: skip
    with running(started) as two:
        yield two


@contextlib.contextmanager
def running(started: list[subprocess.Popen]) -> Iterator[list[subprocess.Popen]]:
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def wait_for(path: Path, processes: Sequence[subprocess.Popen]) -> None:
    until = time.monotonic() + SECONDS
    while not path.is_file():
        if time.monotonic() > until or any(p.poll() is not None for p in processes):
            said = "\n".join(read_text(f) for f in path.parent.glob("said_*"))
            raise RuntimeError(f"{path} has not come:\n{said}")
        time.sleep(0.05)


def finish(processes: Sequence[subprocess.Popen], output: Path) -> dict[str, Any]:
    for i, process in enumerate(processes):
        if process.wait(SECONDS):
            raise RuntimeError(f"process {i} failed:\n{read_text(output / f'said_{i}')}")
    return weights(output)


def weights(output: Path) -> dict[str, Any]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def worker_pid(output: Path, rank: int) -> int:
    return int(read_text(output / f"pid_{rank}"))


def is_running(pid: int) -> bool:
    try:
        return read_text(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def compare(text: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    floating = [name for name in a if a[name].is_floating_point()]
    worst = max(float((a[n] - b[n]).abs().max()) for n in floating)
    equal = all(torch.equal(a[name], b[name]) for name in a)
    print(f"{text}: {'equal, bit by bit' if equal else f'largest difference {worst:.1e}'}")


def lose(output: Path, started: Sequence[subprocess.Popen], checkpoint: int, what: str) -> None:
    """Kill the second agent, alone or with its worker, and tell how the first one ends."""
    wait_for(output / f"model_{checkpoint:07d}.pth", started)
    said = output / "said_0"
    before, first = len(read_text(said)), worker_pid(output, 0)
    if what == "cable":
        ip("link", "set", f"knet{os.getpid()}a", "down")
    elif what == "machine":
        kill_machine(output, started)
    else:
        started[1].kill()
    begin = time.monotonic()
    while is_running(first):
        time.sleep(0.05)
    after = time.monotonic() - begin
    status = started[0].wait(SECONDS)
    lines = read_text(said)[before:].splitlines()
    named = [line for line in lines if "process 1 of 2" in line]
    print(
        f"{what} 1 lost: the other process ended after {after:.1f} s, its agent with status "
        f"{status} after {time.monotonic() - begin:.1f} s"
    )
    print(*(f"    {line.strip()[:200]}" for line in named[:2]), sep="\n")


def kill_machine(output: Path, started: Sequence[subprocess.Popen]) -> None:
    started[1].kill()
    os.kill(worker_pid(output, 1), signal.SIGKILL)


def torchrun_and_srun(folder: Path) -> None:
    outputs = {name: folder / name for name in ("one", "two", "lost", "elastic", "srun")}
    for output in outputs.values():
        output.mkdir()
    job = start([__file__, "--worker", str(outputs["one"])], outputs["one"] / "said_0")
    one = finish([job], outputs["one"])
    with agents(outputs["two"]) as started:
        two = finish(started, outputs["two"])
    compare("two torchrun agents, one process", two, one)
    output = outputs["lost"]
    with agents(output) as started:
        lose(output, started, PERIOD - 1, "machine")
    with agents(output) as started:
        lose(output, started, 2 * PERIOD - 1, "agent")
    with agents(output) as started:
        compare("restarted twice, not interrupted", finish(started, output), two)
    output, port = outputs["elastic"], free_port()
    with agents(output, port, restarts=2) as started:
        wait_for(output / f"model_{PERIOD - 1:07d}.pth", started)
        kill_machine(output, started)
        started[1] = start(torchrun(output, 1, port, 2), output / "said_1")
        compare("a machine replaced (elastic), not interrupted", finish(started, output), two)
    with tasks(outputs["srun"]) as started:
        compare("two tasks of srun, two agents", finish(started, outputs["srun"]), two)
    print()


def with_a_cable(folder: Path) -> None:
    output = folder / "cable"
    output.mkdir()
    with agents_with_a_cable(output) as started:
        lose(output, started, PERIOD - 1, "cable")


def with_ray(folder: Path) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    outputs = {name: folder / f"ray_{name}" for name in ("whole", "lost")}
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8)

    def loop(config: dict[str, Any]) -> None:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        import machines

        from knet.training import ray_train

        machines.work(config, ray_train.train, os.environ["RANK"])

    def fit(name: str) -> Any:
        output = outputs[name]
        output.mkdir()
        config = {"config_file": CONFIG, "opts": ["OUTPUT_DIR", str(output), *TINY]}
        trainer = TorchTrainer(
            loop, train_loop_config=config, scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(
                name=name, storage_path=str(folder / "ray"),
                failure_config=FailureConfig(max_failures=2),
            ),
        )  # fmt: skip
        return trainer.fit()

    def kill() -> None:
        wait_for(outputs["lost"] / f"model_{PERIOD - 1:07d}.pth", [])
        os.kill(worker_pid(outputs["lost"], 1), signal.SIGKILL)
        print("worker 1 of Ray killed")

    fit("whole")
    threading.Thread(target=kill).start()
    result = fit("lost")
    whole = weights(outputs["whole"])
    compare("Ray, a worker lost; not interrupted", weights(outputs["lost"]), whole)
    if (folder / "two").is_dir():
        compare("Ray, two torchrun agents", whole, weights(folder / "two"))
    with result.checkpoint.as_directory() as kept:
        print(f"Ray's checkpoint holds {', '.join(sorted(os.listdir(kept)))}")
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="+", choices=PARTS, default=["machines"])
    parser.add_argument("--worker", metavar="OUTPUT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        in_worker(args.worker)
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            write_shapes(Path(folder) / "shapes", split=split, num_scenes=12, seed=3)
        os.environ["DETECTRON2_DATASETS"] = folder
        if "machines" in args.what:
            torchrun_and_srun(Path(folder))
        if "cable" in args.what:
            with_a_cable(Path(folder))
        if "ray" in args.what:
            with_ray(Path(folder))


if __name__ == "__main__":
    main()
