"""What the trained model answers to a few held-out questions."""

from dataclasses import dataclass
from typing import Any

import torch

from training.process_group import rank_zero_first

NEW_TOKENS = 48


@dataclass(frozen=True)
class Sample:
    """A held-out prompt, what the model wrote after it, and what the data has there."""

    prompt: str
    answer: str
    expected: str


@torch.no_grad()
def sample_answer(
    model: Any, tokenizer: Any, question: tuple[str, str], positions: int, device: torch.device
) -> Sample:
    """The likeliest continuation, token by token, until end-of-text or 48 tokens. All ranks call it, since where FSDP
    has sharded the model each has a part of it; rank 0 decides, and all return the same.

    Args:
        model: the model itself, without DDP.
        tokenizer: its tokenizer; needed on rank 0 alone.
        question: prompt and expected answer.
        positions: the longest sequence to show the model; of a longer prompt the end is kept.
        device: where the model is.
    """
    prompt, expected = question
    model.eval()
    new_tokens = min(NEW_TOKENS, positions // 2)
    given = torch.tensor(
        [rank_zero_first(lambda: prompt_ids(tokenizer, prompt, positions - new_tokens))], device=device
    )
    answer: list[int] = []
    cache = None
    # Not compiled: every new length would be compiled anew.
    with torch.compiler.set_stance("force_eager"):
        for _ in range(new_tokens):
            output = model(input_ids=given, past_key_values=cache, use_cache=True)
            # Some models keep none, mamba for one: they are shown all of it each time.
            cache = getattr(output, "past_key_values", None)
            likeliest = output.logits[0, -1].argmax()
            token, ends = rank_zero_first(lambda: _read(likeliest, tokenizer))  # noqa: B023 – called at once
            if ends:
                break
            answer.append(token)
            latest = torch.tensor([[token]], device=device)
            given = torch.cat([given, latest], dim=1) if cache is None else latest
    return rank_zero_first(lambda: Sample(prompt, tokenizer.decode(answer), expected))


def prompt_ids(tokenizer: Any, prompt: str, most: int) -> list[int]:
    """The last tokens of a prompt, at least one."""
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"][-most:]
    return ids or [tokenizer.eos_token_id]


def _read(token: torch.Tensor, tokenizer: Any) -> tuple[int, bool]:
    """The token, and whether it ends the text."""
    return int(token), int(token) == tokenizer.eos_token_id
