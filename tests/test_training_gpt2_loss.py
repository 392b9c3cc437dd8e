"""The fused GPT-2 gives what Hugging Face's gives, in float64, on small shapes.

The kernels run in triton's interpreter, one row after the other: hence so few.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from random_gpt2 import random_gpt2, worst_difference
from torch.nn import functional

from training.demo import demo_architecture
from training.errors import InputError
from training.model import build_model
from training.token_loss import TokenLoss, fused_misfit, token_loss

kernels = pytest.importorskip("training.gpt2_kernels", reason="triton has no build for this machine")
gpt2_loss = pytest.importorskip("training.gpt2_loss")

SMALL = demo_architecture() | {"n_embd": 60, "n_layer": 1, "n_head": 3, "n_positions": 40, "vocab_size": 300}
DEEPER = SMALL | {"n_layer": 2}
OTHER = SMALL | {"n_embd": 32, "n_head": 2, "n_inner": 56, "layer_norm_epsilon": 1e-3}


def small(architecture: dict[str, Any] = SMALL, dropout: float = 0.0) -> Any:
    return random_gpt2(architecture, dropout)


def in_float64(model: Any, architecture: dict[str, Any] = SMALL) -> Any:
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    twin = build_model(architecture | drops, None).double()
    twin.load_state_dict(model.state_dict())
    return twin.train()


def fused(model: Any) -> Any:
    return gpt2_loss.GPT2Loss(model, torch.float32).train(model.training)


def tokens(sequences: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(0, SMALL["vocab_size"], (sequences, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", [DEEPER, OTHER], ids=["two layers, heads of 20", "narrow feed-forward"])
def test_loss_and_every_gradient_are_those_of_the_models_own_forward_in_float64(architecture: dict[str, Any]) -> None:
    model = small(architecture)
    reference = in_float64(model, architecture)
    loss, expected = fused(model)(tokens()), TokenLoss(reference, bfloat16=False).model(
        input_ids=tokens(), labels=tokens()
    ).loss  # fmt: skip
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert worst_difference(model, reference) < 1e-5


def test_accumulated_batches_give_the_gradients_of_one_large_batch() -> None:
    model, whole = small(), small()
    loss_of = fused(model)
    for part in tokens().chunk(2):
        (loss_of(part) / 2).backward()
    fused(whole)(tokens()).backward()
    assert worst_difference(model, whole) < 1e-5


def test_without_gradients_the_loss_is_the_same() -> None:
    model = small()
    with torch.no_grad():
        assert float(fused(model)(tokens())) == pytest.approx(float(fused(model)(tokens()).detach()))


def test_an_evaluation_draws_no_random_numbers() -> None:
    model = small(dropout=0.3).eval()
    before = torch.get_rng_state()
    fused(model)(tokens())
    assert torch.equal(torch.get_rng_state(), before)


def test_each_step_reads_the_weights_as_they_are_then() -> None:
    model = small()
    loss_of = fused(model)
    before = float(loss_of(tokens()).detach())
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(2)
        expected = float(in_float64(model)(input_ids=tokens(), labels=tokens()).loss)
    after = float(loss_of(tokens()).detach())
    assert after != pytest.approx(before, rel=1e-4)
    assert after == pytest.approx(expected, rel=1e-6)


def test_the_model_keeps_its_parameters_their_names_and_shapes() -> None:
    model = small()
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    loss_of = fused(model)
    loss_of(tokens()).backward()
    assert {name: weight.shape for name, weight in model.state_dict().items()} == shapes
    assert [id(one) for one in loss_of.parameters()] == [id(one) for one in model.parameters()]
    assert all(weight.grad.dtype == weight.dtype == torch.float32 for weight in model.parameters())


def test_dropout_is_drawn_again_the_same_in_the_backward_pass() -> None:
    model = small(dropout=0.3)
    loss_of = fused(model)

    def loss() -> torch.Tensor:
        torch.manual_seed(7)
        return loss_of(tokens())

    loss().backward()
    rise = along = 0.0
    torch.manual_seed(3)
    steps = [torch.randn_like(weight) for weight in model.parameters()]
    with torch.no_grad():
        for sign in (1, -1):
            for weight, step in zip(model.parameters(), steps, strict=True):
                weight += sign * 1e-3 * step
            rise += sign * float(loss())
            for weight, step in zip(model.parameters(), steps, strict=True):
                weight -= sign * 1e-3 * step
    along = sum(float((weight.grad * step).sum()) for weight, step in zip(model.parameters(), steps, strict=True))
    assert rise / 2e-3 == pytest.approx(along, rel=1e-2)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    x, delta, bias = torch.zeros(48, 60), torch.ones(48, 60), torch.zeros(60)
    scale, shift, seeds = torch.ones(60), torch.zeros(60), torch.tensor([5, 6])
    draws = [kernels.add_norm_forward(x, delta, bias, scale, shift, 1e-5, 0.1, seeds[i : i + 1])[0] for i in (0, 1, 0)]
    dropped = draws[0] == 0
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.025)
    assert float(draws[0].max()) == pytest.approx(1 / 0.9)
    assert torch.equal(draws[0], draws[2])
    # Another seed, another row, another column: chance alone makes two of them agree.
    for other in (draws[1] == 0, dropped.roll(1, 0), dropped.roll(1, 1), dropped.roll(15, 1)):
        assert float((dropped & other).float().mean()) == pytest.approx(0.01, abs=0.009)


def test_the_cross_entropy_leaves_out_what_is_no_token_and_what_has_no_target() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 384, requires_grad=True)
    targets = torch.tensor([0, 299, -1, 7, 150])
    expected = functional.cross_entropy(logits[:, :300], targets, ignore_index=-1, reduction="none")
    expected.sum().backward()
    assert logits.grad is not None
    with torch.no_grad():
        alone = kernels.cross_entropy(logits, targets, 300, 0.25, gradient=False)
        inside = logits.clone()
        inside[:, 300:] = 1e9  # may hold anything
        losses = kernels.cross_entropy(inside, targets, 300, 0.25, gradient=True)
    assert torch.allclose(losses, expected.detach(), atol=1e-5)
    assert torch.equal(losses, alone)
    assert torch.allclose(inside, logits.grad * 0.25, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_shows_in_the_loss(value: float) -> None:
    model = small()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.bias[3] = value
    assert not torch.isfinite(fused(model)(tokens()).detach())


BY_ITSELF = {
    "they are GPT-2's, and the model is a llama": {"model_type": "llama"},
    "the model's activation is relu": {"activation_function": "relu"},
    "the model's attention is not plain causal self-attention": {"scale_attn_by_inverse_layer_idx": True},
    "the model's output weights are not those of its embedding": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize(("reason", "change"), BY_ITSELF.items())
def test_another_model_keeps_its_own_forward(reason: str, change: dict[str, Any]) -> None:
    plain = {
        "model_type": "gpt2", "activation_function": "gelu_new", "add_cross_attention": False,
        "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "tie_word_embeddings": True,
    }  # fmt: skip
    assert fused_misfit(SimpleNamespace(**plain), "cuda") is None
    assert fused_misfit(SimpleNamespace(**plain | change), "cuda") == reason


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("choose", "reason"),
    [
        (lambda model: token_loss(model, "fused", True, False, False, CPU), "there is no GPU"),
        (lambda model: token_loss(model, "fused", False, False, False, CPU), "the precision is float32"),
        (lambda model: token_loss(model, "fused", True, True, False, CPU), "--compile was given"),
        (lambda model: token_loss(model, "fused", True, False, True, CPU), "--strategy fsdp was given"),
    ],
)
def test_insisting_on_the_fused_kernels_where_they_do_not_fit_is_refused(
    choose: Callable[[Any], Any], reason: str
) -> None:
    with pytest.raises(InputError, match=f"--kernels fused: {reason}; leave the option out"):
        choose(small())
    assert isinstance(token_loss(small(), "auto", True, False, False, CPU), TokenLoss)


@pytest.mark.skipif(torch.cuda.is_available(), reason="triton has a GPU here")
def test_a_gpu_for_which_triton_cannot_compile_is_trained_by_the_models_own_forward() -> None:
    gpu = torch.device("cuda")  # which this machine lacks, and so a driver that triton could compile for
    with pytest.warns(UserWarning, match="triton does not work here .*: the step is slower without the fused kernels"):
        assert isinstance(token_loss(small(), "auto", True, False, False, gpu), TokenLoss)
    with pytest.raises(InputError, match="--kernels fused: triton does not work here"):
        token_loss(small(), "fused", True, False, False, gpu)


def test_the_models_own_forward_asks_nothing_of_triton(recwarn: pytest.WarningsRecorder) -> None:
    token_loss(small(), "torch", True, False, False, torch.device("cuda"))
    assert not recwarn.list
