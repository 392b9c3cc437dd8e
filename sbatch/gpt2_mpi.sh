#!/bin/bash
# Train GPT-2 on alpaca with DDP, one rank a GPU, started by mpirun.
#
#   sbatch sbatch/gpt2_mpi.sh                                        # from the project's root
#   sbatch --nodes=4 --time=08:00:00 sbatch/gpt2_mpi.sh --lr 1e-4    # sbatch's options before, training's after
#
# Options given to sbatch override these; the launcher follows what was granted.
#SBATCH --job-name=gpt2_mpi
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

cd "${SLURM_SUBMIT_DIR:-$PWD}" || exit # Slurm runs a copy of this file from its spool
if [ ! -r sbatch/env.sh ]; then
    echo "error: no sbatch/env.sh in $PWD: submit from the project's root (python -m cluster templates DIR makes one)" >&2
    exit 64
fi
. sbatch/env.sh

# exec: the warning signal reaches the launcher itself, and its exit status is the job's.
# Without --experiment-name the job's name names the run, so a requeued or resubmitted job goes on with it.
exec "${PYTHON:-python3}" -m cluster.launch -- python -m training.train_llm "$@"
