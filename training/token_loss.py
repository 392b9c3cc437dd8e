"""The training loss of a batch of packed sequences: what the loop differentiates and the evaluation averages."""

import importlib.util
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from training.attention import use_packed_causal_attention
from training.errors import InputError, class_and_line
from training.packing import within_documents


class TokenLoss(nn.Module):
    """A causal language model as a function from tokens to the mean loss of predicting each next one."""

    def __init__(self, model: Any, bfloat16: bool, end_of_text: int | None = None) -> None:
        """The forward and backward pass run in bfloat16 for what gains from it, over weights that stay float32:
        pure bfloat16 weights lose small updates.

        With `end_of_text`, the token that ends a document, attention stays within documents.
        """
        super().__init__()
        self.model = model
        self._bfloat16 = bfloat16
        self._end_of_text = end_of_text

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The loss of int64 tokens of shape [sequences, tokens], in nats per token: a float32 scalar."""
        within = {} if self._end_of_text is None else within_documents(tokens, self._end_of_text)
        with self._precision(tokens.device):
            return self.model(input_ids=tokens, labels=tokens, **within).loss.float()

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if self._bfloat16 else nullcontext()


def token_loss(
    model: Any,
    kernels: Literal["auto", "fused", "torch"],
    bfloat16: bool,
    compiled: bool,
    sharded: bool,
    device: torch.device,
    end_of_text: int | None = None,
) -> nn.Module:
    """The model as such a function: by the fused kernels of `gpt2_loss` where it may be, else by its own forward, which
    it compiles where that is asked.

    Args:
        model: a causal language model of transformers, on `device`.
        kernels: the option --kernels.
        bfloat16: whether to compute in bfloat16, else in float32.
        compiled: the option --compile.
        sharded: FSDP shares the model out among the ranks; it casts the weights itself, and compiles block by block.
        device: the model's.
        end_of_text: the token that ends a document, where attention is to stay within documents.

    Raises:
        InputError: the fused kernels are insisted on, and do not fit.
    """
    own = "--compile was given" if compiled else "--strategy fsdp was given" if sharded else None
    why_not = own or (None if bfloat16 else "the precision is float32") or fused_misfit(model.config, device.type)
    if kernels != "torch" and why_not is None and (why_not := triton_fault()) and kernels == "auto":
        warnings.warn(f"{why_not}: the step is slower without the fused kernels", stacklevel=2)
    if kernels == "fused" and why_not is not None:
        raise InputError(f"--kernels fused: {why_not}; leave the option out")
    if kernels == "torch" or why_not is not None:
        if compiled and end_of_text is None:
            use_packed_causal_attention(model)
        if compiled and not sharded:
            model.compile()
        return TokenLoss(model, bfloat16 and not sharded, end_of_text)
    from training.gpt2_loss import GPT2Loss

    return GPT2Loss(model, end_of_text=end_of_text)


def fused_misfit(config: Any, device_type: str) -> str | None:
    """Why a model of this configuration cannot be trained by the fused kernels on such a device; None where it can."""
    if config.model_type != "gpt2":
        return f"they are GPT-2's, and the model is a {config.model_type}"
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        return f"the model's activation is {config.activation_function}"
    if config.add_cross_attention or config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        return "the model's attention is not plain causal self-attention"
    if not config.tie_word_embeddings:
        return "the model's output weights are not those of its embedding"
    if device_type != "cuda":
        return "there is no GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def triton_fault() -> str | None:
    """Why triton cannot make kernels for this machine's GPU: it needs a C compiler, say. None where it can."""
    from triton.runtime import driver

    try:
        driver.active.get_current_device()
    except Exception as error:
        return f"triton does not work here ({class_and_line(error)})"
    return None
