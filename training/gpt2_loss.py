"""The training loss of a Hugging Face GPT-2 by fused GPU kernels: the model's own weights and results, faster.

The matrix products and the attention stay cuBLAS's and cuDNN's. What stands between them is fused
(training/gpt2_kernels.py), works in bfloat16 with float32 inside, and does not round more often than autocast does,
but for the stream of residuals, which is bfloat16 too. The weights stay float32, and so do their gradients, which come
out of the matrix products as float32.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from training import gpt2_kernels as kernels
from training.packing import Attention, attention_within, causal_attention, document_starts, positions_from

VOCABULARY_MULTIPLE = 128
"""The matrix product with the vocabulary is several times faster where its size is a multiple of this."""


class GPT2Loss(nn.Module):
    """As `TokenLoss` in bfloat16, for a GPT-2 on a GPU."""

    def __init__(self, model: Any, precision: torch.dtype = torch.bfloat16, end_of_text: int | None = None) -> None:
        super().__init__()
        self.model = model
        self._precision = precision
        self._end_of_text = end_of_text
        self._copies: dict[nn.Parameter, torch.Tensor] = {}

    @property
    def capturable(self) -> bool:
        """Whether it does the same for every batch of one shape, without asking the GPU: a CUDA graph can hold it."""
        return self._end_of_text is None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The loss of int64 tokens of shape [sequences, tokens], in nats per token: a float32 scalar."""
        core, config = self.model.transformer, self.model.config
        copies = self._cast_weights()
        batch, length = tokens.shape
        heads, eps = config.num_attention_heads, config.layer_norm_epsilon
        p_residual, p_attention = (config.resid_pdrop, config.attn_pdrop) if self.training else (0.0, 0.0)
        norms = 2 * len(core.h) + 1
        # An evaluation draws nothing: what is trained must not depend on how often one is made.
        seeds = torch.randint(2**31, (norms,), device=tokens.device) if self.training else tokens.new_zeros(norms)

        places: torch.Tensor | None = None
        attend: Attention = causal_attention
        if self._end_of_text is not None:
            starts = document_starts(tokens, self._end_of_text)
            places, attend = positions_from(starts), attention_within(starts, config.hidden_size // heads)

        embedded = Embed.apply(tokens, places, core.wte.weight, core.wpe.weight, copies[core.wte.weight])
        x = functional.dropout(embedded, config.embd_pdrop, self.training)
        delta, bias = None, None
        for number, block in enumerate(core.h):
            attention, mlp = block.attn, block.mlp
            x, normed = AddNorm.apply(
                x, delta, bias, block.ln_1.weight, block.ln_1.bias, eps, p_residual, seeds[2 * number : 2 * number + 1]
            )
            weight = attention.c_attn.weight
            query, key, value = QueryKeyValue.apply(
                normed, weight, attention.c_attn.bias, copies[weight], (batch, length, heads)
            )
            rows = attend(query, key, value, p_attention).transpose(1, 2).reshape(batch * length, -1)
            weight = attention.c_proj.weight
            delta, bias = Product.apply(rows, weight, copies[weight]), attention.c_proj.bias
            x, normed = AddNorm.apply(
                x, delta, bias, block.ln_2.weight, block.ln_2.bias, eps, p_residual,
                seeds[2 * number + 1 : 2 * number + 2],
            )  # fmt: skip
            weight = mlp.c_fc.weight
            inner = Gelu.apply(Product.apply(normed, weight, copies[weight]), mlp.c_fc.bias)
            weight = mlp.c_proj.weight
            delta, bias = Product.apply(inner, weight, copies[weight]), mlp.c_proj.bias
        _, normed = AddNorm.apply(x, delta, bias, core.ln_f.weight, core.ln_f.bias, eps, p_residual, seeds[-1:])
        counted = batch * (length - 1)
        table = core.wte.weight
        return HeadLoss.apply(normed, table, copies[table], next_tokens(tokens), 1 / counted, torch.is_grad_enabled())

    def _cast_weights(self) -> dict[nn.Parameter, torch.Tensor]:
        """What the matrix products read: their weights in that precision, cast once for a forward and backward pass.
        The vocabulary is filled up by zeros."""
        vocabulary, positions = self.model.transformer.wte.weight, self.model.transformer.wpe.weight
        matrices = [weight for weight in self.model.parameters() if weight.ndim == 2 and weight is not positions]
        if not self._copies:
            for matrix in matrices:
                rows = matrix.shape[0]
                if matrix is vocabulary:
                    rows = -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
                self._copies[matrix] = matrix.new_zeros((rows, matrix.shape[1]), dtype=self._precision)
        with torch.no_grad():
            torch._foreach_copy_([self._copies[matrix][: len(matrix)] for matrix in matrices], matrices)
        return self._copies


def next_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """What each position is to predict, in one row: the token after it, and -1 at the end of a sequence."""
    return functional.pad(tokens[:, 1:], (0, 1), value=-1).flatten()


def weight_gradient(rows: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """rowsᵀ · grad in float32: it leaves the matrix product without being rounded to bfloat16."""
    if rows.dtype == torch.float32:
        return rows.t() @ grad
    return torch.mm(rows.t(), grad, out_dtype=torch.float32)


class Embed(torch.autograd.Function):
    """Token and position embeddings, added; rows of shape [sequences · tokens, width]. Positions count through each
    sequence where `places`, of the tokens' shape, does not say otherwise."""

    @staticmethod
    def forward(ctx: Any, tokens: Any, places: Any, table: Any, positions: Any, copy: Any) -> Any:
        ctx.save_for_backward(tokens, places)
        ctx.sizes = table.shape[0], positions.shape[0]
        of_places = positions[: tokens.shape[1]] if places is None else functional.embedding(places, positions)
        return (functional.embedding(tokens, copy) + of_places.to(copy.dtype)).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        tokens, places = ctx.saved_tensors
        vocabulary, longest = ctx.sizes
        grad = grad.float()
        table = torch.ops.aten.embedding_dense_backward(grad, tokens.flatten(), vocabulary, -1, False)
        if places is None:
            of_places = grad.view(*tokens.shape, -1).sum(0)
            of_places = functional.pad(of_places, (0, 0, 0, longest - len(of_places)))
        else:
            of_places = torch.ops.aten.embedding_dense_backward(grad, places.flatten(), longest, -1, False)
        return None, None, table, of_places, None


class AddNorm(torch.autograd.Function):
    """The stream of residuals with dropout(delta + bias) added, and its layer norm."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, delta: Any, bias: Any, weight: Any, shift: Any, eps: float, dropout: float, seed: Any
    ) -> Any:
        total, normed, mean, rstd = kernels.add_norm_forward(x, delta, bias, weight, shift, eps, dropout, seed)
        ctx.save_for_backward(total, mean, rstd, weight, seed)
        ctx.has_delta, ctx.dropout = delta is not None, dropout
        ctx.set_materialize_grads(False)
        return (x.view_as(x) if delta is None else total), normed

    @staticmethod
    def backward(ctx: Any, total_grad: Any, normed_grad: Any) -> Any:
        total, mean, rstd, weight, seed = ctx.saved_tensors
        x_grad, delta_grad, sums = kernels.add_norm_backward(
            total, mean, rstd, weight, total_grad, normed_grad, ctx.has_delta, ctx.dropout, seed
        )
        weight_grad, shift_grad, bias_grad = sums.unbind()
        of_delta = (delta_grad, bias_grad) if ctx.has_delta else (None, None)
        return x_grad, *of_delta, weight_grad, shift_grad, None, None, None


class Product(torch.autograd.Function):
    """rows · weight, for a weight of shape [in, out] as transformers' Conv1D keeps it."""

    @staticmethod
    def forward(ctx: Any, rows: Any, weight: Any, copy: Any) -> Any:
        ctx.save_for_backward(rows, copy)
        return rows @ copy

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        rows, copy = ctx.saved_tensors
        return grad @ copy.t(), weight_gradient(rows, grad), None


class QueryKeyValue(torch.autograd.Function):
    """Queries, keys and values of shape [batch, heads, tokens, head size], as views of one matrix product."""

    @staticmethod
    def forward(ctx: Any, rows: Any, weight: Any, bias: Any, copy: Any, sizes: tuple[int, int, int]) -> Any:
        ctx.save_for_backward(rows, copy)
        batch, length, heads = sizes
        packed = torch.addmm(bias.to(rows.dtype), rows, copy).view(batch, length, 3, heads, -1)
        return packed.permute(2, 0, 3, 1, 4).unbind()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        rows, copy = ctx.saved_tensors
        grad, bias_grad = kernels.pack_heads(grads)
        return grad @ copy.t(), weight_gradient(rows, grad), bias_grad, None, None


class Gelu(torch.autograd.Function):
    """GELU of rows + bias."""

    @staticmethod
    def forward(ctx: Any, rows: Any, bias: Any) -> Any:
        ctx.save_for_backward(rows, bias)
        return kernels.gelu_forward(rows, bias)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        rows, bias = ctx.saved_tensors
        return kernels.gelu_backward(rows, bias, grad)


class HeadLoss(torch.autograd.Function):
    """Mean cross entropy of the next token, by the embedding's own weights.

    The gradient of the logits is made at once, in their place: they are the largest tensor of all.
    """

    @staticmethod
    def forward(ctx: Any, rows: Any, table: Any, copy: Any, targets: Any, share: float, gradient: bool) -> Any:
        logits = rows @ copy.t()
        losses = kernels.cross_entropy(logits, targets, table.shape[0], share, gradient)
        ctx.save_for_backward(rows, copy, logits)
        ctx.vocabulary = table.shape[0]
        return losses.sum() * share

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        rows, copy, logits = ctx.saved_tensors
        table_grad = weight_gradient(logits, kernels.scale(rows, grad))[: ctx.vocabulary]
        return kernels.scale(logits @ copy, grad), table_grad, None, None, None, None
