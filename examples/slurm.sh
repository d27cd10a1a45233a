#!/bin/bash
# Training on machines that SLURM lends:
#     sbatch examples/slurm.sh configs/coco/panoptic/knet_r50_fpn_1x.yaml [KEY VALUE ...]
#SBATCH --job-name=knet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the end of its time every process gets SIGUSR1. (SIGTERM, which comes before a
# pre-emption, does the same.)
#SBATCH --signal=USR1@120

set -u
config=$1
shift

# A task is a process; srun tells each its place, so that nothing is spawned. When one is lost, the
# others end by themselves within a minute. OUTPUT_DIR is on storage that all machines have; --resume
# goes on from the newest checkpoint there, and starts if there is none.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # which newer versions do not hand on
trap : TERM USR1 # this script goes on when srun has ended
srun --kill-on-bad-exit=0 --wait=120 \
  python train_net.py --config-file "$config" --resume "$@"
status=$?

# 138 and 143: stopped by SIGUSR1 or SIGTERM, with a checkpoint. 75: another process or machine was
# lost. 137: one was killed, as for want of memory: again, but not without end.
case $status in
  75 | 138 | 143) again=yes ;;
  137) again=$([ "${SLURM_RESTART_COUNT:-0}" -lt 3 ] && echo yes) ;;
  *) again= ;;
esac
# not if it was cancelled
if [ -n "$again" ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
