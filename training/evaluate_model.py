"""The perplexity of a trained model on data that the trainer can read.

    python -m training.evaluate_model outputs/a
    python -m training.evaluate_model outputs/a --checkpoint best --dataset-name test.jsonl --json
    python -m training.evaluate_model outputs/a/export --dataset-name tatsu-lab/alpaca --split train

Through the same tokens, sequences and loss as the training: for the data of its own run it is the held-out loss that
was printed for that step. Exit status: 0, or 64 where the request is wrong.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from training.command import run_command, say
from training.config import TrainConfig, check_values, parse_options
from training.errors import InputError

if TYPE_CHECKING:
    from training.tokens import Blocks
    from training.trained import Trained

PROG = "python -m training.evaluate_model"
AS_TRAINED = (
    *("dataset_name", "dataset_subset", "text_column", "streaming", "max_train_tokens", "validation_split_percentage"),
    *("seq_length", "packing", "batch_size", "max_eval_samples", "dtype", "kernels"),
)
"""Options that are, where they are not given, those of the model's run."""


@dataclass(frozen=True)
class EvaluateOptions:
    """The loss and perplexity of a trained model. What is not given is as in the model's run, or as the trainer's own
    default where no run is known.

    python -m training.evaluate_model a

    python -m training.evaluate_model a --dataset-name data.jsonl
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A run's directory, the name of an experiment below --output-dir, a checkpoint's folder, or any folder that
    from_pretrained loads, such as an export."""

    checkpoint: Annotated[str | None, arg(metavar="STEP|best|last")] = None
    """Which checkpoint of a run: a step, best (the lowest held-out loss), or last, which is also taken without this
    option."""

    dataset_name: Annotated[str | None, arg(aliases=["-d"], metavar="NAME|PATH")] = None
    """Other data than that of the run, as the trainer takes it."""

    split: Annotated[str | None, arg(metavar="held_out|train|NAME")] = None
    """held_out: what the training holds out; train: what it trains on; else a split of that name, of a hub or saved
    dataset or of the files in a folder. Without it held_out; of a --dataset-name its own validation or test split, or
    all where it has none."""

    dataset_subset: Annotated[str | None, arg(metavar="NAME")] = None
    """As for the trainer."""

    text_column: Annotated[str | None, arg(metavar="COLUMN")] = None
    """As for the trainer."""

    validation_split_percentage: Annotated[float | None, arg(metavar="PERCENT")] = None
    """As for the trainer."""

    seq_length: Annotated[int | None, arg(aliases=["-s"], metavar="TOKENS")] = None
    """Tokens per sequence: the longer, the more of what stands before it a token sees."""

    packing: Literal["concatenated", "varlen"] | None = None
    """As for the trainer."""

    batch_size: Annotated[int | None, arg(aliases=["-b"], metavar="N")] = None
    """Sequences in one forward pass."""

    max_eval_samples: Annotated[int | None, arg(metavar="N")] = None
    """Sequences, at most: the first ones. Without it as many as the training evaluates; of a --dataset-name all."""

    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    """As for the trainer."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As for the trainer."""

    output_dir: Annotated[Path, arg(metavar="DIR")] = TrainConfig.output_dir
    """Where the directories of experiments and the cache of tokens lie."""

    json: bool = False
    """Print one JSON object instead of lines."""


def main(argv: Sequence[str]) -> int:
    """Evaluate as the command line says; the process's exit status."""

    def work() -> None:
        options = parse_options(argv, PROG, EvaluateOptions)
        check_options(options)
        result = evaluate_model(options)
        print(json.dumps(result, ensure_ascii=False) if options.json else result_text(result), flush=True)

    return run_command(work)


def check_options(options: EvaluateOptions) -> None:
    """Refuse values that no evaluation can use.

    Raises:
        InputError: names the option, its value and what is allowed.
    """
    given = {name: value for name in AS_TRAINED if (value := getattr(options, name, None)) is not None}
    check_values(replace(TrainConfig(), **given))
    if options.split is not None and not options.split.strip():
        raise InputError("--split is empty: held_out, train or the name of a split is wanted")


def request_of(options: EvaluateOptions, trained: "Trained") -> TrainConfig:
    """The trainer's configuration of the data, sequences and precision that are asked for.

    Raises:
        InputError: neither the options nor a run say which data.
    """
    known = trained.options()
    config = replace(TrainConfig(), **{name: known[name] for name in AS_TRAINED if name in known})
    # A path that was given to the training was relative to where it ran; its run knows the whole of it.
    config = replace(config, dataset_name=trained.identity().get("--dataset-name") or config.dataset_name)
    if options.dataset_name is not None:
        default = TrainConfig()
        config = replace(
            config,
            dataset_subset=default.dataset_subset,
            text_column=default.text_column,
            streaming=False,
            max_train_tokens=None,
            max_eval_samples=2**62,
        )
    elif not known:
        raise InputError(f"{trained.folder} does not say which data it was trained on: give --dataset-name")
    given = {name: value for name in AS_TRAINED if (value := getattr(options, name, None)) is not None}
    if options.dataset_name is not None and options.split is None:
        # All of it, where nothing in it is held out.
        given.setdefault("validation_split_percentage", 0.0)
    config = replace(config, **given)
    return replace(config, output_dir=_cache_place(options, trained), device=options.device)


def _cache_place(options: EvaluateOptions, trained: "Trained") -> Path:
    """Where the tokens of the run lie, if they do, else --output-dir."""
    from training.tokens import CACHE

    beside = trained.run.root.absolute().parent if trained.run is not None else None
    return beside if beside is not None and (beside / CACHE).is_dir() else options.output_dir


def evaluate_model(options: EvaluateOptions) -> dict[str, Any]:
    """Loss, perplexity, and of what.

    Raises:
        InputError: the model or the data cannot be used.
    """
    from training.trained import find_trained, load_for_use

    trained = find_trained(options.model, options.output_dir, options.checkpoint)
    config = request_of(options, trained)

    import torch

    from training.device import device_name, in_bfloat16, own_device
    from training.evaluate import evaluate, evaluation_batches, perplexity
    from training.model import ModelSource, check_seq_length, quiet_libraries
    from training.packing import check_keeps_apart
    from training.ranks import RankInfo
    from training.token_loss import token_loss
    from training.tokenise import end_of_text
    from training.tokens import UnwritableError

    quiet_libraries()
    device = torch.device(own_device(options.device, RankInfo()))
    model, tokenizer = load_for_use(trained.folder, device)
    check_seq_length(config.seq_length, ModelSource(str(trained.folder), model.config.to_dict(), trained.folder, True))
    end = end_of_text(tokenizer) if config.packing == "varlen" else None
    if end is not None:
        check_keeps_apart(model)
    try:
        blocks, split = read_blocks(config, options.split, tokenizer)
    except UnwritableError:
        # The run lies where others write.
        blocks, split = read_blocks(replace(config, output_dir=options.output_dir), options.split, tokenizer)
    batch_size = config.batch_size
    assert batch_size != "auto"  # A run's config.json has the number that was found.
    batches = evaluation_batches(len(blocks), batch_size, 0, 1, config.max_eval_samples)
    if not batches:
        raise InputError(
            f"--dataset-name {config.dataset_name}: its split {split} has {len(blocks.tokens)} tokens, and a sequence "
            f"takes {config.seq_length}; lower --seq-length, or give another --split"
        )
    bfloat16 = in_bfloat16(config.dtype, device)
    kernels = "auto" if config.kernels == "fused" else config.kernels
    loss = evaluate(token_loss(model, kernels, bfloat16, False, False, device, end), blocks, batches, device)
    assert loss is not None
    sequences = sum(len(batch) for batch in batches)
    return {
        "model": str(trained.folder.absolute()),
        "step": trained.manifest.step if trained.manifest is not None else None,
        "dataset": config.dataset_name,
        "split": split,
        "loss": loss,
        "perplexity": perplexity(loss),
        "sequences": sequences,
        "seq_length": config.seq_length,
        "tokens": sequences * config.seq_length,
        "packing": config.packing,
        "dtype": "bfloat16" if bfloat16 else "float32",
        "device": device_name(device),
    }


def result_text(result: dict[str, Any]) -> str:
    """The result as lines."""
    return (
        f"{result['dataset']}, {result['split']}: loss {result['loss']:.4f}, perplexity {result['perplexity']:.2f}\n"
        f"  over {result['tokens']:,} tokens in {result['sequences']:,} sequences of {result['seq_length']}\n"
        f"  by {result['model']}"
    )


def read_blocks(config: TrainConfig, split: str | None, tokenizer: Any) -> tuple["Blocks", str]:
    """The sequences of a split, and its name; made into tokens where they are not yet.

    Raises:
        InputError: there is no such data, or it cannot be read.
    """
    from training.documents import load_split
    from training.prepare import data_tokens
    from training.tokens import HELD_OUT, TRAIN, open_blocks, publish_tokens, read_tokens, stage_tokens, token_folder

    if split not in (None, TRAIN, HELD_OUT):
        corpus = load_split(config, split)
        folder = token_folder(corpus.fingerprint, tokenizer, config.output_dir)
        if read_tokens(folder, say) is None:
            publish_tokens(stage_tokens(folder, corpus, tokenizer), folder)
        return open_blocks(folder, TRAIN, config.seq_length), split
    with data_tokens(config, tokenizer, say) as found:
        found.publish()
        if split is None:
            # Without a share that is held out, what there is of it is the dataset's own.
            nothing = config.validation_split_percentage == 0 and len(found.corpus.held_out) == 0
            split = TRAIN if nothing else HELD_OUT
        return open_blocks(found.folder, split, config.seq_length), split


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
