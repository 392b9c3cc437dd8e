"""The bench's options, and the sizes of GPT-2 that it knows.

Imports nothing heavy, so that `--help` and a wrong option need no torch.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from training.config import check_at_least
from training.errors import InputError

PROG = "python -m training.bench"
OURS = "ours"
LIMITS = "limits"
SUBJECTS = {
    OURS: "the step of training.train_llm",
    "ours-torch": "the same with --kernels torch --compile",
    "ours-eager": "the same with --kernels torch alone",
    "ours-alone": "the same on each rank by itself: its gradients are not exchanged",
    "nanogpt": "nanoGPT's step, with biases",
    "nanogpt-nobias": "nanoGPT's step without biases, which is its default",
    "trainer": "Hugging Face Trainer",
    "chapter": "a plain loop over a Hugging Face model, in bfloat16 weights on a GPU",
    LIMITS: "what the machine can do",
}
DEFAULT_SUBJECTS = [name for name in SUBJECTS if not name.startswith("ours-")]


@dataclass(frozen=True)
class ModelSize:
    """A GPT-2 by its numbers."""

    layers: int
    heads: int
    width: int
    vocabulary: int = 50257
    positions: int = 1024

    def architecture(self, dropout: float) -> dict[str, Any]:
        """Its Hugging Face configuration, with `model_type`."""
        return {
            "model_type": "gpt2",
            "vocab_size": self.vocabulary,
            "n_positions": self.positions,
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "resid_pdrop": dropout,
            "embd_pdrop": dropout,
            "attn_pdrop": dropout,
            "bos_token_id": self.vocabulary - 1,
            "eos_token_id": self.vocabulary - 1,
        }


SIZES = {
    "tiny": ModelSize(2, 2, 64, vocabulary=500, positions=256),
    "small": ModelSize(4, 4, 128, vocabulary=500, positions=256),
    "gpt2": ModelSize(12, 12, 768),
    "gpt2-medium": ModelSize(24, 16, 1024),
    "gpt2-large": ModelSize(36, 20, 1280),
    "gpt2-xl": ModelSize(48, 25, 1600),
}

# What an option is that nobody gave.
PRESETS: dict[str, dict[str, Any]] = {
    # Several minutes of compilation and one of steps on one H100.
    "gpu": {"model": "gpt2", "batch_sizes": [32], "seq_length": 1024, "steps_per_round": 10, "compile": True},
    # Without compilation, which would take longer than all the rest.
    "cpu": {"model": "small", "batch_sizes": [8], "seq_length": 128, "steps_per_round": 5, "compile": False},
}


@dataclass(frozen=True)
class BenchOptions:
    """What is compared, and how. The fields that a preset fills are None until `resolved`."""

    preset: str | None
    model: str | None
    batch_sizes: list[int] | None
    seq_length: int | None
    steps_per_round: int | None
    compile: bool | None
    rounds: int
    subjects: list[str]
    dropout: float
    seconds_limit: float
    start: int
    device: Literal["auto", "cuda", "cpu"]
    seed: int
    json: Path | None

    def resolved(self, gpu: bool) -> "Bench":
        """With the preset's values where none were given.

        Raises:
            InputError: the sequence is longer than the model's positions.
        """
        preset = self.preset or ("gpu" if gpu else "cpu")
        values = {
            name: value if (value := getattr(self, name)) is not None else default
            for name, default in PRESETS[preset].items()
        }
        size = SIZES[values["model"]]
        if values["seq_length"] > size.positions:
            raise InputError(
                f"--seq-length {values['seq_length']}: {values['model']} takes at most {size.positions}; give that"
            )
        given = {name: value for name, value in vars(self).items() if name != "device"}
        return Bench(**given | values | {"preset": preset, "size": size})


@dataclass(frozen=True)
class Bench:
    """The options of a bench, complete."""

    preset: str
    model: str
    size: ModelSize
    batch_sizes: list[int]
    seq_length: int
    steps_per_round: int
    compile: bool
    rounds: int
    subjects: list[str]
    dropout: float
    seconds_limit: float
    start: int
    seed: int
    json: Path | None

    @property
    def trained(self) -> list[str]:
        """The subjects that train."""
        return [name for name in self.subjects if name != LIMITS]

    def to_json(self) -> dict[str, Any]:
        """By field name, without the path."""
        return {name: value for name, value in asdict(self).items() if name != "json"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{PROG} --help`")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    subjects = "; ".join(f"{name}: {meaning}" for name, meaning in SUBJECTS.items())
    made = _Parser(
        prog=PROG,
        description="Compare the training step with others, and with the machine's limits, in one process.",
        epilog="Under `python -m cluster.launch -- python -m training.bench` every subject trains with DDP.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--subjects", nargs="+", choices=list(SUBJECTS), default=DEFAULT_SUBJECTS, metavar="NAME", help=subjects)
    add("--preset", choices=list(PRESETS), help="what the options below are by default; gpu where there is one")
    add("--model", choices=list(SIZES), help="a size of GPT-2, randomly initialised (gpu: gpt2, cpu: small)")
    add("--batch-sizes", nargs="+", type=int, metavar="N", help="sequences per rank and step (gpu: 32, cpu: 8)")
    add("--seq-length", type=int, metavar="TOKENS", help="tokens per sequence (gpu: 1024, cpu: 128)")
    add("--steps-per-round", type=int, metavar="N", help="timed steps of one subject in a round (gpu: 10, cpu: 5)")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="whether the others, and ours-torch, compile their model (gpu: on, cpu: off)",
    )
    add("--rounds", type=int, default=5, metavar="N", help="rounds; in each, every subject has its turn (%(default)s)")
    add("--dropout", type=float, default=0.0, metavar="P", help="of every subject (%(default)s)")
    add(
        "--seconds-limit",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="no subject is begun that would not fit, and rounds end early (%(default)g)",
    )
    add(
        "--start",
        type=int,
        default=0,
        metavar="N",
        help="also measure every subject's first step in N pairs of new processes, the first of each pair with empty "
        "compile caches (%(default)s)",
    )
    add("--device", choices=["auto", "cuda", "cpu"], default="auto", help="as in training.train_llm (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of weights and tokens (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write all figures there, after each new one")
    return made


def options_from_argv(argv: Sequence[str]) -> BenchOptions:
    """The options of a command line; `--help` prints them and raises SystemExit(0).

    Raises:
        InputError: an unknown option, or a value of the wrong kind or out of range.
    """
    options = BenchOptions(**vars(parser().parse_args(argv)))
    check_at_least(options, {"rounds": 1, "steps_per_round": 1, "seq_length": 2, "start": 0, "seed": 0})
    for size in options.batch_sizes or []:
        if size < 1:
            raise InputError(f"--batch-sizes {size}: at least 1 is wanted")
    if not 0 <= options.dropout < 1:
        raise InputError(f"--dropout {options.dropout}: at least 0 and below 1 is wanted")
    if not options.seconds_limit > 0:
        raise InputError(f"--seconds-limit {options.seconds_limit}: a number above 0 is wanted")
    return options
