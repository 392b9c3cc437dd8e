"""One training for each combination of options: all checked at once, submitted as one job array, ranked.

python -m cluster sweep --grid lr=1e-4,3e-4 seed=0..4 --nodes 1 --gpus 1 --limit 4 -- -e base --max-steps 1000
python -m cluster sweep base               the results, the best first
python -m cluster sweep base --resume      again what is neither complete nor under way; goes on from checkpoints
python -m cluster cancel base              all that runs or waits of it
"""

import contextlib
import json
import os
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from cluster import slurm
from cluster.config_file import read_command_line
from cluster.environment import with_project
from cluster.errors import COMPLETE, RequestError, did_you_mean
from cluster.goodput import duration
from cluster.grid import combinations, index_list, name_of, parse_grid
from cluster.here import allocation_here, run_here
from cluster.jobs import Job
from cluster.keywords import command_words
from cluster.options import OptionParser, at_least, run, split_program
from cluster.plan import ResourcePlan, batch_script, log_pattern
from cluster.private import check_private
from cluster.ranking import ranking, ranking_lines
from cluster.request import (
    check_training,
    experiment_directory,
    goes_to_slurm,
    launch_arguments,
    resource_plan,
    site_setup,
    understand,
)
from cluster.request import parser as submit_parser
from cluster.request_file import record_request
from cluster.run_state import RunState, Snapshot, look, look_now, states
from cluster.rundir import DEFAULT_OUTPUT_DIR
from cluster.runs import is_run, name_from_here
from cluster.sbatch import check_with_slurm, made, queued
from cluster.status import summary
from cluster.sweep_file import SWEEP_FILE, Element, Sweep, all_sweeps, extended, find_sweep, read_sweep, written
from cluster.terminal import plain, table
from cluster.verdict import CANCELLED, COMPLETED, SAVED

USAGE = """python -m cluster sweep --grid OPTION=VALUES … [options as for submit] -- [arguments of training.train_llm]
       python -m cluster sweep SWEEP [--resume] [--json]"""
EPILOG = """\
VALUES are separated by commas; 0..4 is 0, 1, 2, 3, 4. Options are the trainer's, without their dashes; with --program
they are that program's. SWEEP is the experiment's name: its runs lie in outputs/SWEEP/, each in a directory of its own
for status, logs, cancel, resubmit. The same command again resumes too; there more values add runs.
For every run the options of submit are taken too (python -m cluster submit --help), only --wait, --follow and
--prepare-first are not.

exit status: 0 submitted (without Slurm: all are complete, else that of the first that failed), 64 the request is wrong,
70 this place cannot do it"""

WITHOUT_MEANING = {
    "wait": "--wait is for one job: python -m cluster sweep SWEEP shows where they stand",
    "follow": "--follow is for one job: python -m cluster logs SWEEP/RUN --follow",
    "prepare_first": "--prepare-first is for one run: give python -m training.prepare --output-dir outputs/SWEEP",
}
OWN_WORDS = {
    "dry_run": "show runs, cost and batch script, submit nothing",
    "json": "with SWEEP: the results as one JSON object",
}
"""Those options of submit that the help shows, and what they mean here."""
NEW = RunState("new")
STOPPED = (CANCELLED, SAVED)
"""States of a run here after which the next one is not begun."""
OF_A_SUBMITTED_ONE = ("sweep", "resume", "json", "dry_run", "output_dir")


def main(arguments: list[str]) -> int:
    options, rest, words = read_command_line(parser(), arguments)
    if not options.sweep:
        return submit_sweep(options, rest, words)
    check_only_name(options, rest)
    output_dir = Path(options.output_dir or DEFAULT_OUTPUT_DIR)
    sweep = find_sweep(options.sweep, output_dir)
    if sweep is None:
        names = [path.name for path in all_sweeps(output_dir)]
        hint = did_you_mean(options.sweep, names, "wanted the name or directory of one that was submitted")
        raise RequestError(f"no sweep {options.sweep}, neither here nor in {output_dir.absolute()}: {hint}")
    if not options.resume:
        print(*map(plain, report(sweep, options.json)), sep="\n")
        return COMPLETE
    check_private(sweep.directory)
    if not os.path.isdir(sweep.given_in):
        raise RequestError(f"{options.sweep} was submitted in {sweep.given_in}: that is no directory any more")
    again, rest, words = read_command_line(parser(), sweep.arguments)
    again.dry_run = options.dry_run
    with contextlib.chdir(sweep.given_in):
        return submit_sweep(again, rest, words)


def parser() -> OptionParser:
    """The options of submit, which its own help shows, and a few."""
    options = submit_parser().reworded("python -m cluster sweep", USAGE, str(__doc__), EPILOG, OWN_WORDS)
    options.add_argument("sweep", nargs="?", metavar="SWEEP", help="one that was submitted, by name or directory")
    options.add_argument(
        "--grid", nargs="+", action="extend", default=[], metavar="OPTION=VALUES", help="the values of each option"
    )
    options.add_argument("--limit", type=at_least(1), metavar="N", help="at most N of them run at a time")
    options.add_argument("--resume", action="store_true", help="with SWEEP: again what is not complete")
    return options


def check_only_name(options: Namespace, rest: Sequence[str]) -> None:
    """Raise `RequestError` where more is said of a sweep that was submitted than that it is meant."""
    for action in parser()._actions:
        if action.dest not in OF_A_SUBMITTED_ONE and getattr(options, action.dest, None) not in (None, action.default):
            raise RequestError(
                f"{action.option_strings[-1]} beside the name of a sweep: give its whole command again with what is new"
            )
    if rest:
        raise RequestError("arguments beside the name of a sweep: give its whole command again with what is new")


def submit_sweep(options: Namespace, rest: list[str], given: list[str]) -> int:
    """Check all, show them and what they cost at most, submit those that are neither complete nor under way."""
    sweep = asked_for(options, rest, given)
    plan = resource_plan(options) if goes_to_slurm(options) else None
    known = [state for _, state, _ in look_at(sweep)]
    chosen = [index for index, state in enumerate(known) if goes_on(state)]
    sweep = others_unchanged(sweep, chosen)
    script = array_script(plan, sweep, chosen, options.limit) if plan and chosen else None
    if chosen and not options.dry_run:
        ranks = plan.expected_allocation().world_size if plan else allocation_here(options).world_size
        check_training(options, [split_program(sweep.elements[index].launch)[1] for index in chosen], ranks)
    print(*map(plain, listing(sweep, known)), "", sep="\n")
    print(cost(len(chosen), plan), flush=True)
    if options.dry_run:
        print(f"\n{script}" if script else "", end="")
    if options.dry_run or not chosen:
        return COMPLETE
    if script:
        return queue_array(sweep, chosen, script)
    return run_one_by_one(sweep, chosen)


def asked_for(options: Namespace, rest: list[str], given: list[str]) -> Sweep:
    """The sweep of these options, with the runs that it had before. Nothing is written."""
    if not options.grid:
        raise RequestError("wanted --grid OPTION=VALUES … for a new sweep, or the name of one that was submitted")
    if options.resume or options.json:
        raise RequestError("--resume and --json are for a sweep that was submitted: give its name instead of --grid")
    for option, words in WITHOUT_MEANING.items():
        if getattr(options, option):
            raise RequestError(words)
    grid = parse_grid(options.grid)
    directory = experiment_directory(options, understand([*without_grid(options), "--", *rest]).program)
    before = read_sweep(directory)
    if before is None and is_run(directory):
        raise RequestError(f"{directory} is a run's: choose another --experiment-name for the sweep")
    if before and set(before.options) != set(grid):
        raise RequestError(
            f"{directory} is a sweep over {', '.join(before.options)}: choose another --experiment-name for this one"
        )
    if before:
        grid = {option: grid[option] for option in before.options}
    elements = [element(options, rest, directory, values) for values in combinations(grid)]
    return Sweep(directory, given, os.getcwd(), extended(before.elements if before else [], elements))


def without_grid(options: Namespace) -> list[str]:
    """The words of submit that say the same, for one run."""
    own = {"dry_run": False, "config": None}
    return command_words(submit_parser(), {**vars(options), **own})


def element(options: Namespace, rest: Sequence[str], directory: Path, values: dict[str, str]) -> Element:
    """The run with these values, as its own request and as the launcher's arguments."""
    name = name_of(values)
    own = Namespace(**{**vars(options), "experiment_name": name, "output_dir": str(directory)})
    more = [f"--{option}={value}" for option, value in values.items()]
    if not options.program:
        more += ["--experiment-name", name, "--output-dir", str(directory)]
    words = [*without_grid(own), "--", *rest, *more]
    _, program, _ = understand(words)
    launch = [*launch_arguments(own, directory / name), "--", *program]
    return Element(name, values, words, launch)


def look_at(sweep: Sweep) -> list[tuple[Snapshot, RunState, Job | None]]:
    """Each run as it lies there, its state, which is `NEW` before it was first submitted, and its job."""
    runs = [look(run_dir) for run_dir in sweep.run_dirs]
    return [
        (found, state if found.request or found.attempts else NEW, job)
        for found, (state, job) in zip(runs, states(runs), strict=True)
    ]


def goes_on(state: RunState) -> bool:
    """Whether there is something left of the run that nobody does yet."""
    return state.is_over and state.name != COMPLETED


def others_unchanged(sweep: Sweep, chosen: Sequence[int]) -> Sweep:
    """The sweep in which the runs that are not chosen stay as they were asked for: one may wait in the queue."""
    before = read_sweep(sweep.directory)
    kept = {index: one for index, one in enumerate(before.elements if before else []) if index not in chosen}
    return sweep._replace(elements=[kept.get(index, one) for index, one in enumerate(sweep.elements)])


def listing(sweep: Sweep, known: Sequence[RunState]) -> list[str]:
    """One line a run: its place in the array, its values, where it stands."""
    head = ("", *sweep.options, "state", "run")
    rows = [
        (str(index), *one.values.values(), str(state), one.name)
        for index, (one, state) in enumerate(zip(sweep.elements, known, strict=True))
    ]
    return table([head, *rows], right=[0])


def cost(number: int, plan: ResourcePlan | None) -> str:
    """``10 runs × 1 node × 1 GPU × 4:00:00 = at most 40.0 GPU hours``."""
    what = f"{number} run{'s' * (number != 1)}"
    if not number:
        return "nothing to submit: all are complete or under way"
    if plan is None:
        return f"{what}, one after another; what they cost is not known, as there is no time limit here"
    nodes, gpus = plan.nodes + plan.spare_nodes, plan.gpus_per_node
    what += f" × {nodes} node{'s' * (nodes != 1)}" + (f" × {gpus} GPU{'s' * (gpus != 1)}" if gpus else "")
    if plan.hours is None:
        return f"{what}, without a time limit: what they cost is not known"
    total = number * nodes * (gpus or 1) * plan.hours
    kind = "GPU hours" if gpus else "node hours (no GPUs)"
    return f"{what} × {duration(plan.hours * 3600)} = at most {total:,.1f} {kind}, unless one queues itself again"


def array_script(plan: ResourcePlan, sweep: Sweep, chosen: Sequence[int], limit: int | None) -> str:
    """The batch script of the array. Raises `RequestError` where it has more elements than Slurm takes."""
    most = slurm.max_array_size()
    if most is not None and chosen[-1] >= most:
        raise RequestError(
            f"--grid makes {len(sweep.elements)} runs, an array of this Slurm has at most {most} (MaxArraySize)"
        )
    options = {
        "job-name": sweep.directory.name,
        **plan.sbatch_options(log_pattern(sweep.directory, "%x-%A_%a.log")),
        "array": index_list(chosen) + (f"%{limit}" if limit else ""),
    }
    command = [sys.executable, "-u", "-m", "cluster.element", str(sweep.directory / SWEEP_FILE)]
    return batch_script(options, site_setup(), shlex.join(command), variables={})


def queue_array(sweep: Sweep, chosen: Sequence[int], script: str) -> int:
    """Submit the array; each run then has its request, and is known by the element's id (``12_3``)."""
    check_with_slurm(script)
    before = time.time()  # an element may begin at once
    with made(sweep.directory), written(sweep), queued(script, with_project(os.environ)) as job_id:
        for index in chosen:
            one = sweep.elements[index]
            record_request(sweep.directory / one.name, one.submit, f"{job_id}_{index}", before)
    print(f"job            {job_id}")
    print(f"directory      {sweep.directory}")
    print(f"next           python -m cluster sweep {name_from_here(sweep.directory)}")
    return COMPLETE


def run_one_by_one(sweep: Sweep, chosen: Sequence[int]) -> int:
    """Without Slurm: one run after the other, here, until one is stopped; the status of the first that failed."""
    statuses = []
    with made(sweep.directory), written(sweep):
        pass
    for number, index in enumerate(chosen, start=1):
        one = sweep.elements[index]
        print(f"── {one.name}, {number} of {len(chosen)}", flush=True)
        options, program, _ = understand(one.submit)
        options.no_check = True  # it was checked with all the others
        statuses.append(run_here(options, program, one.submit))
        _, state = look_now(sweep.directory / one.name)
        if state.name in STOPPED:
            break
    print(*map(plain, report(sweep, as_json=False)), sep="\n")
    return next(filter(None, statuses), COMPLETE)


def report(sweep: Sweep, as_json: bool) -> list[str]:
    """The results, ranked."""
    looked, now = look_at(sweep), time.time()
    facts = [
        {"values": one.values, **summary(found, state, job, now)}
        for one, (found, state, job) in zip(sweep.elements, looked, strict=True)
    ]
    by, ranked = ranking(facts)
    if as_json:
        whole = {"sweep": sweep.directory.name, "directory": str(sweep.directory), "ranked_by": by, "runs": ranked}
        return [json.dumps(whole, indent=1)]
    lines = ranking_lines(sweep.directory.name, sweep.options, by, ranked)
    if any(goes_on(state) for _, state, _ in looked):
        lines.append(f"next: python -m cluster sweep {name_from_here(sweep.directory)} --resume")
    return lines


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
