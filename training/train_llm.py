"""Train a causal language model with DDP: the whole run, top to bottom.

    mpirun -np 4 -x MASTER_ADDR=<first host> -x MASTER_PORT=5001 python -m training.train_llm
    --experiment-name a

Works the same under mpirun of Open MPI, mpiexec of MPICH, torchrun, srun, and alone. Exit status: 0
complete, 64 the request is wrong (one line says how), 75 saved after SIGUSR1 and to be run again; anything
else is a fault with a traceback.
"""

import os
import sys
import time
from collections.abc import Sequence

from training.config import TrainConfig, config_from_argv
from training.errors import COMPLETE, INPUT_ERROR, SAVED_FOR_REQUEUE, InputError
from training.ranks import RankInfo, check_rendezvous
from training.run_directory import RunDirectory, run_directory, write_json
from training.stop import StopRequest
from training.teardown import exit_with, keep_until_the_end

PROG = "python -m training.train_llm"
SAMPLES = 3


def main(argv: Sequence[str]) -> int:
    """Carry out the training that the command line and the environment describe; the process's exit
    status."""
    stop = StopRequest()
    ranks = RankInfo("single")
    try:
        ranks = RankInfo.from_env(os.environ)
        config = config_from_argv(argv, PROG)
        run = run_directory(config, os.environ)
        check_rendezvous(ranks, os.environ)
    except InputError as error:
        return refuse(error, ranks)

    # Imported here and in `train`, because a wrong option should not have to wait seconds for torch.
    from torch.distributed.elastic.multiprocessing.errors import record

    def train_or_refuse() -> int:
        try:
            return train(config, run, ranks, stop)
        except InputError as error:
            return refuse(error, ranks)

    return record(train_or_refuse)() or COMPLETE


def refuse(error: InputError, ranks: RankInfo) -> int:
    """Say once what is wrong with the request."""
    if ranks.rank == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        # mpirun ends all ranks when the first one fails, and rank 0 must have spoken by then.
        time.sleep(2.0)
    return INPUT_ERROR


def train(config: TrainConfig, run: RunDirectory, ranks: RankInfo, stop: StopRequest) -> int:
    """Join the other ranks, prepare, train, evaluate, save."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from training import checkpoint, evaluate, flops, loop, metrics, process_group
    from training.attention import use_packed_causal_attention
    from training.device import choose_device, device_name, threads_per_rank
    from training.interval import mtbf_seconds, parse_interval
    from training.model import build_model, load_tokenizer, quiet_libraries
    from training.optimizer import make_optimizer
    from training.prepare import prepare, start_text
    from training.publish import step_folder
    from training.run_log import RunLog
    from training.sample import sample_answer
    from training.sampler import RankBatches, SampleOrder
    from training.saver import Saver
    from training.summary import summarise, summary_text
    from training.tokens import open_blocks, read_questions

    def say(text: str) -> None:
        if ranks.rank == 0:
            print(text, flush=True)

    # The ranks, each on its device.
    process_group.set_threads(threads_per_rank(len(os.sched_getaffinity(0)), ranks))
    device = process_group.join(
        ranks, lambda: choose_device(config.device, ranks, torch.cuda.device_count(), os.environ)
    )
    bfloat16 = config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda")
    quiet_libraries()

    # Rank 0 alone looks for model, data and checkpoint, and tells the others where they are.
    found = process_group.rank_zero_first(lambda: prepare(config, run, ranks.world_size, say))
    done, total = found.done, found.total
    if found.finished is not None:
        say(f"{run.root} is already complete at step {total}; raise --max-steps or --num-epochs to train on")
        say(summary_text(found.finished))
        process_group.leave()
        return COMPLETE
    blocks, held_out = process_group.on_every_rank(
        lambda: [open_blocks(found.token_folder, part, config.seq_length) for part in ("train", "held_out")]
    )

    # The model: DDP gives every rank the weights of rank 0, and each rank drops out in its own way.
    torch.manual_seed(config.seed)
    weights = found.weights if ranks.rank == 0 else None
    model = process_group.on_every_rank(lambda: build_model(found.source.architecture, weights)).to(device)
    if config.compile:
        use_packed_causal_attention(model)
        model.compile()
    trained = model
    if ranks.world_size > 1:
        devices = [device] if device.type == "cuda" else None
        trained = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        keep_until_the_end(trained)
    optimizer = make_optimizer(model, config.weight_decay, device)
    torch.manual_seed(loop.dropout_seed(config.seed, ranks.rank, done.step))
    if found.resume_from is not None:
        loop.settle_buckets(trained, config.batch_size, config.seq_length, bfloat16, device)
        checkpoint.load_optimizer(found.resume_from, optimizer)
        checkpoint.restore_rng(found.resume_from, ranks, device)

    # The data: which sequences this rank reads follows from the step alone.
    per_step = ranks.world_size * config.batch_size * config.gradient_accumulation_steps
    batches = RankBatches(
        order=SampleOrder(len(blocks), config.seed),
        rank=ranks.rank,
        world_size=ranks.world_size,
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        first_sample=done.samples,
        steps=total - done.step,
    )
    loader = loop.make_loader(blocks, batches, config.num_workers, device)
    my_held_out = evaluate.evaluation_batches(
        len(held_out), config.batch_size, ranks.rank, ranks.world_size, config.max_eval_samples
    )
    tokenizer = load_tokenizer(found.source) if ranks.rank == 0 else None

    # Rank 0 writes the checkpoints, beside the training; the others wait for it only at the end.
    saver: Saver | None = None
    if ranks.rank == 0:
        saver = Saver(
            run.checkpoints,
            found.incarnation,
            ranks.world_size,
            model,
            tokenizer,
            optimizer,
            device,
            keep=config.keep_checkpoints,
            interval=parse_interval(config.ckpt_freq),
            mtbf=mtbf_seconds(config.mtbf_hours, ranks.world_size),
            resumed_step=done.step if found.resume_from else None,
            passed_over=found.passed_over,
            say=say,
        )

    def check_room() -> None:
        if saver is not None:
            saver.check_room(len(held_out) > 0)

    def finish_saving() -> None:
        if saver is not None:
            saver.finish()

    process_group.rank_zero_first(check_room)

    def save(progress: checkpoint.Progress, held_out_loss: float | None, wait: bool) -> None:
        states = process_group.gather(checkpoint.rng_state(device))
        if saver is not None:
            saver.save(progress.step, progress.samples, states, held_out_loss, seconds)
        if wait:
            process_group.rank_zero_first(finish_saving)

    # The steps.
    hardware = device_name(device)
    where = f"ranks: {ranks.world_size} on {hardware}, launcher: {ranks.launcher}"
    say(start_text(config, run, found, where, model.num_parameters(), len(blocks), len(held_out)))
    plan = loop.LoopPlan(
        done=done.step,
        total=total,
        accumulation=config.gradient_accumulation_steps,
        peak_lr=config.lr,
        lr_scheduler=config.lr_scheduler,
        warmup=found.warmup,
        max_grad_norm=config.max_grad_norm,
        bfloat16=bfloat16,
    )
    step_tokens = per_step * config.seq_length
    token_flops = flops.model_flops_per_token(model, config.seq_length)
    seconds = 0.0
    save_is_due = saver.due if saver is not None else lambda step: False
    with RunLog(run, done.step, total, config.log_freq, ranks) as log:
        for result in loop.train_steps(trained, optimizer, loader, plan, stop, device, save_is_due):
            seconds += result.seconds
            now = checkpoint.Progress(result.step, done.samples + (result.step - done.step) * per_step)
            mfu = flops.utilisation(step_tokens / result.seconds, token_flops, hardware, ranks.world_size)
            log.step(
                metrics.step_row(result, now.samples / len(blocks), step_tokens, mfu, metrics.memory_bytes(device))
            )
            last = result.step == total
            held_out_loss = None
            if last or (config.eval_freq and result.step % config.eval_freq == 0):
                held_out_loss = evaluate.evaluate(model, held_out, my_held_out, bfloat16, device)
                log.evaluation(result.step, held_out_loss)
            if last or result.stop or result.save:
                save(now, held_out_loss, wait=last or result.stop)
            for report in saver.step_made(result.seconds) if saver is not None else ():
                log.checkpoint(report)
            if result.stop and not last:
                log.line(f"saved step {result.step}/{total} on SIGUSR1; the same command trains on from there")
                process_group.leave()
                return SAVED_FOR_REQUEUE

    # What came out.
    def finish() -> None:
        questions = read_questions(found.token_folder)[:SAMPLES]
        samples = [sample_answer(model, tokenizer, question, config.seq_length, device) for question in questions]
        epochs = (done.samples + (total - done.step) * per_step) / len(blocks)
        saved = step_folder(run.checkpoints, total)
        summary = summarise(run, saved, epochs, ranks.world_size, hardware, seconds, samples)
        write_json(run.summary, summary)
        print(summary_text(summary), flush=True)

    process_group.rank_zero_first(finish)
    process_group.leave()
    return COMPLETE


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
