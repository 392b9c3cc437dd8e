"""Launch and supervise PyTorch ranks on a Slurm cluster, over ssh, or on this machine, through mpirun.

The walk, one module a step::

    submit -> request -> plan -> sbatch                    on the login node
    launch -> allocation -> attempt -> hostfile, mpirun    once, in the batch body
    rank   -> program                                      in every rank

From Python: ``from cluster import submit, Run``, and the errors that they raise.

This package never imports torch, transformers, datasets or `training`: the front end starts at once. What it offers
from Python is imported when it is first asked for.
"""

TYPE_CHECKING = False  # for type checkers; typing itself takes longer to import than all that is here
if TYPE_CHECKING:
    from cluster.errors import ClusterError, LauncherError, RequestError
    from cluster.run import Run
    from cluster.submit import submit

__all__ = ["ClusterError", "LauncherError", "RequestError", "Run", "submit"]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "submit":
        return import_module("cluster.submit")
    if name == "Run":
        return import_module("cluster.run").Run
    if name in __all__:
        return getattr(import_module("cluster.errors"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
