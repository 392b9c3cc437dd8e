"""What a trained model writes after a prompt.

    python -m training.generate outputs/a "Once upon a time" --max-new-tokens 100
    python -m training.generate a --instruction "Name the opposite of up."
    python -m training.generate a --do-sample --top-p 0.9 --num-return-sequences 3 --prompts-file prompts.txt --json

Prompts are the arguments, the lines of --prompts-file, or the lines of the standard input. Answers alone go to the
standard output, everything else to the standard error. Exit status: 0, or 64 where the request is wrong.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from training.command import run_command, say
from training.config import TrainConfig, check_at_least, parse_options
from training.errors import InputError
from training.prompt import RESPONSE, alpaca_prompt
from training.terminal import plain_on_a_terminal

if TYPE_CHECKING:
    from training.trained import Trained

PROG = "python -m training.generate"


@dataclass(frozen=True)
class GenerateOptions:
    """Continue prompts with a trained model. Without prompts: each line of the standard input is one.

    python -m training.generate a --instruction "What is 4 plus 5?"

    python -m training.generate a --do-sample --top-p 0.9 --prompts-file prompts.txt
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A run's directory, the name of an experiment below --output-dir, a checkpoint's folder, or any folder that
    from_pretrained loads, such as an export."""

    prompts: Annotated[Positional[tuple[str, ...]], arg(metavar="PROMPT")] = ()
    """Texts to go on from."""

    prompts_file: Annotated[Path | None, arg(metavar="FILE")] = None
    """A text file with a prompt on each line, instead."""

    instruction: bool = False
    """Put each prompt into the alpaca prompt as its instruction, as the columns of such data are trained on. Without
    it a prompt is taken as it is."""

    input: Annotated[str | None, arg(metavar="TEXT")] = None
    """With --instruction: the input that goes with it."""

    checkpoint: Annotated[str | None, arg(metavar="STEP|best|last")] = None
    """Which checkpoint of a run: a step, best (the lowest held-out loss), or last, which is also taken without this
    option."""

    max_new_tokens: Annotated[int, arg(metavar="N")] = 64
    """Tokens of an answer, at most; it ends before with an end-of-text token."""

    do_sample: bool = False
    """Draw each token by its probability. Without it the likeliest is taken, but --temperature, --top-k, --top-p and
    --num-return-sequences above 1 sample too."""

    temperature: Annotated[float | None, arg(metavar="T")] = None
    """Below 1: likely tokens become likelier; above 1: less so. Without it 1."""

    top_k: Annotated[int | None, arg(metavar="K")] = None
    """Draw only from the K likeliest tokens. Without it from all."""

    top_p: Annotated[float | None, arg(metavar="P")] = None
    """Draw only from the likeliest tokens that have this probability together. Without it from all."""

    num_return_sequences: Annotated[int, arg(metavar="N")] = 1
    """Answers for each prompt."""

    seed: Annotated[int, arg(metavar="N")] = 0
    """Of the drawing: anew for each prompt, so that its answers do not depend on the prompts before it."""

    json: bool = False
    """One JSON object for each answer and line: prompt, answer, tokens, and finished, whether it ended by itself."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As for the trainer."""

    output_dir: Annotated[Path, arg(metavar="DIR")] = TrainConfig.output_dir
    """Where the directories of experiments lie."""

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        drawn = (self.temperature, self.top_k, self.top_p)
        return self.do_sample or any(value is not None for value in drawn) or self.num_return_sequences > 1


@dataclass(frozen=True)
class Answer:
    """One continuation."""

    prompt: str
    """As the model was shown it."""
    answer: str
    tokens: int
    """Of the answer, the end-of-text token not counted."""
    finished: bool
    """It ended with an end-of-text token."""


def main(argv: Sequence[str]) -> int:
    """Answer the prompts of this command line; the process's exit status."""

    def work() -> None:
        options = parse_options(argv, PROG, GenerateOptions)
        check_options(options)
        try:
            generate(options)
        except BrokenPipeError:
            # `| head` has what it wanted. The interpreter would try to write the rest once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return run_command(work)


def check_options(options: GenerateOptions) -> None:
    """Refuse what cannot be carried out.

    Raises:
        InputError: names the option, its value and what is allowed.
    """
    check_at_least(options, {"max_new_tokens": 1, "top_k": 1, "num_return_sequences": 1, "seed": 0})
    if options.seed >= 2**63:
        raise InputError(f"--seed {options.seed}: below 2**63 is wanted")
    if options.temperature is not None and not 0 < options.temperature < float("inf"):
        raise InputError(
            f"--temperature {options.temperature}: a number above 0 is wanted; for the likeliest tokens leave it out"
        )
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise InputError(f"--top-p {options.top_p}: above 0 and at most 1 is wanted")
    if options.input is not None and not options.instruction:
        raise InputError("--input goes with an instruction: give --instruction too")
    if options.prompts and options.prompts_file is not None:
        raise InputError("prompts were given both as arguments and by --prompts-file: give one of the two")


def generate(options: GenerateOptions) -> None:
    """Print the answers.

    Raises:
        InputError: there is no such model, it cannot be loaded, or the prompts cannot be read.
    """
    from training.trained import find_trained, load_for_use

    trained = find_trained(options.model, options.output_dir, options.checkpoint)
    prompts = read_prompts(options)
    if not options.instruction and _was_instructed(trained):
        say("this run was trained on instructions: --instruction puts a prompt into their form")

    import torch

    from training.device import own_device
    from training.model import quiet_libraries
    from training.ranks import RankInfo

    quiet_libraries()
    device = torch.device(own_device(options.device, RankInfo()))
    model, tokenizer = load_for_use(trained.folder, device)
    where = f"step {trained.manifest.step} of " if trained.manifest is not None else ""
    say(f"{where}{trained.folder} on {device}, {'sampling' if options.samples else 'the likeliest tokens'}")
    for prompt in prompts:
        shown = alpaca_prompt(prompt, options.input or "") if options.instruction else prompt
        for answer in answers(model, tokenizer, shown, options):
            text = json.dumps(vars(answer), ensure_ascii=False) if options.json else answer.answer
            print(plain_on_a_terminal(text, sys.stdout), flush=True)


def read_prompts(options: GenerateOptions) -> Iterator[str]:
    """The prompts, those of the standard input as they come.

    Raises:
        InputError: the file or the standard input cannot be read, the latter at the prompt that is no text.
    """
    if options.prompts:
        return iter(options.prompts)
    if options.prompts_file is not None:
        try:
            lines = options.prompts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise InputError(f"--prompts-file {options.prompts_file}: {why}; give a text file") from error
        return iter([line for line in lines if line.strip()])
    if sys.stdin.isatty():
        say("type a prompt, one on a line; Ctrl-D ends")
    return _lines_of_input()


def _lines_of_input() -> Iterator[str]:
    try:
        for line in sys.stdin:
            line.encode()  # Where the locale is C, Python has let any byte through.
            if line.strip():
                yield line.rstrip("\n")
    except UnicodeError as error:
        raise InputError("the standard input is no UTF-8 text; give a prompt on each line") from error


def answers(model: Any, tokenizer: Any, prompt: str, options: GenerateOptions) -> list[Answer]:
    """What the model writes after a prompt, by transformers' own `generate`. Where prompt and answer do not fit the
    model's positions together, the answer has at least half of them, and of the prompt the end is shown."""
    import torch

    from training.sample import prompt_ids

    text = model.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    whole = len(prompt_ids(tokenizer, prompt, 2**31))
    most, new_tokens = whole, options.max_new_tokens
    if positions is not None and whole + new_tokens > positions:
        new_tokens = min(new_tokens, max(positions - whole, positions // 2))
        most = positions - new_tokens
        say(
            f"the model takes {positions} tokens: of {whole} in the prompt the last {min(whole, most)} are "
            f"shown, and an answer has at most {new_tokens}"
        )
    given = torch.tensor([prompt_ids(tokenizer, prompt, most)], device=model.device)
    drawing: dict[str, Any] = {"do_sample": options.samples}
    if options.samples:
        drawing |= {
            "temperature": options.temperature or 1.0,
            "top_k": options.top_k or 0,
            "top_p": options.top_p or 1.0,
        }
    torch.manual_seed(options.seed)
    with torch.no_grad():
        written = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=new_tokens,
            num_return_sequences=options.num_return_sequences,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            **drawing,
        )
    return [_answer(tokenizer, prompt, row[given.shape[1] :].tolist()) for row in written]


def _answer(tokenizer: Any, prompt: str, tokens: list[int]) -> Answer:
    finished = tokenizer.eos_token_id in tokens
    if finished:
        # After its end stands what fills it up to the length of the longest.
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
    return Answer(prompt, tokenizer.decode(tokens), len(tokens), finished)


def _was_instructed(trained: "Trained") -> bool:
    """Whether the samples in the run's summary are in the alpaca prompt."""
    from training.summary import read_summary

    summary = read_summary(trained.run) if trained.run is not None else None
    samples = (summary or {}).get("samples") or []
    return any(RESPONSE in sample["prompt"] for sample in samples)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
