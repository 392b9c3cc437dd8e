"""Make a dataset's tokens ahead, so that no GPU waits for it: the same options as `training.train_llm`.

    python -m training.prepare --dataset-name data.jsonl --model-name openai-community/gpt2

Runs on a machine without GPUs, alone. The model is fetched into the hub's cache too. Training on the same output
directory then finds both. Exit status: 0 the tokens are there and every byte of them is proved, 64 the request is
wrong.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.command import run_command, say
from training.config import TrainConfig, config_from_argv
from training.errors import InputError

if TYPE_CHECKING:
    from training.tokens import TokenisedCorpus

PROG = "python -m training.prepare"
ABOUT = """Make a dataset's tokens ahead, so that no GPU waits for it: the same options as training.train_llm.

python -m training.prepare --dataset-name data.jsonl --model-name openai-community/gpt2"""


@dataclass(frozen=True)
class DataTokens:
    """The tokens of a request's data."""

    folder: Path
    """Where every rank finds them, once they are published."""
    fingerprint: str
    """Of the corpus."""
    corpus: "TokenisedCorpus"
    is_new: bool
    """They lie aside until they are published."""
    publish: Callable[[], None]
    """Put them in place, and let later starts find them at once."""


@contextmanager
def data_tokens(
    config: TrainConfig,
    tokenizer: Any,
    say: Callable[[str], None],
    check_content: Callable[[str], None] = lambda fingerprint: None,
    whole: bool = False,
) -> Iterator[DataTokens]:
    """The tokens of a request's data: found, or made aside; those that are not published by the end are discarded.

    Args:
        config: the request.
        tokenizer: the model's.
        say: told what is wrong with a cache.
        check_content: given the corpus's fingerprint before anything is tokenised; raises where it does not fit.
        whole: compare every byte of tokens that are found.

    Raises:
        InputError: the data cannot be read, or the tokens not be written.
    """
    from training.documents import is_hub_name, load_corpus
    from training.source import remember_fingerprint, remembered_fingerprint, source_state
    from training.tokens import (
        CACHE,
        discard_tokens,
        missing_above,
        open_tokens,
        publish_tokens,
        read_tokens,
        stage_tokens,
        token_folder,
    )

    cache = config.output_dir / CACHE
    state = source_state(config.dataset_name)
    fingerprint = remembered_fingerprint(cache, config, state)
    looked, found = None, None
    if fingerprint is not None:
        check_content(fingerprint)
        looked = token_folder(fingerprint, tokenizer, config.output_dir)
        found = read_tokens(looked, say, whole)
    if found is not None and fingerprint is not None and looked is not None:
        yield DataTokens(looked, fingerprint, found, False, lambda: None)
        return

    corpus = load_corpus(config)
    check_content(corpus.fingerprint)
    folder = token_folder(corpus.fingerprint, tokenizer, config.output_dir)
    found = read_tokens(folder, say, whole) if folder != looked else None

    def remember() -> None:
        remember_fingerprint(cache, config, state, corpus.fingerprint)

    if found is not None:
        yield DataTokens(folder, corpus.fingerprint, found, False, remember)
        return
    made = missing_above(folder)
    aside = stage_tokens(folder, corpus, tokenizer)
    try:
        if not is_hub_name(config.dataset_name) and source_state(config.dataset_name) != state:
            raise InputError(
                f"--dataset-name {config.dataset_name} was changed while it was read; run the same command again"
            )

        def publish() -> None:
            publish_tokens(aside, folder)
            remember()

        yield DataTokens(folder, corpus.fingerprint, open_tokens(aside), True, publish)
    finally:
        discard_tokens(aside, made)


def main(argv: Sequence[str]) -> int:
    """Find or make the tokens of this request; the process's exit status."""
    return run_command(lambda: print(prepare(config_from_argv(argv, PROG, ABOUT)), flush=True), "nothing was kept")


def prepare(config: TrainConfig) -> str:
    """Find or make the tokens; a line that says which, where, and how many.

    Raises:
        InputError: the request cannot be carried out.
    """
    from training.model import find_model, load_tokenizer, quiet_libraries

    quiet_libraries()
    tokenizer = load_tokenizer(find_model(config))
    begun = time.perf_counter()
    with data_tokens(config, tokenizer, say, whole=True) as found:
        found.publish()
        tokens = found.corpus
        what = "made" if found.is_new else "found, every byte of it proved"
        size = (tokens.train.nbytes + tokens.held_out.nbytes) / 1e6
        return (
            f"{found.folder}\n"
            f"  {tokens.documents:,} documents, {len(tokens.train):,} tokens, {len(tokens.held_out):,} held out, "
            f"{size:,.1f} MB\n"
            f"  {what}, in {time.perf_counter() - begun:.2f} s"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
