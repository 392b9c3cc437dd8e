"""However the ranks share the work, they compute what one rank computes; and what one strategy saved, the other goes on
from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import metrics_of
from forked_ranks import ForkedRanks
from training.demo import demo_architecture, demo_tokenizer
from training.errors import InputError
from training.strategy import blocks, check_ties

STEPS = 3


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all runs, with data, and a model without dropout and one with it."""
    folder = tmp_path_factory.mktemp("outputs")
    texts = [" ".join(f"{number * 7919 % 97} and {number + place}" for place in range(12)) for number in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    small = demo_architecture() | {"n_embd": 32, "n_layer": 2, "n_head": 2}
    for name, drop in (("plain", 0.0), ("drops", 0.1)):
        demo_tokenizer().save_pretrained(folder / name)
        drops = {"resid_pdrop": drop, "embd_pdrop": drop, "attn_pdrop": drop}
        (folder / name / "config.json").write_text(json.dumps(small | drops))
    return folder


def train(
    ranks: ForkedRanks,
    output: Path,
    name: str,
    world: int,
    *more: str,
    model: str = "plain",
    stop: tuple[int, int] | None = None,
    inject: dict[int, str] | None = None,
) -> str:
    """What was printed by a run of 4 sequences a step that completed, or that was saved where it was to be stopped."""
    options = ["-e", name, "--output-dir", str(output), "--preset", "smoke", "--device", "cpu", "--seq-length", "32"]
    options += ["--dataset-name", str(output / "data.jsonl"), "--model-name", str(output / model)]
    parts = int(more[more.index("--gradient-accumulation-steps") + 1]) if "--gradient-accumulation-steps" in more else 1
    options += ["--max-steps", str(STEPS), "--eval-freq", "2", "--batch-size", str(4 // world // parts), *more]
    log = output / f"{name}.log"
    log.unlink(missing_ok=True)
    statuses = ranks.run(log, world, *options, stop=stop, inject=inject)
    printed = log.read_text()
    assert set(statuses) == {75 if stop else 0}, printed
    return printed


def numbers(run: Path, *names: str) -> list[float]:
    return [row[name] for row in metrics_of(run) for name in names if name in row]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")


def assert_alike(run: Path, other: Path) -> None:
    """Equal but for the order of sums."""
    names = ("loss", "grad_norm", "eval_loss")
    assert numbers(run, *names) == pytest.approx(numbers(other, *names), rel=2e-6)
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    # AdamW's first steps are as large as the rate, 3e-3, however small the gradient, and take its sign.
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], rtol=1e-4, atol=2e-5), name


@pytest.fixture(scope="module")
def one_rank(ranks: ForkedRanks, output: Path) -> Path:
    train(ranks, output, "one", 1)
    return output / "one"


@pytest.mark.parametrize(
    ("world", "more"),
    [
        (1, ["--gradient-accumulation-steps", "4"]),
        (4, []),
        (2, ["--gradient-accumulation-steps", "2"]),
        (4, ["--ddp-overlap", "off"]),
        (2, ["--ddp-overlap", "off", "--gradient-accumulation-steps", "2"]),
        (4, ["--strategy", "fsdp"]),
        (2, ["--strategy", "fsdp", "--gradient-accumulation-steps", "2"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_step_is_that_of_one_rank_with_all_sequences(
    ranks: ForkedRanks, output: Path, one_rank: Path, world: int, more: list[str]
):
    name = f"shared-{world}{''.join(more)}"
    printed = train(ranks, output, name, world, *more)
    assert_alike(output / name, one_rank)
    how = {1: "", 2: " by ddp", 4: " by ddp"}[world] if "fsdp" not in more else " by fsdp"
    assert f"ranks: {world} on cpu{how}, launcher" in printed
    samples = [json.loads((run / "summary.json").read_text())["samples"] for run in (output / name, one_rank)]
    assert samples[0] == samples[1]


@pytest.mark.parametrize("how", [["--strategy", "fsdp"], ["--ddp-overlap", "off"]], ids=" ".join)
def test_a_stopped_run_goes_on_to_the_same_bits(ranks: ForkedRanks, output: Path, how: list[str]):
    whole, cut = (f"{what}{''.join(how)}" for what in ("whole", "cut"))
    train(ranks, output, whole, 2, *how, model="drops")
    train(ranks, output, cut, 2, *how, model="drops", stop=(1, 2))
    assert "resumed at step 2, bit-exact" in train(ranks, output, cut, 2, *how, model="drops")
    names = ("loss", "grad_norm", "eval_loss")
    assert numbers(output / cut, *names) == numbers(output / whole, *names)
    hashes = [json.loads((output / name / "summary.json").read_text())["weights_sha256"] for name in (whole, cut)]
    assert hashes[0] == hashes[1]


def test_one_strategy_goes_on_from_what_the_other_saved_on_any_number_of_ranks(
    ranks: ForkedRanks, output: Path, one_rank: Path
):
    train(ranks, output, "across", 2, stop=(0, 1))
    printed = train(ranks, output, "across", 4, "--strategy", "fsdp", stop=(3, 2))
    assert "resumed at step 1, not bit-exact: ranks 2 → 4" in printed
    assert "--strategy ddp → fsdp" in printed
    printed = train(ranks, output, "across", 1)
    assert "resumed at step 2, not bit-exact: ranks 4 → 1" in printed
    assert_alike(output / "across", one_rank)


LOOK_AT_THE_GRADIENTS = """
import torch
from training import loop
clip = loop.clip_gradients
def look(parameters, most):
    parameters = list(parameters)
    for name, tensors in (("gradients", [p.grad for p in parameters]), ("weights", [p.detach() for p in parameters])):
        mine = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
        short = all(bool((tensor == tensor.bfloat16()).all()) for tensor in mine)
        print(name, {tensor.dtype for tensor in mine}, "short" if short else "long")
    return clip(parameters, most)
loop.clip_gradients = look
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_added_up_in_bfloat16_meet_weights_that_stay_float32(ranks: ForkedRanks, output: Path, strategy: str):
    name = f"short-{strategy}"
    more = ["--strategy", strategy, "--reduce-dtype", "bfloat16"]
    printed = train(ranks, output, name, 2, *more, model="drops", inject={0: LOOK_AT_THE_GRADIENTS})
    assert printed.count("gradients {torch.float32} short\nweights {torch.float32} long\n") == STEPS


# On the rank that has it, the gradient of the second step is not finite, and only where it leaves the first layer.
BAD_GRADIENT = """
import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
forward, seen = GPT2LMHeadModel.forward, []
class Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")
def bad(self, input_ids, labels=None, **more):
    out = forward(self, input_ids=input_ids, labels=labels, **more)
    if self.training:
        known = any(torch.equal(input_ids, other) for other in seen)
        seen.append(input_ids.clone())
        if len(seen) == 2 or known:
            out.loss = Bad.apply(out.loss)
    return out
GPT2LMHeadModel.forward = bad
"""


def test_a_gradient_that_is_not_finite_is_found_on_its_rank_also_where_nobody_holds_it_whole(
    ranks: ForkedRanks, output: Path
):
    more = ["--strategy", "fsdp", "--max-skipped-steps", "1"]
    printed = train(ranks, output, "bad", 2, *more, inject={1: BAD_GRADIENT})
    assert "warning: the gradient is not finite at step 2 on rank 1 (sequences " in printed
    losses = numbers(output / "bad", "loss")
    # The step after it is that of the weights before, without a trace of what was computed to find it.
    assert None not in losses
    assert losses[2] < losses[0]


HOLD_NOTHING_WHOLE = """
from training import model, strategy
build = model.build_model
def on_meta(*arguments):
    built = build(*arguments)
    assert all(parameter.is_meta for parameter in built.parameters())
    return built
model.build_model = strategy.build_model = on_meta
"""


def test_only_rank_0_ever_holds_the_whole_model_and_it_starts_from_its_weights(ranks: ForkedRanks, output: Path):
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(output / "plain"))
    start = output / "start"
    model.save_pretrained(start)  # type: ignore[operator]
    demo_tokenizer().save_pretrained(start)
    train(
        ranks, output, "given", 2, "--strategy", "fsdp", "--lr", "1e-9", model="start", inject={1: HOLD_NOTHING_WHOLE}
    )
    before, after = load_file(start / "model.safetensors"), weights(output / "given")
    assert before.keys() == after.keys()
    assert all(torch.allclose(tensor, after[name], atol=1e-7) for name, tensor in before.items())


TWO_LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_a_mixture_of_experts_is_shared_out_too_and_saved_as_its_files_are(ranks: ForkedRanks, output: Path):
    experts = AutoConfig.for_model("mixtral", vocab_size=512, num_local_experts=4, num_key_value_heads=1, **TWO_LAYERS)
    experts.save_pretrained(output / "experts")
    demo_tokenizer().save_pretrained(output / "experts")
    train(ranks, output, "experts-one", 1, model="experts")
    train(ranks, output, "experts-two", 2, "--strategy", "fsdp", model="experts")
    assert_alike(output / "experts-two", output / "experts-one")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "opt"])
def test_the_blocks_of_a_model_are_its_repeated_layers(family: str):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=32, **TWO_LAYERS))
    named = blocks(model)
    assert len({type(block) for block in named}) == 1
    assert len(named) == model.config.num_hidden_layers
    model._no_split_modules = None
    assert blocks(model) == named


def test_a_model_whose_blocks_share_a_tensor_is_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=32, **TWO_LAYERS))
    check_ties(model)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(
        InputError,
        match=r"--strategy fsdp: model.layers.0.mlp.gate_proj.weight and model.layers.1.mlp.gate_proj.weight are one "
        r"tensor; give --strategy ddp",
    ):
        check_ties(model)
