"""One command line for all of it: ``python -m cluster VERB …``. A verb's module is imported only when it is asked for.

`python -m cluster.submit` and the like are the same commands.
"""

import sys
from importlib import import_module

VERBS = {
    "submit": "queue a training, or run it here where there is no Slurm",
    "sweep": "one training for each combination of options, ranked",
    "launch": "start the ranks, inside an allocation, over ssh or here",
    "doctor": "is this place fit for a run; --nodes measures an allocation's",
    "explain": "script, hostfile, mpirun's command and rank map; starts nothing",
    "status": "all runs in a list; with RUN its attempts and where time went",
    "logs": "what the ranks print: all merged, one, or errors; --follow",
    "attach": "a shell on a node of a running job; --stacks of every rank",
    "cancel": "stop a run, and say what became of it",
    "resubmit": "the same request again: it goes on from its newest checkpoint",
    "templates": "copy the sbatch templates to DIR/sbatch, to submit from DIR",
    "bench": "how long a start takes, beside bare mpirun, srun and torchrun",
    "completion": "for bash: source <(slurm-mpi-train completion bash)",
}
"""Each verb is a module with a `main` and a `parser`; what it does in one line."""
RUN_VERBS = ("explain", "status", "logs", "attach", "cancel", "resubmit", "sweep")
"""Those that take a RUN."""

EXAMPLES = """\
examples:
  python -m cluster submit --nodes 2 --gpus 8 -- -e a  GPT-2 on alpaca
  python -m cluster logs a --follow                    all ranks merged
  python -m cluster resubmit a                         goes on where it was

RUN is an experiment's name, a run directory or a job id.
Exit status: 0 done, 64 the request is wrong, 70 this place cannot do it."""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return 0
    if arguments[0] == "--version":
        print(version_text())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        from cluster.errors import REQUEST, did_you_mean

        hint = did_you_mean(verb, VERBS, f"wanted one of {', '.join(VERBS)}")
        print(f"error: no verb {verb!r}: {hint}", file=sys.stderr)
        return REQUEST
    from cluster.options import run

    return run(import_module(f"cluster.{verb}").main, rest)


def help_text() -> str:
    lines = [f"  {verb:<11} {what}" for verb, what in VERBS.items()]
    usage = "usage: python -m cluster VERB [options]    (VERB --help: its options; --version)"
    return "\n".join([usage, "", *lines, "", EXAMPLES])


def version_text() -> str:
    """``slurm-mpi-train 0.1.0``, as it was installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"slurm-mpi-train {version('slurm-mpi-train')}"
    except PackageNotFoundError:
        return f"slurm-mpi-train, not installed, from {__file__}"


def console() -> None:
    """The console script ``slurm-mpi-train``."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    console()
