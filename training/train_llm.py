"""Train a causal language model with DDP or FSDP: the whole run, top to bottom.

    mpirun -np 4 -x MASTER_ADDR=<first host> -x MASTER_PORT=5001 python -m training.train_llm
    --experiment-name a

Works the same under mpirun of Open MPI, mpiexec of MPICH, torchrun, srun, and alone. Exit status: 0
complete, 64 the request is wrong, 71 a host is unfit (one line says how), 75 saved after SIGUSR1 or Ctrl-C
and to be run again; anything else is a fault with a traceback.
"""

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace

from training.command import refuse
from training.config import TrainConfig, config_from_argv
from training.errors import COMPLETE, SAVED_FOR_REQUEUE, InputError, NodeError
from training.heartbeat import Heartbeat, process_age
from training.imports import collector_at_rest, import_model_code
from training.live_report import LiveReport, interval_seconds
from training.ranks import RankInfo, check_rendezvous
from training.run_directory import RUN_DIRECTORY_VARIABLE, RunDirectory, run_directory
from training.start_clock import StartClock
from training.stop import StopRequest, takes_interrupts
from training.teardown import exit_with
from training.terminal import plain, take_any_letter
from training.trackers import Tracked, Trackers
from training.whole_file import write_json

SAMPLES = 3


def main(argv: Sequence[str]) -> int:
    """Carry out the training that the command line and the environment describe; the process's exit
    status."""
    take_any_letter()
    stop = StopRequest()
    heartbeat = Heartbeat.from_env(os.environ)
    ranks = RankInfo()
    try:
        ranks = RankInfo.from_env(os.environ)
        config = config_from_argv(argv)
        run = run_directory(config, os.environ)
        check_rendezvous(ranks, os.environ)
    except InputError as error:
        return refuse(error, ranks)
    if takes_interrupts(ranks.launcher, RUN_DIRECTORY_VARIABLE in os.environ):
        stop.also_on_interrupt(says=ranks.rank == 0)

    # Imported here and in `train`, because a wrong option should not have to wait seconds for torch.
    with collector_at_rest():
        from torch.distributed.elastic.multiprocessing.errors import record

    def train_or_refuse() -> int:
        try:
            return train(config, run, ranks, stop, heartbeat)
        except (InputError, NodeError) as error:
            return refuse(error, ranks)

    return record(train_or_refuse)() or COMPLETE


def train(config: TrainConfig, run: RunDirectory, ranks: RankInfo, stop: StopRequest, heartbeat: Heartbeat) -> int:
    """Join the other ranks, prepare, train, evaluate, save."""
    clock = StartClock(process_age())
    with collector_at_rest():
        from training import process_group
        from training.device import (
            device_name,
            in_bfloat16,
            keep_memory_whole,
            make_deterministic,
            memory_bytes,
            own_device,
            share_cpus,
        )
        from training.joining import Joining

        # The ranks, each on its device: they meet while the rest is imported.
        keep_memory_whole()
        if config.deterministic:
            make_deterministic()
        share_cpus(ranks)
        joining = Joining(ranks, lambda: own_device(config.device, ranks))

        from training import checkpoint, evaluate, flops, loop, metrics, random_state
        from training.assemble import assemble
        from training.batch_size import find_batch_size
        from training.divergence import NormWatch, outlier_text
        from training.interval import mtbf_seconds, parse_interval
        from training.loader import Loader
        from training.manifest import step_folder
        from training.model import load_tokenizer, quiet_libraries
        from training.preflight import preflight
        from training.run_log import RunLog
        from training.sample import sample_answer
        from training.sampler import RankBatches, SampleOrder
        from training.saver import NoSaver, Saver
        from training.start import find_start, start_text
        from training.summary import summarise, summary_text
        from training.tokens import PARTS, open_blocks, read_questions

        import_model_code()

    def say(text: str) -> None:
        if ranks.rank == 0:
            print(plain(text), flush=True)

    clock.ended("imports")
    device, store = joining.finish()
    clock.ended("group")
    bfloat16 = in_bfloat16(config.dtype, device)
    quiet_libraries()

    for line in preflight(ranks, device, store, run.root):
        say(line)
    clock.ended("preflight")
    heartbeat.enter("prepare")

    # Rank 0 alone looks for model, data and checkpoint, and tells the others where they are.
    found = process_group.rank_zero_first(
        lambda: find_start(
            config,
            run,
            ranks.world_size,
            say,
            lambda architecture: find_batch_size(config, architecture, bfloat16, device, say),
        )
    )
    config = replace(config, batch_size=found.batch_size)
    clock.ended("prepare")
    done, total = found.done, found.total
    heartbeat.resumed(done.step, saved=found.resume_from is not None)
    if found.finished is not None:
        say(f"{run.root} is already complete at step {total}; raise --max-steps or --num-epochs to train on")
        say(summary_text(found.finished))
        process_group.leave()
        return COMPLETE
    blocks, held_out = process_group.on_every_rank(
        lambda: [open_blocks(found.token_folder, part, config.seq_length) for part in PARTS]
    )

    # The model: every rank gets the weights of rank 0, or its slices of them, and drops out in its own way.
    mine = assemble(config, found, ranks, device, bfloat16)
    if config.compile:
        heartbeat.enter("compile")
    if mine.overlap is not None:
        config = replace(config, ddp_overlap="on" if mine.overlap else "off")
    hardware = device_name(device)
    precision = "bfloat16" if bfloat16 else "float32"
    hosts = process_group.gather(socket.gethostname())
    conditions = random_state.conditions(config, hosts, total, found.warmup, precision, mine.kernels, hardware)
    changes: list[str] = []
    if found.resume_from is not None:
        loop.settle_buckets(mine.trained, found.batch_size, config.seq_length, device)
        checkpoint.load_optimizer(found.resume_from, mine.optimizer)
    random_state.seed_all(loop.dropout_seed(config.seed, ranks.rank, done.step))
    if found.resume_from is not None:
        before = checkpoint.restore_rng(found.resume_from, ranks, device)
        changes = next(filter(None, process_group.gather(random_state.differences(before, conditions))), [])
        if device.type == "cuda" and not config.deterministic:
            changes.append(random_state.NO_FIXED_ORDER)

    # The data: which sequences this rank reads follows from the step alone.
    per_step = ranks.world_size * found.batch_size * config.gradient_accumulation_steps
    batches = RankBatches(
        order=SampleOrder(len(blocks), config.seed),
        rank=ranks.rank,
        world_size=ranks.world_size,
        batch_size=found.batch_size,
        accumulation=config.gradient_accumulation_steps,
        first_sample=done.samples,
        steps=total - done.step,
    )
    loader = Loader(blocks, batches, config.num_workers, device)
    my_held_out = evaluate.evaluation_batches(
        len(held_out), found.batch_size, ranks.rank, ranks.world_size, config.max_eval_samples
    )
    tokenizer = load_tokenizer(found.source) if ranks.rank == 0 else None

    # Rank 0 writes the checkpoints, beside the training; the others wait for it only at the end.
    saver: Saver | NoSaver = NoSaver(mine.model, mine.optimizer, mine.sharded)
    if ranks.rank == 0:
        saver = Saver(
            run.checkpoints,
            found.incarnation,
            ranks.world_size,
            mine.model,
            tokenizer,
            mine.optimizer,
            device,
            keep=config.keep_checkpoints,
            interval=parse_interval(config.ckpt_freq),
            mtbf=mtbf_seconds(config.mtbf_hours, ranks.world_size),
            resumed_step=done.step if found.resume_from else None,
            passed_over=found.passed_over,
            say=say,
            on_saved=heartbeat.saved,
        )
    process_group.rank_zero_first(lambda: saver.check_room(len(held_out) > 0))

    def evaluate_held_out(step: int, until: StopRequest | None) -> tuple[bool, float | None]:
        """Whether it came to its end, rather than being cut short by a request to stop; and the loss."""
        try:
            with heartbeat.during("evaluate"):
                loss = evaluate.evaluate(mine.loss_of, held_out, my_held_out, device, until)
        except evaluate.CutShort:
            return False, None
        log.evaluation(step, loss)
        return True, loss

    def is_evaluated(step: int) -> bool:
        return step == total or (config.eval_freq > 0 and step % config.eval_freq == 0)

    def save(progress: checkpoint.Progress, held_out_loss: float | None, wait: bool) -> None:
        trained_until_now = heartbeat.seconds()["train"]
        with heartbeat.during("save"):
            states = process_group.gather({**random_state.capture(device), "conditions": conditions})
            saver.save(progress.step, progress.samples, states, held_out_loss, trained_until_now)
            if wait:
                process_group.rank_zero_first(saver.finish)

    # The steps.
    how = f" by {config.strategy}" if ranks.world_size > 1 else ""
    where = f"ranks: {ranks.world_size} on {hardware}{how}, launcher: {ranks.launcher}"
    say(start_text(config, run, found, where, mine.model.num_parameters(), len(blocks), len(held_out)))
    skipped, evaluated_before = process_group.rank_zero_first(
        lambda: metrics.before(run.metrics, done.step) if found.resume_from else (0, False)
    )
    plan = loop.LoopPlan(
        done=done.step,
        total=total,
        accumulation=config.gradient_accumulation_steps,
        peak_lr=config.lr,
        lr_scheduler=config.lr_scheduler,
        warmup=found.warmup,
        max_grad_norm=config.max_grad_norm,
        max_skipped=config.max_skipped_steps,
        skipped=skipped,
        log_freq=config.log_freq,
    )
    norms = NormWatch(found.warmup)
    step_tokens = per_step * config.seq_length
    token_flops = flops.model_flops_per_token(mine.model, config.seq_length)
    trackers: Trackers | None = None
    report: LiveReport | None = None
    if ranks.rank == 0:
        if (report_seconds := interval_seconds(config.report_interval)) is not None:
            report = LiveReport(run.root, report_seconds)
        tracked = Tracked(run.trackers, run.root.absolute().name, config.to_json(), done.step)
        trackers = Trackers(config.report_to, tracked)
    with RunLog(run, done.step, total, config.log_freq, ranks, trackers, report) as log:
        if found.resume_from is not None:
            log.event(*metrics.resumed_event(done.step, changes))
        if process_group.any_rank(stop.requested, device):
            log.line(f"stopped at step {done.step}/{total} on {stop.by}, before a new step; run the same command again")
            process_group.leave()
            return SAVED_FOR_REQUEUE
        if done.step and is_evaluated(done.step) and not evaluated_before:
            # The attempt before was asked to stop in the middle of it.
            evaluate_held_out(done.step, None)
        clock.ended("model")
        heartbeat.enter("compile" if config.compile else "train")
        steps = loop.train_steps(
            mine.trained, mine.optimizer, loader, plan, stop, device, heartbeat, saver.due, mine.passes
        )
        for result in steps:
            clock.ended("first step")
            heartbeat.enter("train")
            now = checkpoint.Progress(result.step, done.samples + (result.step - done.step) * per_step)
            mfu = flops.utilisation(step_tokens / result.seconds, token_flops, hardware, ranks.world_size)
            log.step(metrics.step_row(result, now.samples / len(blocks), step_tokens, mfu, memory_bytes(device)))
            log.rank_times(result.rank_times)
            if result.skipped is not None:
                log.event(result.skipped.row(), f"warning: {result.skipped}; the weights were not updated, going on")
            # Before a save begins: this step was made without it.
            log.checkpoints(saver.step_made(result.seconds))
            if (outlier := norms.outlier(result.step, result.grad_norm)) is not None:
                log.event(outlier, outlier_text(outlier))
            last = result.step == total
            # A request to stop may have few seconds: save first, and leave an evaluation to the next attempt.
            evaluated, held_out_loss = not is_evaluated(result.step), None
            if not evaluated and not result.stop:
                evaluated, held_out_loss = evaluate_held_out(result.step, stop)
            stopping = result.stop or not evaluated
            if last or stopping or result.save:
                save(now, held_out_loss, wait=last or stopping)
                log.checkpoints(saver.reports())
            if stopping and not last:
                log.line(f"saved step {result.step}/{total} on {stop.by}; the same command trains on from there")
                process_group.leave()
                return SAVED_FOR_REQUEUE
            if not evaluated:
                evaluate_held_out(result.step, None)

    # What came out.
    heartbeat.enter("evaluate")
    questions = read_questions(found.token_folder)[:SAMPLES]
    samples = [sample_answer(mine.model, tokenizer, each, config.seq_length, device) for each in questions]

    def finish() -> None:
        epochs = (done.samples + (total - done.step) * per_step) / len(blocks)
        saved = step_folder(run.checkpoints, total)
        spent = heartbeat.seconds()
        age = sum(spent.values())
        summary = summarise(run, saved, epochs, ranks.world_size, hardware, spent["train"], age, clock.seconds, samples)
        write_json(run.summary, summary)
        print(summary_text(summary), flush=True)

    process_group.rank_zero_first(finish)
    process_group.leave()
    for line in report.finish() if report is not None else []:
        say(line)
    return COMPLETE


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
