"""Model FLOPs utilisation: the share of a GPU's peak that the model's arithmetic uses."""

import re
from collections.abc import Mapping
from typing import Any

# Dense bf16 peaks in FLOP/s, without sparsity, from NVIDIA's data sheets; the first name that stands in the
# device's name as whole words wins.
PEAKS: Mapping[str, float] = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "L40S": 362e12,
}


def flops_per_token(parameters: int, layers: int, heads: int, head_size: int, length: int) -> float:
    """Forward and backward FLOPs for one token: 6N + 12·L·H·Q·T (PaLM, appendix B).

    Args:
        parameters: trainable parameters, tied ones counted once, position embeddings left out.
        layers, heads, head_size: L, H and Q.
        length: T, tokens per sequence.
    """
    return 6 * parameters + 12 * layers * heads * head_size * length


def model_flops_per_token(model: Any, length: int) -> float:
    """`flops_per_token` of a Hugging Face model; GPT-2's position embeddings are looked up, not
    multiplied, and a model without attention heads, such as mamba, has no second term."""
    config = model.config.get_text_config()
    multiplied = sum(
        parameter.numel() for name, parameter in model.named_parameters() if not name.endswith("wpe.weight")
    )
    heads = getattr(config, "num_attention_heads", 0)
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return flops_per_token(multiplied, config.num_hidden_layers, heads, head_size, length)


def peak_flops(device_name: str) -> float | None:
    """The dense bf16 peak of a GPU by its name, in FLOP/s; None where it is not known."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)


def utilisation(tokens_per_second: float, per_token: float, device_name: str, devices: int) -> float | None:
    """The share, 0 to 1, of the peak of `devices` GPUs; None where the peak is not known."""
    peak = peak_flops(device_name)
    return None if peak is None else tokens_per_second * per_token / (peak * devices)
