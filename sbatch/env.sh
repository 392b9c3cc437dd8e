# shellcheck shell=bash
# The one place for your site: sourced by both templates and by `python -m cluster.submit`, in the batch body.
# What it sets reaches every rank (see docs/environment.md).

# >>> edit here: modules, virtual environment, caches
# module load openmpi/4.1 cuda
# export HF_HOME=/shared/huggingface
# <<<

# The environment that `make` builds beside this folder, where there is one.
if [ -x "$PWD/.venv/bin/python" ]; then
    export PATH="$PWD/.venv/bin:$PATH"
fi
