"""Whole runs, as a user starts them: alone, by the guide's mpirun command, interrupted, resumed, refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from conftest import metrics_of
from forked_ranks import ForkedRanks, environment, held_port
from tiny_training import flip_a_bit
from training.demo import demo_tokenizer
from training.report.run import read_run

TINY = ["--preset", "smoke", "--seq-length", "32", "--batch-size", "2", "--max-steps", "6", "--ckpt-freq", "2"]
TINY += ["--eval-freq", "3", "--device", "cpu"]


def alone(output: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A run of one process."""
    command = [sys.executable, "-m", "training.train_llm", "--output-dir", str(output), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(**env), cwd=output)


def mpirun(output: Path, ranks: int, *argv: str, master: bool = True) -> subprocess.CompletedProcess[str]:
    """The command of the guide's mpirun chapter, on this machine."""
    found = Path(sys.executable).with_name("mpirun")
    program = str(found) if found.exists() else shutil.which("mpirun")
    if program is None:
        pytest.skip("no mpirun: neither beside this Python nor on PATH")
    command = [program, "-np", str(ranks), "--bind-to", "none", "--oversubscribe", "-x", "OMP_NUM_THREADS=1"]
    training = [sys.executable, "-m", "training.train_llm", "--output-dir", str(output), *argv]
    environ = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    with held_port() as port:
        where = ["-x", "MASTER_ADDR=127.0.0.1", "-x", f"MASTER_PORT={port}"] if master else []
        return subprocess.run(
            [*command, *where, *training], capture_output=True, text=True, timeout=180, env=environ, cwd=output
        )


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in metrics_of(run) if "loss" in row]


def manifest(run: Path, step: int) -> dict:
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory that the runs of this file share, and with it their cache of tokens."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def whole(output: Path) -> subprocess.CompletedProcess[str]:
    """An undisturbed run of one process, in `output/whole`, whose report is written all the time."""
    done = alone(output, "-e", "whole", *TINY, "--report-interval", "0.0001")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def pair(output: Path) -> subprocess.CompletedProcess[str]:
    """An undisturbed run of two ranks, in `output/pair`."""
    done = mpirun(output, 2, "-e", "pair", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_run_says_what_it_trains_and_what_came_out(whole, output: Path):
    assert "starting from random initialisation (it has no weights)" in whole.stdout
    for line in ("complete: 6 steps", "held out    loss", "sample      ", "answer    ", str(output / "whole")):
        assert line in whole.stdout
    assert whole.stderr == ""


def test_a_model_without_attention_heads_and_their_cache_trains_and_answers(output: Path, tmp_path: Path):
    mamba = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    demo_tokenizer().save_pretrained(tmp_path)
    AutoConfig.for_model("mamba", vocab_size=len(demo_tokenizer()), **mamba).save_pretrained(tmp_path)
    argv = [*TINY, "--model-name", str(tmp_path), "--max-steps", "2"]
    done = alone(output, "-e", "mamba", *argv)
    assert done.returncode == 0, done.stderr
    assert "answer    " in done.stdout
    refused = alone(output, "-e", "packed", *argv, "--packing", "varlen")
    assert refused.returncode == 64
    assert "--packing varlen: the attention of a mamba cannot be kept within documents" in refused.stderr


def test_metrics_have_a_row_for_each_step_and_each_evaluation(whole, output: Path):
    written = metrics_of(output / "whole")
    assert [row["step"] for row in written if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in written if "eval_loss" in row] == [3, 6]
    expected = {"step", "epoch", "loss", "lr", "grad_norm", "tokens_per_second", "step_seconds", "memory_peak_bytes"}
    expected |= {f"{phase}_seconds" for phase in ("data", "forward", "backward", "agree", "update")}
    assert set(written[0]) == expected
    assert [row for row in written if "eval_loss" in row][-1]["perplexity"] > 1


def test_metrics_have_a_row_for_each_checkpoint(whole, output: Path):
    written = [row for row in metrics_of(output / "whole") if "checkpoint_bytes" in row]
    assert [row["step"] for row in written] == [2, 4, 6]
    for row in written:
        assert set(row) == {"step", "checkpoint_seconds", "checkpoint_blocking_seconds", "checkpoint_bytes"}
        assert 0 < row["checkpoint_blocking_seconds"] <= row["checkpoint_seconds"]
    assert "step 6/6 · checkpoint of 10.4 MB saved in " in whole.stdout


def test_the_run_directory_holds_what_was_promised(whole, output: Path):
    run = output / "whole"
    names = {"config.json", "metrics.jsonl", "rank_times.jsonl", "summary.json", "checkpoints", "report.html"}
    assert {path.name for path in run.iterdir()} == names
    assert sorted(os.listdir(run / "checkpoints")) == ["incarnations", "step-00000004", "step-00000006"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["final_loss"] == losses(run)[-1][1] < summary["first_loss"]
    assert set(summary["samples"][0]) == {"prompt", "answer", "expected"}
    assert Path(summary["checkpoint"]).is_dir()
    assert summary["weights_sha256"] == manifest(run, 6)["weights_sha256"]


def test_the_last_report_shows_the_whole_run(whole, output: Path):
    page = (output / "whole" / "report.html").read_text()
    assert '<th scope="row">state</th><td>complete</td>' in page
    assert '<th scope="row">steps</th><td>6</td>' in page


def test_the_same_seed_gives_the_same_losses_to_the_last_digit(whole, output: Path):
    assert alone(output, "-e", "again", *TINY).returncode == 0
    assert losses(output / "again") == losses(output / "whole")


def test_a_resumed_run_passes_over_a_damaged_checkpoint_and_repeats_the_undisturbed_one(whole, output: Path):
    cut = output / "cut"
    shutil.copytree(output / "whole", cut)
    (cut / "summary.json").unlink()
    flip_a_bit(cut / "checkpoints" / "step-00000006" / "optimizer.safetensors")
    done = alone(output, "-e", "cut", *TINY)
    assert done.returncode == 0, done.stderr
    fault = "optimizer.safetensors has another hash than when it was written"
    assert f"step-00000006 is not whole ({fault}): skipped" in done.stdout
    assert "resumed from" in done.stdout
    assert "step 5/6" in done.stdout
    assert "step 4/6" not in done.stdout
    assert losses(cut) == losses(output / "whole")
    assert manifest(cut, 6)["weights_sha256"] == manifest(output / "whole", 6)["weights_sha256"]
    assert manifest(cut, 6)["incarnation"] == 2
    assert [row["eval_loss"] for row in metrics_of(cut) if "eval_loss" in row] == [
        row["eval_loss"] for row in metrics_of(output / "whole") if "eval_loss" in row
    ]


def test_a_complete_run_says_so_and_shows_its_summary_again(whole, output: Path):
    files = [output / "whole" / name for name in ("metrics.jsonl", "config.json", "summary.json")]
    before = [path.read_bytes() for path in files]
    done = alone(output, "-e", "whole", *TINY, "--lr", "0.123")
    assert done.returncode == 0
    assert "already complete at step 6" in done.stdout
    assert "complete: 6 steps" in done.stdout
    assert [path.read_bytes() for path in files] == before


def test_a_complete_run_that_goes_on_is_no_longer_complete(whole, ranks: ForkedRanks, output: Path):
    longer = shutil.copytree(output / "whole", output / "longer")
    argv = ["-e", "longer", *TINY, "--output-dir", str(output), "--max-steps", "9"]
    log = output / "longer.log"
    assert read_run(longer).state == "complete"
    assert ranks.run(log, 1, *argv, stop=(0, 7)) == [75], log.read_text()
    assert read_run(longer).state == "not complete"
    assert ranks.run(log, 1, *argv) == [0], log.read_text()
    assert json.loads((longer / "summary.json").read_text())["steps"] == 9


def test_the_guides_mpirun_command_trains_one_model_on_all_ranks(pair, output: Path):
    assert "ranks: 2 on cpu by ddp, launcher: Open MPI" in pair.stdout
    assert pair.stdout.count("complete: 6 steps") == 1
    assert [step for step, _ in losses(output / "pair")] == [1, 2, 3, 4, 5, 6]


def test_torchrun_whose_agent_has_the_store_trains_too(output: Path):
    options = [*TINY, "-e", "torchrun", "--output-dir", str(output), "--max-steps", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, "training.train_llm", *options], capture_output=True, text=True, timeout=180, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "ranks: 2 on cpu by ddp, launcher: torchrun's variables" in done.stdout


def test_of_each_rank_is_known_how_long_it_was_busy_with_each_step(pair, output: Path):
    told = [json.loads(line) for line in (output / "pair" / "rank_times.jsonl").read_text().splitlines()]
    assert [row["step"] for row in told] == [1, 2, 3, 4, 5]
    own = {
        row["step"]: row["data_seconds"] + row["forward_seconds"]
        for row in metrics_of(output / "pair")
        if "loss" in row
    }
    firsts, seconds = zip(*(row["busy_seconds"] for row in told), strict=True)
    assert firsts == pytest.approx([own[row["step"]] for row in told], abs=1e-5)
    assert min(seconds) > 0
    assert seconds != firsts  # of one step they may be, to a microsecond


def test_two_ranks_resume_to_the_same_losses(pair, output: Path):
    cut = output / "pair-cut"
    shutil.copytree(output / "pair", cut)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "step-00000006")
    done = mpirun(output, 2, "-e", "pair-cut", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from" in done.stdout
    assert losses(cut) == losses(output / "pair")
    assert manifest(cut, 6)["weights_sha256"] == manifest(output / "pair", 6)["weights_sha256"]


def test_an_error_that_only_rank_zero_meets_stops_all_ranks_with_one_line(output: Path):
    done = mpirun(output, 2, "-e", "refused", *TINY, "--dataset-name", "none.json")
    assert done.returncode == 64
    assert done.stderr.count("error: ") == 1
    assert "error: --dataset-name none.json: no such file or folder" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (output / "refused").exists()


def test_mpirun_without_a_master_address_is_told_what_to_pass(output: Path):
    done = mpirun(output, 2, *TINY, master=False)
    assert done.returncode == 64
    assert done.stderr.count("error: MASTER_ADDR and MASTER_PORT not set") == 1
    assert "-x MASTER_ADDR=<first host> -x MASTER_PORT=5001" in done.stderr


def test_another_model_cannot_resume_a_run_and_nothing_is_touched(whole, output: Path, tmp_path: Path):
    before = (output / "whole" / "config.json").read_bytes()
    done = alone(output, "-e", "whole", *TINY, "--seq-length", "16")
    assert done.returncode == 64
    assert "was started with --seq-length 32, now 16 is asked" in done.stderr
    assert (output / "whole" / "config.json").read_bytes() == before


def test_the_held_out_loss_is_the_same_on_one_rank_and_on_two(pair, output: Path):
    assert alone(output, "-e", "single", *TINY, "--batch-size", "4").returncode == 0
    one, two = (
        [row["eval_loss"] for row in metrics_of(output / run) if "eval_loss" in row] for run in ("single", "pair")
    )
    assert len(one) == 2
    assert one == pytest.approx(two, rel=1e-5)


def test_fewer_steps_than_are_done_are_refused(whole, output: Path):
    before = (output / "whole" / "metrics.jsonl").read_bytes()
    done = alone(output, "-e", "whole", *TINY, "--max-steps", "3")
    assert done.returncode == 64
    assert "error: --max-steps 3, but 6 are done: give at least that to go on from there, or choose" in done.stderr
    assert (output / "whole" / "metrics.jsonl").read_bytes() == before


def test_a_run_that_is_told_to_end_where_it_was_cut_ends_without_a_logged_step(whole, output: Path):
    cut = output / "ended"
    shutil.copytree(output / "whole", cut)
    (cut / "summary.json").unlink()
    (cut / "metrics.jsonl").write_text("")
    done = alone(output, "-e", "ended", *TINY, "--log-freq", "100")
    assert done.returncode == 0, done.stderr
    assert "changed since the attempt before: --log-freq 1 → 100" in done.stdout
    assert "complete: 6 steps" in done.stdout
    assert "loss        none at first, none at last" in done.stdout


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_keeps_its_metrics(whole, output: Path):
    damaged = output / "damaged"
    shutil.copytree(output / "whole", damaged)
    for folder in (damaged / "checkpoints").glob("step-*"):
        flip_a_bit(folder / "model.safetensors")
    done = alone(output, "-e", "damaged", *TINY)
    assert done.returncode == 64
    assert done.stderr.startswith("error: no checkpoint in ")
    assert len(done.stderr.splitlines()) == 1
    assert (damaged / "metrics.jsonl").read_bytes() == (output / "whole" / "metrics.jsonl").read_bytes()


def test_usr1_saves_and_asks_to_be_run_again(output: Path):
    command = [sys.executable, "-m", "training.train_llm", "--output-dir", str(output), "-e", "usr1", *TINY]
    command += ["--max-steps", "100000", "--ckpt-freq", "0", "--eval-freq", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), cwd=output
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    process.send_signal(signal.SIGUSR1)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 75, rest
    assert "on SIGUSR1; the same command trains on from there" in rest
    last = losses(output / "usr1")[-1][0]
    assert sorted(os.listdir(output / "usr1" / "checkpoints")) == ["incarnations", f"step-{last:08d}"]


def test_all_ranks_save_when_the_time_has_come_on_rank_zero(output: Path):
    done = mpirun(output, 2, "-e", "timed", *TINY, "--ckpt-freq", "0.001s", "--keep-checkpoints", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    saved = [row["step"] for row in metrics_of(output / "timed") if "checkpoint_bytes" in row]
    assert saved[0] == 1
    assert saved[-1] == 6


def test_the_best_checkpoint_by_its_held_out_loss_stays(output: Path):
    worse = ["--lr", "0.5", "--warmup-steps", "4", "--lr-scheduler", "constant", "--keep-checkpoints", "1"]
    done = alone(output, "-e", "best", *TINY, "--eval-freq", "1", "--ckpt-freq", "1", *worse)
    assert done.returncode == 0, done.stderr
    evaluated = {row["step"]: row["eval_loss"] for row in metrics_of(output / "best") if "eval_loss" in row}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert best < 6, "the loss was to rise again"
    kept = sorted(path.name for path in (output / "best" / "checkpoints").glob("step-*"))
    assert kept == [f"step-{best:08d}", "step-00000006"]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_the_reason(output: Path, tmp_path: Path):
    record = tmp_path / "error.json"
    command = [sys.executable, "-m", "training.train_llm", "--output-dir", str(output), "-e", "unwritable", *TINY]
    command += ["--max-steps", "100000", "--ckpt-freq", "1", "--eval-freq", "0"]
    env = environment(TORCHELASTIC_ERROR_FILE=str(record))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=output)
    assert process.stdout is not None
    for line in process.stdout:
        if "checkpoint of" in line:
            break
    (output / "unwritable" / "checkpoints").rename(tmp_path / "away")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "training.errors.StorageError: the checkpoint of step" in errors
    assert "No such file or directory; make room or repair that file system, then run the same command again" in errors
    assert "StorageError" in record.read_text()


def test_a_fault_leaves_an_error_record_and_a_wrong_request_does_not(output: Path, tmp_path: Path):
    record = tmp_path / "error.json"
    refused = alone(output, *TINY, "-e", "none", "--dataset-name", "none.json", TORCHELASTIC_ERROR_FILE=str(record))
    assert refused.returncode == 64
    assert not record.exists()
    fault = alone(
        output, *TINY, "-e", "fault", "--lr", "1e30", "--warmup-steps", "0", TORCHELASTIC_ERROR_FILE=str(record)
    )
    assert fault.returncode == 1
    assert "FloatingPointError" in record.read_text()
    assert "not finite" in fault.stderr or "gradient's norm" in fault.stderr


def test_without_a_name_the_launchers_run_directory_is_used(output: Path, tmp_path: Path):
    given = tmp_path / "given"
    done = alone(output, *TINY, "--max-steps", "1", CLUSTER_RUN_DIR=str(given))
    assert done.returncode == 0, done.stderr
    assert (given / "summary.json").exists()


def test_granted_gpus_that_torch_does_not_see_are_an_error(output: Path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("torch sees GPUs here")
    done = alone(output, *TINY, "-e", "gpu", "--device", "auto", CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 64
    assert "GPUs were granted (CUDA_VISIBLE_DEVICES=0) but torch sees none" in done.stderr


WITHOUT_PACKAGES = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("tensorboard", "vl_convert") else find_spec(name, *rest)
"""


def test_what_only_rank_zero_tells_may_be_missing_on_the_other_hosts(ranks: ForkedRanks, output: Path):
    argv = [*TINY, "--output-dir", str(output), "-e", "told", "--max-steps", "1"]
    argv += ["--report-to", "tensorboard", "--report-interval", "5"]
    log = output / "told.log"
    assert ranks.run(log, 2, *argv, inject={1: WITHOUT_PACKAGES}) == [0, 0], log.read_text()
    assert ranks.run(log, 2, *argv, "-e", "refused", inject={0: WITHOUT_PACKAGES}) == [64, 64]
    assert log.read_text().splitlines()[-1].startswith("error: --report-to tensorboard: the package is not installed: ")
    assert not (output / "refused").exists()
