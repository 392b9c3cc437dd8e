"""The request: validated, and rendered to one batch script that the template agrees with."""

import re
from pathlib import Path

import pytest

from cluster.errors import RequestError
from cluster.plan import ResourcePlan, batch_script, check_sbatch_options, header_value
from conftest import ROOT

GOLDEN = """\
#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --time=04:00:00
#SBATCH '--output=/out/my runs/%x-%j.log'
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --gpus-per-node=8
#SBATCH --partition=main

source '/home/u/my project/sbatch/env.sh'
export SUBMITIT_EXECUTOR=slurm
exec python -m something
"""


def test_the_batch_script_stands_here_as_a_whole() -> None:
    options = ResourcePlan(options={"partition": "main"}).sbatch_options("/out/my runs/%x-%j.log")

    script = batch_script(options, Path("/home/u/my project/sbatch/env.sh"), "python -m something")

    assert script == GOLDEN.replace("'--output=/out/my runs/%x-%j.log'", "--output='/out/my runs/%x-%j.log'")


def header(script: str) -> dict[str, str]:
    return {
        name: value
        for line in script.splitlines()
        if (match := re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(.*))?", line))
        for name, value in [(match[1], match[2] or "")]
    }


def test_the_template_asks_for_the_same_as_submit() -> None:
    template = header((ROOT / "sbatch/gpt2_mpi.sh").read_text())

    assert template.pop("job-name") == "gpt2_mpi"
    assert template == ResourcePlan().sbatch_options("%x-%j.log")


@pytest.mark.parametrize("name", ["gpt2_mpi.sh", "smoke_mpi.sh"])
def test_a_template_can_be_resumed_and_warned(name: str) -> None:
    text = (ROOT / "sbatch" / name).read_text()
    options = header(text)

    assert options["signal"] == "B:USR1@120"
    assert options["open-mode"] == "append"
    assert options["output"] == "%x-%j.log"
    assert "requeue" in options
    assert "$(date" not in text
    assert "# SBATCH" not in text
    assert text.splitlines()[-1].startswith('exec "${PYTHON:-python3}" -m cluster.launch -- ')


def test_options_given_win_over_the_plans_own() -> None:
    options = ResourcePlan(options={"time": "10", "requeue": "no"}).sbatch_options("l")

    assert (options["time"], options["requeue"]) == ("10", "no")


@pytest.mark.parametrize(
    ("plan", "ranks"),
    [
        (ResourcePlan(gpus_per_node=4), 4),
        (ResourcePlan(gpus_per_node=4, ranks_per_node=8), 8),
        (ResourcePlan(gpus_per_node=0, ranks_per_node=3), 3),
        (ResourcePlan(gpus_per_node=0), 1),
    ],
)
def test_tasks_follow_gpus_unless_ranks_are_given(plan: ResourcePlan, ranks: int) -> None:
    assert plan.sbatch_options("l")["ntasks-per-node"] == str(ranks)
    assert [host.ranks for host in plan.expected_allocation().hosts] == [ranks, ranks]


def test_a_job_with_spare_nodes_outlives_the_loss_of_one() -> None:
    assert "no-kill" in ResourcePlan(spare_nodes=1).sbatch_options("l")
    assert "no-kill" not in ResourcePlan().sbatch_options("l")


def test_without_gpus_none_are_asked_for() -> None:
    assert "gpus-per-node" not in ResourcePlan(gpus_per_node=0).sbatch_options("l")


@pytest.mark.parametrize(
    "options", [{"time": "1\n#SBATCH --uid=0"}, {"comment": "a\x1b[2J"}, {"No": "x"}, {"a b": "x"}, {"": "x"}]
)
def test_nothing_breaks_out_of_the_header(options: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="sbatch option"):
        check_sbatch_options(options)


def test_a_jobs_name_is_to_name_its_files_too() -> None:
    with pytest.raises(RequestError, match="sbatch option --job-name: 'a/b' has a space or slash"):
        check_sbatch_options({"job-name": "a/b"})


def test_a_path_of_ours_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(RequestError, match="has a line break or control character: sbatch takes none"):
        header_value("/out/a\n#SBATCH --uid=0")
