#!/bin/bash
# sbatch deploy/slurm.sh MANIFEST ROOT URLS: a Ray cluster over the job's nodes, then download and nouns.
# Submit it again when the time limit ended it: it goes on where the ledger says.
#SBATCH --job-name=codeseg
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
set -euo pipefail
usage="usage: sbatch deploy/slurm.sh MANIFEST ROOT URLS"
manifest=${1:?"$usage"}
root=${2:?"$usage"}
urls=${3:?"$usage"}
export RAY_worker_niceness=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}'):6379
srun --nodes=1 --ntasks=1 -w "$head" --overlap \
  ray start --head --port=6379 --num-cpus="$SLURM_CPUS_PER_TASK" --block &
sleep 20
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 -w "$node" --overlap \
    ray start --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
done
sleep 20
codeseg download "$manifest" "$root" --urls "$urls" --ray-address "$address"
codeseg nouns "$root" --ray-address "$address"
