"""Model FLOPs and utilisation."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from training.flops import flops_per_token, model_flops_per_token, peak_flops, utilisation


def test_gpt2_takes_855_megaflops_a_token():
    # The 124M parameters of GPT-2 without its 1024 position embeddings, sequences of 1024.
    assert flops_per_token(124_439_808 - 1024 * 768, 12, 12, 64, 1024) == pytest.approx(855.2e6, rel=1e-3)


def test_a_head_may_have_another_size_than_its_share_of_the_hidden_one():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", vocab_size=8, head_dim=32, **sizes))
    assert model_flops_per_token(model, 100) == flops_per_token(model.num_parameters(), 1, 2, 32, 100)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA T4", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA GB200", None),
        ("NVIDIA GH200 480GB", 989e12),
    ],
)
def test_peaks_are_found_by_the_devices_name(name, peak):
    assert peak_flops(name) == peak


def test_utilisation_counts_all_devices_and_is_not_made_up():
    assert utilisation(1e6, 1e9, "NVIDIA H100", 2) == pytest.approx(1e15 / (2 * 989e12))
    assert utilisation(1e6, 1e9, "cpu", 2) is None
