"""Before a run: every host does what it should, or is named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from forked_ranks import ForkedRanks
from training import host as host_module
from training import preflight as module
from training.host import judge_hosts, look_at_host, multiply
from training.network import judge_network
from training.preflight import summary
from training.ranks import RankInfo

GB = 10**9


def report(**more: Any) -> dict[str, Any]:
    """What a sound rank reports."""
    sound = {"host": "n1", "device": "cpu", "versions": {"torch": "2.13.0"}, "disk": {"/runs": 50 * GB}}
    return sound | {"right": True, "seconds": 0.01, "flops": 1e11} | more


def faults(*reports: dict[str, Any]) -> list[tuple[int, str]]:
    return judge_hosts(reports, {}).faults


def test_sound_hosts_have_no_faults_and_no_warnings():
    verdict = judge_hosts([report(), report(host="n2")], {"n1": 0.0, "n2": 1.9})
    assert (verdict.faults, verdict.warnings) == ([], [])


def test_another_version_than_rank_zeros_is_a_fault_that_names_both():
    assert faults(report(), report(host="n2", versions={"torch": "2.12.0"})) == [
        (1, "torch 2.12.0, while rank 0 on n1 has 2.13.0: make them the same")
    ]
    assert faults(report(), report(versions={}))[0][1].startswith("torch missing, while rank 0 on n1 has 2.13.0")


def test_a_wrong_matrix_product_is_a_fault():
    assert faults(report(), report(right=False)) == [
        (1, "a matrix product came out wrong: its processor or memory is broken")
    ]


@pytest.mark.parametrize(("seconds", "slow"), [(0.9, False), (1.1, True), (60.0, True)])
def test_a_slow_matrix_product_is_a_fault_only_over_a_second(seconds: float, slow: bool):
    assert bool(faults(report(), report(), report(seconds=seconds))) == slow


def test_where_all_are_slow_none_is_at_fault():
    assert faults(*(report(seconds=seconds) for seconds in (2.0, 3.0, 5.9))) == []


def test_a_gpu_with_memory_errors_or_in_use_by_another_process_is_a_fault():
    assert faults(report(ecc=0, memory=[79 * GB, 80 * GB])) == []
    assert faults(report(ecc=3)) == [(0, "its GPU has 3 uncorrected memory errors")]
    assert faults(report(memory=[10 * GB, 80 * GB])) == [
        (0, "10.0 of 80.0 GB of its GPU are free: another process uses it")
    ]


def test_a_device_that_fails_is_called_by_its_name():
    assert faults(report(device="cuda", error="RuntimeError: CUDA error"))[0][1] == (
        "its GPU failed: RuntimeError: CUDA error"
    )
    assert faults(report(error="RuntimeError: no"))[0][1] == "its processor failed: RuntimeError: no"


def test_the_seconds_for_an_answer_count_from_when_all_have_imported(tmp_path: Path, monkeypatch):
    done: list[str] = []

    class Watched(module._Round):
        def exchange(self, own: dict[str, Any]) -> list[dict[str, Any]]:
            done.append(f"{self._name} {self._within:g}")
            return super().exchange(own)

    def told(device: torch.device) -> dict[str, Any]:
        done.append("multiply")
        return multiply(device)

    monkeypatch.setattr(module, "_Round", Watched)
    monkeypatch.setattr(host_module, "multiply", told)
    monkeypatch.setattr(module, "measure_network", lambda *arguments: {"host": "n1"})
    module.preflight(RankInfo("single"), torch.device("cpu"), torch.distributed.HashStore(), tmp_path)
    assert done == ["preflight/ready 60", "multiply", "preflight/host 10", "preflight/network 10"]


def test_a_full_disk_and_a_wrong_clock_are_warnings_told_once_a_host():
    verdict = judge_hosts([report(), *[report(host="n2", disk={"/tmp": GB // 2})] * 2], {"n1": 0.0, "n2": -7.25})
    assert verdict.faults == []
    assert verdict.warnings == [
        "n2 has 0.50 GB free in /tmp",
        "the clock of n2 differs by -7.2 s from that of rank 0's host",
    ]


def test_the_host_whose_messages_do_not_arrive_is_told_before_those_that_wait() -> None:
    hosts = ["a", "a", "b"]
    reports: list[dict[str, Any]] = [
        {"host": "a", "from": 2, "error": "timed out"},
        {"host": "a", "error": "timed out"},
        {"host": "b", "from": 0, "ring": 1e9, "error": "timed out"},
    ]
    assert judge_network(reports, hosts).faults[0] == (0, "nothing arrives from b: timed out")


def test_a_sum_that_came_out_wrong_is_a_fault():
    reports = [{"host": "a", "sum_right": True}, {"host": "b", "sum_right": False}]
    assert judge_network(reports, ["a", "b"]).faults == [(1, "a sum over all ranks came out wrong on 1 of 2")]


def test_the_summary_is_one_line():
    measured = [{"all_reduce": 1.2e9, "ring": 5e6}, {"all_reduce": 1.3e9, "ring": 6e6}]
    assert summary([report(), report(host="n2")], measured) == (
        "preflight: 2 nodes, 2 ranks, matrix product 100 to 100 GFLOP/s, all-reduce 1.2 GB/s, node to node 5.0 MB/s at "
        "least"
    )


def test_the_matrix_product_of_this_machine_comes_out_right(tmp_path: Path):
    assert multiply(torch.device("cpu"))["right"] is True
    looked = look_at_host(torch.device("cpu"), tmp_path / "not" / "there")
    assert looked["disk"][str(tmp_path)] > 0
    assert faults(looked) == []


# ── in several ranks ──────────────────────────────────────────────────────────────────────────────


def train(ranks: ForkedRanks, folder: Path, world: int, inject: dict[int, str]) -> tuple[list[int], str]:
    options = ["-e", "run", "--output-dir", str(folder), "--preset", "smoke", "--max-steps", "1", "--device", "cpu"]
    statuses = ranks.run(folder / "log", world, *options, "--seq-length", "32", inject=inject)
    return statuses, (folder / "log").read_text()


HOSTS = "import socket; socket.gethostname = lambda: 'n{}'"
WRONG = "import training.host as h; h.multiply = lambda d: {'right': False, 'seconds': 0.1, 'flops': 1}"
HANGS_UNTIL_THE_OTHERS_SAY_SO = """
import time, training.host as h, training.preflight as p
from pathlib import Path
def hang(device):
    while "error:" not in Path({log!r}).read_text():
        time.sleep(0.05)
p.ANSWER_WITHIN, h.gpu_health = 3.0, hang
"""
SHORT = "import training.preflight as p; p.ANSWER_WITHIN = 3.0"
KERNELS_MISFIT = """
import training.assemble as a
from training.errors import InputError
def refuse(*given):
    raise InputError("--kernels fused: triton does not work here")
a.token_loss = refuse
"""


def test_four_ranks_on_two_hosts_measure_their_network(ranks: ForkedRanks, tmp_path: Path):
    statuses, printed = train(ranks, tmp_path, 4, {rank: HOSTS.format(rank // 2) for rank in range(4)})
    assert statuses == [0] * 4, printed
    assert printed.startswith("preflight: 2 nodes, 4 ranks, matrix product ")
    assert "B/s, node to node " in printed.splitlines()[0]


def test_a_host_that_computes_wrongly_ends_every_rank_with_one_line(ranks: ForkedRanks, tmp_path: Path):
    statuses, printed = train(ranks, tmp_path, 3, {1: HOSTS.format(7) + "; " + WRONG})
    assert statuses == [71] * 3
    assert printed == "error: rank 1 on n7: a matrix product came out wrong: its processor or memory is broken\n"
    assert not (tmp_path / "run").exists()


def test_a_rank_that_does_not_answer_is_named_and_not_waited_for(ranks: ForkedRanks, tmp_path: Path):
    hangs = HANGS_UNTIL_THE_OTHERS_SAY_SO.format(log=str(tmp_path / "log"))
    statuses, printed = train(ranks, tmp_path, 3, {0: SHORT, 1: SHORT, 2: hangs})
    assert statuses[:2] == [71, 71], printed
    assert "error: rank 2 on " in printed
    assert "does not answer in 3 s" in printed
    assert "Traceback" not in printed


def test_kernels_that_one_host_cannot_have_are_refused_by_every_rank_in_one_line(ranks: ForkedRanks, tmp_path: Path):
    statuses, printed = train(ranks, tmp_path, 2, {1: HOSTS.format(7) + "; " + KERNELS_MISFIT})
    assert statuses == [64, 64], printed
    assert printed.splitlines()[-1] == "error: rank 1 on n7: --kernels fused: triton does not work here"
    assert printed.count("error: ") == 1
