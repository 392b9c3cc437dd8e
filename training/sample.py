"""What the trained model answers to a few held-out questions."""

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


@torch.no_grad()
def sample_answer(
    model: Any, tokenizer: Any, question: tuple[str, str], positions: int, device: torch.device
) -> Sample:
    """The likeliest continuation, token by token, until end-of-text or 48 tokens.

    Args:
        model: the model itself, without DDP.
        tokenizer: its tokenizer.
        question: prompt and expected answer.
        positions: the longest sequence to show the model; of a longer prompt the end is kept.
        device: where the model is.
    """
    prompt, expected = question
    model.eval()
    new_tokens = min(NEW_TOKENS, positions // 2)
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"][-(positions - new_tokens) :]
    if not ids:
        ids = [tokenizer.eos_token_id]
    answer: list[int] = []
    cache = None
    given = torch.tensor([ids], device=device)
    for _ in range(new_tokens):
        # Not through a compiled call: every new length would be compiled anew.
        output = model.forward(input_ids=given, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        given = output.logits[:, -1:].argmax(dim=-1)
        token = int(given)
        if token == tokenizer.eos_token_id:
            break
        answer.append(token)
    return Sample(prompt, tokenizer.decode(answer), expected)
