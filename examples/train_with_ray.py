"""Training in the workers of Ray Train, with restarts when some of them are lost.

    python examples/train_with_ray.py --config-file configs/coco/panoptic/knet_r50_fpn_1x.yaml \
        --workers 16 --storage /mnt/shared/ray --name knet_r50

The same name once more goes on where the run has stopped. Config keys and values come last. A
cluster that grows when it has to needs --cpus: by default workers share what there is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from knet.errors import UserError, run_command
from knet.training import ray_train


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--storage", type=Path, required=True, help="folder that all machines have")
    parser.add_argument("--name", required=True, help="of the run")
    parser.add_argument("--cpu", action="store_true", help="workers without GPUs")
    parser.add_argument("--cpus", type=int, help="of a worker (its share, at most 4)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
    args = parser.parse_args()
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise UserError(ray_train.missing(error)) from error

    ray.init()
    cpus = args.cpus or share(ray.cluster_resources(), args.workers, use_gpu=not args.cpu)
    opts = [*args.opts, *(["MODEL.DEVICE", "cpu"] if args.cpu else [])]
    trainer = TorchTrainer(
        ray_train.train,
        train_loop_config={"config_file": str(Path(args.config_file).resolve()), "opts": opts},
        scaling_config=ScalingConfig(
            num_workers=args.workers, use_gpu=not args.cpu, resources_per_worker={"CPU": cpus}
        ),
        run_config=RunConfig(
            name=args.name,
            storage_path=str(args.storage.resolve()),
            failure_config=FailureConfig(max_failures=20),
        ),
    )
    result = trainer.fit()
    print(f"scores {result.metrics}, weights in {result.checkpoint.path}")


def share(there: Mapping[str, float], workers: int, *, use_gpu: bool) -> int:
    """CPUs for each worker; Ray would wait without end for what the cluster does not have.

    Raises:
        UserError: it cannot hold so many workers.
    """
    kinds = ("CPU", "GPU") if use_gpu else ("CPU",)
    for kind in kinds:
        if there.get(kind, 0) < workers:
            hint = ", or train without GPUs: --cpu" if kind == "GPU" else ""
            raise UserError(
                f"{workers} workers take a {kind} each, and the Ray cluster has "
                f"{there.get(kind, 0):g}: lower --workers{hint}"
            )
    return min(4, int(there["CPU"] // workers))


if __name__ == "__main__":
    sys.exit(run_command("train_with_ray.py", main))
