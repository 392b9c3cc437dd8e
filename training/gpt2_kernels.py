"""What stands between the matrix products of a GPT-2, as GPU kernels that read and write each value once.

Every kernel works on rows: one row is one token. Values are bfloat16 in memory (or float32, as the tensors are) and
float32 in registers. Sums over the rows (the gradients of biases and norms) are made in two stages of fixed order, so
that they are the same every time. Dropout draws from Philox by (seed, position), and the backward pass draws the same
again instead of storing it.
"""

import torch
import triton
import triton.language as tl

# ½(1 + tanh z) is the logistic function of 2z, for z = √(2/π) · (x + 0.044715 · x³).
GELU_SLOPE = tl.constexpr(1.5957691216057308)  # 2 · √(2/π)
GELU_CUBE = tl.constexpr(0.044715)
LOWEST = tl.constexpr(-1e30)  # a lane that has seen nothing: unlike -inf, it can be subtracted from itself
# GPUs raise 2 to a power, so the cross entropy counts in bits until its end.
BITS = tl.constexpr(1.4426950408889634)  # log₂ e
NATS = tl.constexpr(0.6931471805599453)  # ln 2
MULTIPROCESSORS = 132
"""Of an H100. Programs that sum over the rows as well share these out: as many as are made at the same time."""
ROW_TILE, COLUMN_TILE = 4, 1024
HEAD_ROWS, HEAD_COLUMNS = 16, 1024
SUM_ROWS, SUM_COLUMNS = 512, 16
SCALE_TILE, LOGIT_TILE = 1024, 2048


def add_norm_forward(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    dropout: float,
    seed: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x + dropout(delta + bias), and its layer norm.

    Args:
        x: shape [rows, width], as `delta`; without `delta` it is x itself that is normed.
        bias, weight, shift: shape [width].
        eps: as in torch.nn.LayerNorm.
        dropout: probability; 0 draws nothing.
        seed: int64, shape [1].

    Returns:
        The sum, its norm, and the rows' means and reciprocal deviations in float32.
    """
    rows, width = x.shape
    total = x if delta is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    mean, rstd = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    block = triton.next_power_of_2(width)
    _add_norm_forward[(rows,)](
        x, delta, bias, weight, shift, total, normed, mean, rstd, seed, width, eps, dropout,
        HAS_DELTA=delta is not None, DROPOUT=dropout > 0, BLOCK=block, num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
    return total, normed, mean, rstd


@triton.jit
def _add_norm_forward(
    x, delta, bias, weight, shift, total, normed, mean, rstd, seed, width, eps, dropout,
    HAS_DELTA: tl.constexpr, DROPOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    if HAS_DELTA:
        added = tl.load(delta + at, inside, 0.0).to(tl.float32) + tl.load(bias + column, inside, 0.0)
        if DROPOUT:
            added = tl.where(_draw(seed, row, BLOCK) >= dropout, added / (1 - dropout), 0.0)
        # What is normed is what the backward pass will read.
        value = (value + added).to(total.dtype.element_ty)
        tl.store(total + at, value, inside)
        value = value.to(tl.float32)
    centre = tl.sum(value, 0) / width
    distance = tl.where(inside, value - centre, 0.0)
    scale = tl.rsqrt(tl.sum(distance * distance, 0) / width + eps)
    out = distance * scale * tl.load(weight + column, inside, 0.0) + tl.load(shift + column, inside, 0.0)
    tl.store(normed + at, out, inside)
    tl.store(mean + row, centre)
    tl.store(rstd + row, scale)


def add_norm_backward(
    total: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    total_grad: torch.Tensor | None,
    normed_grad: torch.Tensor,
    has_delta: bool,
    dropout: float,
    seed: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `add_norm_forward`.

    Args:
        total, mean, rstd: what it returned.
        weight, dropout, seed: what it was given.
        total_grad: of the sum; None where nothing else used it.
        normed_grad: of the norm.
        has_delta: whether a `delta` was added.

    Returns:
        The gradient of `x`, that of `delta` (the same tensor where nothing was dropped), and in float32 those of
        `weight`, `shift` and `bias`, shape [3, width].
    """
    rows, width = total.shape
    x_grad = torch.empty_like(total)
    drops = has_delta and dropout > 0
    delta_grad = torch.empty_like(total) if drops else x_grad
    block = triton.next_power_of_2(width)
    # As their registers allow; to draw needs more of them.
    at_a_time = max(1, (4096 if drops else 6144) // block)
    programs = min(MULTIPROCESSORS * at_a_time, rows)
    sums = torch.empty((3, programs, width), dtype=torch.float32, device=total.device)
    _add_norm_backward[(programs,)](
        total, mean, rstd, weight, total_grad, normed_grad, x_grad, delta_grad, sums, seed, rows, width, dropout,
        HAS_TOTAL_GRAD=total_grad is not None, HAS_DELTA=has_delta, DROPOUT=drops, BLOCK=block,
        num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
    return x_grad, delta_grad, sum_over_programs(sums)


@triton.jit
def _add_norm_backward(
    total, mean, rstd, weight, total_grad, normed_grad, x_grad, delta_grad, sums, seed, rows, width, dropout,
    HAS_TOTAL_GRAD: tl.constexpr, HAS_DELTA: tl.constexpr, DROPOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    scale = tl.load(weight + column, inside, 0.0)
    weight_sum = tl.zeros([BLOCK], tl.float32)
    shift_sum = tl.zeros([BLOCK], tl.float32)
    bias_sum = tl.zeros([BLOCK], tl.float32)
    at = tl.zeros([BLOCK], tl.int64) + program * width + column
    coming = _load_row(total, total_grad, normed_grad, mean, rstd, at, inside, program, rows, HAS_TOTAL_GRAD)
    for row in range(program, rows, programs):
        value, grad, grad_before, centre, reciprocal = coming
        # While this row is worked on, the program's next one is on its way.
        coming = _load_row(
            total, total_grad, normed_grad, mean, rstd, at + programs * width, inside, row + programs, rows,
            HAS_TOTAL_GRAD,
        )  # fmt: skip
        grad = grad.to(tl.float32)
        unit = tl.where(inside, (value.to(tl.float32) - centre) * reciprocal, 0.0)
        scaled = scale * grad
        along = tl.sum(unit * scaled, 0) / width
        level = tl.sum(scaled, 0) / width
        result = (scaled - unit * along - level) * reciprocal
        if HAS_TOTAL_GRAD:
            result += grad_before.to(tl.float32)
        tl.store(x_grad + at, result, inside)
        weight_sum += grad * unit
        shift_sum += grad
        if HAS_DELTA:
            if DROPOUT:
                result = tl.where(_draw(seed, row, BLOCK) >= dropout, result / (1 - dropout), 0.0)
                tl.store(delta_grad + at, result, inside)
            bias_sum += tl.where(inside, result, 0.0)
        at += programs * width
    into = sums + program * width + column
    tl.store(into, weight_sum, inside)
    tl.store(into + programs * width, shift_sum, inside)
    tl.store(into + 2 * programs * width, bias_sum, inside)


@triton.jit
def _load_row(total, total_grad, normed_grad, mean, rstd, at, inside, row, rows, HAS_TOTAL_GRAD: tl.constexpr):
    exists = row < rows
    wanted = inside & exists
    value = tl.load(total + at, wanted, 0.0)
    grad = tl.load(normed_grad + at, wanted, 0.0)
    grad_before = grad
    if HAS_TOTAL_GRAD:
        grad_before = tl.load(total_grad + at, wanted, 0.0)
    return value, grad, grad_before, tl.load(mean + row, exists, 0.0), tl.load(rstd + row, exists, 0.0)


@triton.jit
def _draw(seed, row, BLOCK: tl.constexpr):
    """A row of random numbers from 0 to 1; one round of Philox gives four."""
    counter = tl.zeros([BLOCK // 4], tl.int64) + row * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    first, second, third, fourth = tl.rand4x(tl.load(seed), counter)
    return tl.reshape(tl.join(tl.join(first, second), tl.join(third, fourth)), [BLOCK])


def gelu_forward(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GELU of x + bias by its tanh formula (transformers' gelu_new); x of shape [rows, width]."""
    rows, width = x.shape
    out = torch.empty_like(x)
    _gelu_forward[(triton.cdiv(rows, ROW_TILE), triton.cdiv(width, COLUMN_TILE))](
        x, bias, out, rows, width, ROWS=ROW_TILE, COLUMNS=COLUMN_TILE
    )
    return out


@triton.jit
def _gelu_forward(x, bias, out, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    at = row[:, None] * width + column[None, :]
    value = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(bias + column, column < width, 0.0)[None, :]
    gate = tl.sigmoid(value * (value * value * GELU_CUBE + 1) * GELU_SLOPE)
    tl.store(out + at, value * gate, inside)


def gelu_backward(x: torch.Tensor, bias: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of `gelu_forward`: that of x, and that of the bias in float32."""
    rows, width = x.shape
    x_grad = torch.empty_like(x)
    columns = triton.cdiv(width, COLUMN_TILE)
    programs = min(32 * MULTIPROCESSORS // columns, triton.cdiv(rows, ROW_TILE))
    sums = torch.empty((programs, width), dtype=torch.float32, device=x.device)
    _gelu_backward[(programs, columns)](x, bias, grad, x_grad, sums, rows, width, ROWS=ROW_TILE, COLUMNS=COLUMN_TILE)
    return x_grad, sum_over_programs(sums)


@triton.jit
def _gelu_backward(x, bias, grad, x_grad, sums, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    shift = tl.load(bias + column, column < width, 0.0)[None, :]
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(program * ROWS, rows, programs * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row[:, None] < rows) & (column[None, :] < width)
        at = row[:, None] * width + column[None, :]
        value = tl.load(x + at, inside, 0.0).to(tl.float32) + shift
        square = value * value
        gate = tl.sigmoid(value * (square * GELU_CUBE + 1) * GELU_SLOPE)
        slope = gate + value * gate * (1 - gate) * (square * (3 * GELU_CUBE) + 1) * GELU_SLOPE
        result = tl.load(grad + at, inside, 0.0).to(tl.float32) * slope
        tl.store(x_grad + at, result, inside)
        total += tl.sum(result, 0)
    tl.store(sums + program * width + column, total, column < width)


def pack_heads(grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of queries, keys and values, each of shape [batch, heads, tokens, head size], side by side in
    rows, shape [batch · tokens, 3 · width]; and in float32 the sum of the rows."""
    batch, heads, tokens, size = grads[0].shape
    rows, width = batch * tokens, heads * size
    # The head size stands last and dense in what attention returns; the other three may lie as they like.
    parts = [grad if grad.stride(3) == 1 else grad.contiguous() for grad in grads]
    packed = torch.empty((rows, 3 * width), dtype=parts[0].dtype, device=parts[0].device)
    programs = min(MULTIPROCESSORS, triton.cdiv(rows, HEAD_ROWS))
    sums = torch.empty((programs, 3 * width), dtype=torch.float32, device=packed.device)
    strides = [part.stride(axis) for part in parts for axis in range(3)]
    _pack_heads[(programs, triton.cdiv(width, HEAD_COLUMNS), 3)](
        *parts, packed, sums, *strides, rows, tokens, size, width, ROWS=HEAD_ROWS, COLUMNS=HEAD_COLUMNS
    )
    return packed, sum_over_programs(sums)


@triton.jit
def _pack_heads(
    q, k, v, packed, sums,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    rows, tokens, size, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, programs, part = tl.program_id(0), tl.num_programs(0), tl.program_id(2)
    source, by_batch, by_head, by_token = q, q_batch, q_head, q_token
    if part == 1:
        source, by_batch, by_head, by_token = k, k_batch, k_head, k_token
    if part == 2:
        source, by_batch, by_head, by_token = v, v_batch, v_head, v_token
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = column // size * by_head + column % size
    into = part * width + column
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(program * ROWS, rows, programs * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row[:, None] < rows) & (column[None, :] < width)
        at = row // tokens * by_batch + row % tokens * by_token
        value = tl.load(source + at[:, None] + place[None, :], inside, 0.0)
        tl.store(packed + row[:, None] * (3 * width) + into[None, :], value, inside)
        total += tl.sum(value.to(tl.float32), 0)
    tl.store(sums + program * (3 * width) + into, total, column < width)


def sum_over_programs(parts: torch.Tensor) -> torch.Tensor:
    """The second stage of a sum: what each program found, float32 of shape [..., programs, width], added up."""
    *groups, programs, width = parts.shape
    sums = torch.empty((*groups, width), dtype=torch.float32, device=parts.device)
    _sum_over_programs[(triton.cdiv(width, SUM_COLUMNS), sums.numel() // width)](
        parts, sums, programs, width, ROWS=min(SUM_ROWS, triton.next_power_of_2(programs)), COLUMNS=SUM_COLUMNS,
        num_warps=8,
    )  # fmt: skip
    return sums


@triton.jit
def _sum_over_programs(parts, sums, programs, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    group = tl.program_id(1)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, programs, ROWS):
        program = (first + tl.arange(0, ROWS))[:, None]
        inside = (program < programs) & (column[None, :] < width)
        total += tl.load(parts + (group * programs + program) * width + column[None, :], inside, 0.0)
    tl.store(sums + group * width + column, tl.sum(total, 0), column < width)


def scale(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """x · factor, for a scalar on the device; torch's own product with one is three times slower in bfloat16."""
    out = torch.empty_like(x)
    _scale[(triton.cdiv(x.numel(), SCALE_TILE),)](x, factor, out, x.numel(), BLOCK=SCALE_TILE)
    return out


@triton.jit
def _scale(x, factor, out, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < size, 0.0).to(tl.float32) * tl.load(factor), at < size)


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, vocabulary: int, share: float, gradient: bool
) -> torch.Tensor:
    """Each row's cross entropy in float32, shape [rows]; 0 where the target is negative.

    Args:
        logits: shape [rows, `vocabulary` filled up]; what fills it up, less than a tile, does not count. With
            `gradient` they are overwritten by `share` times their gradient.
        targets: int64, shape [rows].
        vocabulary: tokens that there are.
        share: of one row in the loss that is differentiated.
        gradient: whether it is wanted.
    """
    rows, width = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _cross_entropy[(rows,)](
        logits, targets, losses, width, vocabulary, share,
        GRADIENT=gradient, BLOCK=min(LOGIT_TILE, triton.next_power_of_2(width)), num_warps=8,
    )  # fmt: skip
    return losses


@triton.jit
def _cross_entropy(
    logits, targets, losses, width, vocabulary, share, GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    counts = target >= 0
    start = logits + row * width
    lane = tl.arange(0, BLOCK)
    whole = vocabulary // BLOCK * BLOCK  # as far as no lane need ask whether it is inside
    rest = whole + lane
    # Each lane has a highest value and a sum of its own, which come together once.
    peaks = tl.full([BLOCK], LOWEST, tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, whole, BLOCK):
        # The row is read twice: let it stay in the cache until then.
        peaks, sums = _add_exponentials(peaks, sums, tl.load(start + first + lane, eviction_policy="evict_last"))
    peaks, sums = _add_exponentials(peaks, sums, tl.load(start + rest, rest < vocabulary, float("-inf")))
    peak = tl.max(peaks, 0)
    bits = peak * BITS + tl.log2(tl.sum(sums * tl.exp2((peaks - peak) * BITS), 0))
    of_target = start + tl.where(counts, target, 0)
    wanted = tl.load(of_target).to(tl.float32)
    tl.store(losses + row, tl.where(counts, bits * NATS - wanted, 0.0))
    if GRADIENT:
        tl.debug_barrier()  # `wanted` is read before it is overwritten
        bits = tl.where(counts, bits - tl.log2(share), float("inf"))
        for first in range(0, whole, BLOCK):
            value = tl.load(start + first + lane, eviction_policy="evict_first").to(tl.float32)
            tl.store(start + first + lane, tl.exp2(value * BITS - bits), eviction_policy="evict_first")
        value = tl.load(start + rest, rest < vocabulary, float("-inf")).to(tl.float32)
        tl.store(start + rest, tl.exp2(value * BITS - bits), rest < width)
        tl.debug_barrier()
        tl.store(of_target, tl.exp2(wanted * BITS - bits) - share, counts)


@triton.jit
def _add_exponentials(peaks, sums, values):
    values = values.to(tl.float32)
    higher = tl.maximum(peaks, values)
    return higher, sums * tl.exp2((peaks - higher) * BITS) + tl.exp2((values - higher) * BITS)
