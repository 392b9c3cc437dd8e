"""Launch and supervise PyTorch ranks on a Slurm cluster, over ssh, or on this machine, through mpirun.

The walk, one module a step::

    submit -> plan -> sbatch | submitit        on the login node
    launch -> allocation -> hostfile, mpirun   once, in the batch body
    rank   -> program                          in every rank

This package never imports torch, transformers, datasets or `training`: the front end starts at once.
"""

__version__ = "0.1.0.dev0"
