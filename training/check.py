"""Check training requests without training: the same arguments as `training.train_llm`, exit status 0 or 64.

    python -m training.check --ranks 16 --experiment-name a --dataset-name data.json
    python -m training.check --ranks 16 -e a --lr 1e-4 -- -e b --lr 3e-4             two requests

Runs where no GPU and no other rank is, such as a login node before a job is queued. Nothing is written but
the hub's own cache. What only the compute node can know (its GPUs, what its network reaches) is not looked
at."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from training.command import run_command
from training.config import TrainConfig, config_from_argv, read_toml
from training.errors import InputError
from training.live_report import interval_seconds
from training.run_directory import check_same_run, check_writable, run_directory
from training.trackers import check_installed


def main(argv: Sequence[str]) -> int:
    """Check the requests; prints one line and returns 64 at the first that cannot be carried out."""

    def work() -> None:
        ranks, rest = take_ranks(argv)
        if rest[:1] == ["--config"] and rest[1:]:
            read_toml(Path(rest[1]))  # before the rest, which may repeat its keys: they are refused by its name
        enough: set[tuple[object, ...]] = set()
        for config in [config_from_argv(request) for request in split_requests(rest)]:
            check(config, ranks, enough)

    return run_command(work)


def take_ranks(argv: Sequence[str]) -> tuple[int | None, list[str]]:
    """The number after a leading `--ranks`, and the arguments of training.

    Raises:
        InputError: no number of at least 1 follows.
    """
    if not argv or argv[0] != "--ranks":
        return None, list(argv)
    if len(argv) < 2 or not argv[1].isdigit() or int(argv[1]) < 1:
        raise InputError(f"--ranks {argv[1] if len(argv) > 1 else ''}: a number of at least 1 is wanted")
    return int(argv[1]), list(argv[2:])


def split_requests(argv: Sequence[str]) -> list[list[str]]:
    """The requests between the `--`."""
    requests: list[list[str]] = [[]]
    for argument in argv:
        if argument == "--":
            requests.append([])
        else:
            requests[-1].append(argument)
    return requests


def check(config: TrainConfig, ranks: int | None, enough: set[tuple[object, ...]]) -> None:
    """Everything about a request that can be known before it runs.

    Args:
        config: the request.
        ranks: how many will train; None does not check that the data is enough for them.
        enough: what has been counted already, for requests on the same data; is added to.

    Raises:
        InputError: the first thing that is wrong.
    """
    run = run_directory(config, os.environ)
    check_writable(run)
    check_installed(config.report_to)
    interval_seconds(config.report_interval)
    if config.max_steps is not None:
        from training.schedule import warmup_steps

        warmup_steps(config.warmup_steps, config.max_steps)

    from training.documents import hub_revision, is_hub_name, load_corpus
    from training.model import find_model, load_tokenizer, quiet_libraries

    quiet_libraries()
    source = find_model(config, weights=False)
    check_same_run(run, config, source.architecture)
    if is_hub_name(config.dataset_name) and hub_revision(config.dataset_name) is not None:
        # It is there; to know more would be to download it, which is the job's work.
        return
    corpus = load_corpus(config)
    check_same_run(run, config, source.architecture, corpus.fingerprint)
    if ranks is not None and config.batch_size != "auto":
        from training.tokenise import count_tokens
        from training.tokens import check_enough

        batch, accumulation = config.batch_size, config.gradient_accumulation_steps
        asked = (corpus.fingerprint, config.model_name, config.seq_length, batch, accumulation)
        if asked in enough:
            return
        wanted = config.seq_length * ranks * batch * accumulation
        tokens, documents = count_tokens(corpus, load_tokenizer(source), wanted)
        check_enough(tokens, documents, config.seq_length, ranks, batch, accumulation)
        enough.add(asked)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
