# shellcheck shell=bash
# The one place for your site: sourced by both templates and by `python -m cluster.submit`, in the batch body.
# What it sets reaches every rank (see docs/environment.md).

# Which Python: the environment that `make` builds here, where there is one. PATH stays as your modules set it, so
# that their mpirun comes before one that pip installed into the environment.
if [ -x "$PWD/.venv/bin/python" ]; then
    export PYTHON="$PWD/.venv/bin/python"
fi

# >>> edit here: modules, virtual environment, caches
# module load openmpi/4.1 cuda
# export PYTHON=/shared/venv/bin/python
# export HF_HOME=/shared/huggingface
# <<<
