"""Completion for the console script: verbs, their options as their own parsers have them, and names of runs.

source <(slurm-mpi-train completion bash)
"""

import sys
from importlib import import_module

from cluster.__main__ import RUN_VERBS, VERBS
from cluster.errors import COMPLETE
from cluster.options import OptionParser, run

USAGE = "python -m cluster completion bash"
EPILOG = "Put the line above into ~/.bashrc. Runs are looked for in outputs/."

BASH = """\
_slurm_mpi_train() {{
    local line=${{COMP_LINE:0:COMP_POINT}} verb=${{COMP_WORDS[1]}} words="" run before marks="run.json request.json"
    local word=${{line##* }}
    if ((COMP_CWORD == 1)); then
        words="{verbs}"
    elif [[ $word == -* ]]; then
        case $verb in
{options}
        esac
    elif [[ " {run_verbs} " == *" $verb "* ]]; then
        case $verb in
            sweep) marks="sweep.json" ;;
            cancel) marks+=" sweep.json" ;;
        esac
        for run in $(compgen -G "outputs/*/*.json") $(compgen -G "outputs/*/*/*.json"); do
            if [[ " $marks " == *" ${{run##*/}} "* ]]; then
                run=${{run%/*}}
                words+=" ${{run#outputs/}}"
            fi
        done
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word" | sort -u)
    before=${{word%"${{word##*=}}"}}  # bash replaces only what stands after the last =, as in base/lr=1e-3
    COMPREPLY=("${{COMPREPLY[@]#"$before"}}")
}}
complete -o default -F _slurm_mpi_train slurm-mpi-train
"""


def main(arguments: list[str]) -> int:
    parser().parse_options(arguments)
    print(bash_script(), end="")
    return COMPLETE


def parser() -> OptionParser:
    options = OptionParser("python -m cluster completion", USAGE, str(__doc__), EPILOG)
    options.add_argument("shell", choices=["bash"], help="for which shell")
    return options


def bash_script() -> str:
    """The script; a run's name with a blank in it cannot be (see `rundir.check_experiment_name`)."""
    cases = (f'            {verb}) words="{" ".join(options_of(verb))}" ;;' for verb in VERBS)
    return BASH.format(verbs=" ".join(VERBS), options="\n".join(cases), run_verbs=" ".join(RUN_VERBS))


def options_of(verb: str) -> list[str]:
    """The long options of a verb."""
    actions = import_module(f"cluster.{verb}").parser()._actions
    return sorted(name for action in actions for name in action.option_strings if name.startswith("--"))


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
