"""What the trained model answers to a few held-out questions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

NEW_TOKENS = 48


@dataclass(frozen=True)
class Sample:
    """A held-out prompt, what the model wrote after it, and what the data has there."""

    prompt: str
    answer: str
    expected: str


def alone(step: Callable[[], Any]) -> Any:
    """For one rank that needs no other: the result of `step`."""
    return step()


@torch.no_grad()
def sample_answer(
    model: Any,
    tokenizer: Any,
    question: tuple[str, str],
    positions: int,
    device: torch.device,
    together: Callable[[Callable[[], Any]], Any] = alone,
) -> Sample:
    """The likeliest continuation, token by token, until end-of-text or 48 tokens.

    Args:
        model: the model itself, without DDP.
        tokenizer: its tokenizer.
        question: prompt and expected answer.
        positions: the longest sequence to show the model; of a longer prompt the end is kept.
        device: where the model is.
        together: runs a step that needs the tokenizer, or that decides. Where FSDP has sharded the model all ranks call
            this function, and `together` runs the step on the one that has the tokenizer and tells them what came out.
    """
    prompt, expected = question
    model.eval()
    new_tokens = min(NEW_TOKENS, positions // 2)
    given = torch.tensor([together(lambda: prompt_ids(tokenizer, prompt, positions - new_tokens))], device=device)
    answer: list[int] = []
    cache = None
    # Not compiled: every new length would be compiled anew.
    with torch.compiler.set_stance("force_eager"):
        for _ in range(new_tokens):
            output = model(input_ids=given, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            likeliest = output.logits[0, -1].argmax()
            token, ends = together(lambda: _read(likeliest, tokenizer))  # noqa: B023 – called at once
            if ends:
                break
            answer.append(token)
            given = torch.tensor([[token]], device=device)
    return together(lambda: Sample(prompt, tokenizer.decode(answer), expected))


def prompt_ids(tokenizer: Any, prompt: str, most: int) -> list[int]:
    """The last tokens of a prompt, at least one."""
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"][-most:]
    return ids or [tokenizer.eos_token_id]


def _read(token: torch.Tensor, tokenizer: Any) -> tuple[int, bool]:
    """The token, and whether it ends the text."""
    return int(token), int(token) == tokenizer.eos_token_id
