"""What rank 0 finds before the training starts: the model, the data as tokens, and the checkpoint to go on
from.

Everything that can be wrong with the request, but for the model's own code and kernels (`training.assemble`), is found
here before anything is written.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.checkpoint import Newest, Progress, newest_checkpoint
from training.config import TrainConfig
from training.errors import InputError
from training.incarnation import claim_incarnation, settle_claim
from training.live_report import interval_seconds
from training.model import ModelSource, find_model, load_tokenizer
from training.prepare import DataTokens, data_tokens
from training.publish import drop_unfinished
from training.run_directory import (
    RunDirectory,
    batch_size_before,
    changed_options,
    check_same_run,
    check_writable,
    make_run_directory,
    write_config,
)
from training.sampler import remaining_steps
from training.schedule import warmup_steps
from training.summary import read_summary
from training.tokenise import end_of_text
from training.tokens import check_enough
from training.trackers import check_installed


@dataclass(frozen=True)
class Start:
    """What all ranks need to know to start; small enough to be sent to each."""

    source: ModelSource
    token_folder: Path
    batch_size: int
    """Sequences per rank in one forward pass."""
    documents: int
    """Training documents."""
    end_of_text: int
    """The token that ends each."""
    done: Progress
    total: int
    """Optimizer steps of the whole run."""
    warmup: int
    """Optimizer steps of the warm-up."""
    resume_from: Path | None
    """The newest whole checkpoint."""
    passed_over: tuple[str, ...]
    """Names of newer ones that are broken or were overtaken."""
    incarnation: int
    """The number of this start of training; 0 where there is nothing left to train."""
    finished: dict[str, Any] | None
    """The summary, where there is nothing left to train."""

    @property
    def weights(self) -> Path | None:
        """The folder whose weights training starts from; None for random initialisation."""
        return self.resume_from or (self.source.folder if self.source.pretrained else None)


def find_start(
    config: TrainConfig,
    run: RunDirectory,
    world_size: int,
    say: Callable[[str], None],
    find_batch_size: Callable[[dict[str, Any]], int],
) -> Start:
    """Find or make everything a run needs. Called by rank 0 alone.

    Args:
        config, run: the run.
        world_size: ranks.
        say: told what the user should know.
        find_batch_size: for a model's architecture, where --batch-size is `auto` and no attempt before has found it.

    Raises:
        InputError: the request cannot be carried out; nothing was written then.
        StorageError: the checkpoints cannot be read now.
    """
    check_writable(run)
    check_installed(config.report_to)
    interval_seconds(config.report_interval)
    source = find_model(config)
    check_same_run(run, config, source.architecture)

    def check_content(fingerprint: str) -> None:
        check_same_run(run, config, source.architecture, fingerprint)

    tokenizer = load_tokenizer(source)
    batch_size: int | None = None
    if config.batch_size == "auto":
        batch_size = batch_size_before(run) or find_batch_size(source.architecture)
    with data_tokens(config, tokenizer, say, check_content) as tokens:
        if batch_size is not None:
            sequences = len(tokens.corpus.train) // config.seq_length
            batch_size = max(1, min(batch_size, sequences // (world_size * config.gradient_accumulation_steps)))
            config = replace(config, batch_size=batch_size)
        return _found(config, run, world_size, say, source, tokens, end_of_text(tokenizer))


def _found(
    config: TrainConfig,
    run: RunDirectory,
    world_size: int,
    say: Callable[[str], None],
    source: ModelSource,
    tokens: DataTokens,
    end_of_text: int,
) -> Start:
    corpus, batch_size = tokens.corpus, config.batch_size
    assert batch_size != "auto"
    sequences = len(corpus.train) // config.seq_length
    accumulation = config.gradient_accumulation_steps
    check_enough(len(corpus.train), corpus.documents, config.seq_length, world_size, batch_size, accumulation)
    newest = newest_checkpoint(run.checkpoints, say)
    per_step = world_size * batch_size * accumulation
    total, warmup = plan_steps(config, sequences, per_step, newest.done)

    summary = read_summary(run)
    finished = summary if summary is not None and summary["steps"] == newest.done.step == total else None
    changes = changed_options(run, config, world_size)
    if newest.folder is not None and finished is None and changes is not None:
        say(f"changed since the attempt before: {changes}")

    make_run_directory(run)
    tokens.publish()
    incarnation = 0
    if finished is None:
        write_config(run, config, source.architecture, tokens.fingerprint, world_size)
        newest, incarnation = claim_newest(run.checkpoints, newest, say)
        # The run is this start's own now, and no longer complete.
        run.summary.unlink(missing_ok=True)
        total, warmup = plan_steps(config, sequences, per_step, newest.done)
    return Start(
        source=source,
        token_folder=tokens.folder,
        batch_size=batch_size,
        documents=corpus.documents,
        end_of_text=end_of_text,
        done=newest.done,
        total=total,
        warmup=warmup,
        resume_from=newest.folder,
        passed_over=newest.passed_over,
        incarnation=incarnation,
        finished=finished,
    )


def claim_newest(checkpoints: Path, newest: Newest, say: Callable[[str], None]) -> tuple[Newest, int]:
    """Claim the next incarnation, to go on from this checkpoint; from here on no earlier start may save, and what it
    still saves after this step does not count.

    Until then an earlier start that is still alive may have saved a newer one and removed this one: then look again,
    and go on from that one. The claim overtakes nothing before it is sure which, so that a start which is killed here
    takes nothing along. Returns what to go on from, and the incarnation.
    """
    incarnation = claim_incarnation(checkpoints, None)
    # First, so that what an earlier start has just put aside is missing below.
    drop_unfinished(checkpoints, incarnation)
    while not newest.is_still_there():
        newest = newest_checkpoint(checkpoints, say)
    settle_claim(checkpoints, incarnation, newest.done.step)
    return newest, incarnation


def plan_steps(config: TrainConfig, sequences: int, per_step: int, done: Progress) -> tuple[int, int]:
    """Optimizer steps of the whole run, and of its warm-up.

    Args:
        config: asks for steps, or for epochs.
        sequences: in the training data.
        per_step: sequences of one step, over all ranks.
        done: what the checkpoint has.

    Raises:
        InputError: fewer than are done, or a warm-up that is longer.
    """
    check_not_fewer(config, sequences, done)
    total = done.step + remaining_steps(
        sequences, config.num_epochs, config.max_steps, done.step, done.samples, per_step
    )
    return total, warmup_steps(config.warmup_steps, total)


def check_not_fewer(config: TrainConfig, sequences: int, done: Progress) -> None:
    """Refuse a run that asks for less than is already done.

    Args:
        config: asks for steps, or for epochs.
        sequences: in the training data.
        done: what the checkpoint has.

    Raises:
        InputError: names both numbers.
    """
    way_out = "give at least that to go on from there, or choose another --experiment-name"
    if config.max_steps is not None:
        if config.max_steps < done.step:
            raise InputError(f"--max-steps {config.max_steps}, but {done.step} are done: {way_out}")
    # One step is made however few epochs are asked, so one step done is never too many.
    elif done.step > 1 and int(sequences * config.num_epochs) < done.samples:
        raise InputError(
            f"--num-epochs {config.num_epochs:g}, but {done.samples / sequences:.4g} are done "
            f"({done.step} steps): {way_out}"
        )


def start_text(
    config: TrainConfig, run: RunDirectory, found: Start, ranks: str, parameters: int, sequences: int, held_out: int
) -> str:
    """The lines that say what is about to be trained, from where, on what.

    Args:
        config, run, found: the run.
        ranks: how many, on what, started by whom.
        parameters: of the model.
        sequences: training sequences.
        held_out: sequences held out.
    """
    if found.resume_from is not None:
        start = f"resumed from {found.resume_from}"
    elif found.source.pretrained:
        start = "starting from its weights"
    else:
        start = "starting from random initialisation" + ("" if config.from_scratch else " (it has no weights)")
    tokens = found.batch_size * config.gradient_accumulation_steps * config.seq_length
    return (
        f"training {config.model_name} ({parameters / 1e6:.1f}M parameters), {start}\n"
        f"  data  {config.dataset_name}: {found.documents:,} documents, {sequences:,} sequences of {config.seq_length} "
        f"tokens, {held_out:,} held out\n"
        f"  plan  {ranks}, {found.total} steps, {tokens:,} tokens per rank and step\n"
        f"  in    {run.root}"
    )
