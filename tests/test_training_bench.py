"""The bench: what it measures is real training, and what it prints is what it measured."""

import contextlib
import io
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import ROOT
from training.bench import report
from training.bench.__main__ import run
from training.bench.compare import make
from training.bench.limits import layer_products, parameters
from training.bench.nanogpt import NanoGPT
from training.bench.options import SIZES, SUBJECTS, ModelSize, options_from_argv
from training.bench.rounds import Turns, rotated, seconds_of_rounds
from training.bench.rounds import build as build_turns
from training.bench.setting import Setting, synthetic_tokens
from training.bench.start import arguments
from training.errors import InputError
from training.ranks import RankInfo

TINY = ["--device", "cpu", "--model", "tiny", "--batch-sizes", "4", "--seq-length", "32", "--steps-per-round", "4"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A bench of every subject: what it printed, and its JSON."""
    figures = tmp_path_factory.mktemp("bench") / "bench.json"
    printed = io.StringIO()
    options = options_from_argv([*TINY, "--subjects", *SUBJECTS, "--rounds", "2", "--json", str(figures)])
    with contextlib.redirect_stdout(printed):
        run(options, RankInfo("single"))
    return printed.getvalue(), json.loads(figures.read_text())


CPU_SETTING = Setting(
    size=SIZES["tiny"],
    batch_size=4,
    length=32,
    dropout=0.0,
    compiled=False,
    device=torch.device("cpu"),
    ranks=RankInfo("single"),
    tokens=np.zeros(0, np.uint16),
    seed=0,
)
SUBJECT_NAMES = [name for name in SUBJECTS if name != "limits"]


@pytest.mark.parametrize("name", SUBJECT_NAMES)
def test_every_subject_learns_and_is_compared_with_ours(whole: tuple[str, dict[str, Any]], name: str) -> None:
    [row] = [row for row in whole[1]["rows"] if row["subject"] == name]

    assert row["failed"] is None
    assert row["last_loss"] < row["first_loss"]
    assert len(row["tokens_per_second"]["rounds"]) == 2
    assert row["ours_over_this"]["median"] > 0
    assert row["matrix_share"] > 0


def test_the_limits_are_measured_in_the_same_rounds(whole: tuple[str, dict[str, Any]]) -> None:
    limits = {row["limit"]: row for row in whole[1]["limits"]}

    assert set(limits) == {"matrix product", "products of a step", "copy on the device"}
    assert all(len(row["measured"]["rounds"]) == 2 and row["measured"]["min"] > 0 for row in limits.values())


def test_the_table_has_every_row_of_the_json(whole: tuple[str, dict[str, Any]]) -> None:
    printed, figures = whole

    lines = [line.split() for line in printed.splitlines()]
    for row in figures["rows"]:
        median = f"{row['tokens_per_second']['median']:,.0f}"
        assert [row["subject"], str(row["batch_size"]), median] in [line[:3] for line in lines]


def test_a_subject_that_fails_is_a_row_with_the_reason() -> None:
    def build(setting: Setting) -> Any:
        raise RuntimeError("out of memory\nand many more words")

    turns = build_turns("chapter", CPU_SETTING, build)

    row = report.subject_row(turns, None, 1.0, None, None)
    assert (row["failed"], row["tokens_per_second"]) == ("RuntimeError: out of memory", None)
    [(_, [cells])] = report.tables({"limits": [], "rows": [row], "starts": []})
    assert cells[-1] == "RuntimeError: out of memory"


def test_the_passes_of_a_subject_whose_weights_are_moved_between_its_turns_are_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[str] = []
    monkeypatch.setattr("training.bench.ours.Ours", lambda *_, cuda_graphs, **__: chosen.append(cuda_graphs))

    make("ours", CPU_SETTING)
    make("ours", CPU_SETTING, parked=True)

    assert chosen == ["auto", "off"]


def test_without_accelerate_the_trainer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(InputError, match=r"accelerate is not installed: pip install 'slurm-mpi-train\[bench\]'"):
        make("trainer", CPU_SETTING)


def test_help_and_a_wrong_option_need_no_torch() -> None:
    code = (
        "import sys; from training.bench.__main__ import main; print(main(['--rounds', '0']), 'torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert done.stdout.split() == ["64", "False"]
    assert done.stderr == "error: --rounds 0: at least 1 is wanted\n"


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_model_is_gpt2_with_the_exact_gelu(bias: bool) -> None:
    size = ModelSize(layers=2, heads=2, width=16, vocabulary=50257, positions=12)
    torch.manual_seed(0)
    architecture = size.architecture(dropout=0.0) | {"activation_function": "gelu"}
    theirs: Any = GPT2LMHeadModel(GPT2Config(**architecture)).double()
    mine = NanoGPT(size, size.vocabulary, bias, dropout=0.0).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if not bias:
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
    copy_weights(theirs, mine)
    tokens = torch.randint(50257, (2, 12))

    logits, loss = mine(tokens[:, :-1], tokens[:, 1:].contiguous())
    expected = theirs(input_ids=tokens, labels=tokens)

    torch.testing.assert_close(logits, expected.logits[:, :-1])
    torch.testing.assert_close(loss.float(), expected.loss)


def copy_weights(theirs: Any, mine: NanoGPT) -> None:
    """From Hugging Face's model to nanoGPT's: linear layers are stored the other way round there."""
    core = theirs.transformer
    pairs: list[tuple[Any, Any]] = [(core.wte, mine.tokens), (core.wpe, mine.positions), (core.ln_f, mine.norm)]
    for block, own in zip(core.h, mine.blocks, strict=True):
        own_block: Any = own
        pairs += [(block.ln_1, own_block.norm_1), (block.ln_2, own_block.norm_2)]
        pairs += [(block.attn.c_attn, own_block.attention.query_key_value)]
        pairs += [(block.attn.c_proj, own_block.attention.out)]
        pairs += [(block.mlp.c_fc, own_block.feed_forward.up), (block.mlp.c_proj, own_block.feed_forward.out)]
    with torch.no_grad():
        for source, target in pairs:
            turned = isinstance(target, torch.nn.Linear)
            target.weight.copy_(source.weight.t() if turned else source.weight)
            if getattr(target, "bias", None) is not None:
                target.bias.copy_(source.bias)


def test_nanogpts_vocabulary_is_filled_up_and_its_output_tied() -> None:
    model = NanoGPT(SIZES["tiny"], 512, bias=True, dropout=0.0)

    assert model.head.weight is model.tokens.weight
    assert model.head.weight.shape == (512, 64)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_number_of_parameters_is_gpt2s(name: str) -> None:
    model: Any = GPT2LMHeadModel(GPT2Config(**SIZES[name].architecture(0.0)))

    assert parameters(SIZES[name]) == model.num_parameters()


def test_the_products_of_a_step_are_those_of_6n() -> None:
    size = SIZES["gpt2"]

    products = sum(inputs * outputs * times for inputs, outputs, times in layer_products(size))

    # Without biases, norms and positions, and with the vocabulary filled up.
    assert products == pytest.approx(parameters(size) - size.positions * size.width, rel=2e-3)


def test_frequent_tokens_are_as_frequent_as_in_text() -> None:
    tokens = synthetic_tokens(1000, 200_000, seed=0)

    counts = np.sort(np.bincount(tokens, minlength=1000))[::-1]

    assert tokens.dtype == np.uint16
    assert len(counts) == 1000
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.35)


def test_the_ratio_is_taken_round_by_round() -> None:
    ours = Turns("ours", 4, first_loss=3.0, last_loss=2.0, tokens_per_second=[100.0, 50.0, 80.0])
    other = Turns("nanogpt", 4, first_loss=3.0, last_loss=2.0, tokens_per_second=[50.0, 25.0, 100.0])

    row = report.subject_row(other, ours, flops_per_token=2.0, peak=1000.0, matrix=500.0)

    assert row["ours_over_this"]["rounds"] == [2.0, 2.0, 0.8]
    assert row["tokens_per_second"]["median"] == 50.0
    assert (row["mfu"], row["matrix_share"]) == (0.1, 0.2)


def test_best_compares_each_subject_at_its_own_best_batch_size() -> None:
    def row(name: str, batch_size: int, speed: float) -> dict[str, Any]:
        return report.subject_row(Turns(name, batch_size, tokens_per_second=[speed]), None, 1.0, None, None)

    best = report.best_rows([row("ours", 4, 10), row("nanogpt", 4, 8), row("ours", 8, 12), row("nanogpt", 8, 6)])

    assert [(one["subject"], one["batch_size"], one["ours_over_this"]) for one in best] == [
        ("ours", 8, 1.0),
        ("nanogpt", 4, 1.5),
    ]


def test_each_round_begins_with_another_subject() -> None:
    assert [rotated(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_one_more_subject_is_expected_to_be_as_slow_as_those_before() -> None:
    subject: Any = object()
    known = [Turns("a", 4, subject=subject, step_seconds=1.0), Turns("b", 4, subject=subject, step_seconds=3.0)]

    # 5 rounds of 8 steps and 2 to settle, of two subjects and one of 2 seconds a step.
    assert seconds_of_rounds([*known, Turns("c", 4, failed="no memory")], 8, 5) == 5 * 10 * 6.0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--subjects", "nobody"], "invalid choice: 'nobody'"),
        (["--rounds", "0"], "--rounds 0: at least 1 is wanted"),
        (["--batch-sizes", "4", "0"], "--batch-sizes 0: at least 1 is wanted"),
        (["--dropout", "1"], "--dropout 1.0: at least 0 and below 1 is wanted"),
        (["--seconds-limit", "0"], "--seconds-limit 0.0: a number above 0 is wanted"),
        (["--sedcnods"], "unrecognized arguments: --sedcnods"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as met:
        options_from_argv(argv)

    assert "\n" not in str(met.value)


def test_a_new_process_for_the_first_step_is_a_bench_of_that_subject_alone() -> None:
    asked = options_from_argv(["--model", "tiny", "--batch-sizes", "8", "4", "--seq-length", "16", "--dropout", "0.1"])

    child = options_from_argv(arguments("nanogpt", asked.resolved(gpu=False), "cpu")).resolved(gpu=True)

    assert (child.subjects, child.batch_sizes, child.rounds, child.start) == (["nanogpt"], [8], 1, 0)
    assert (child.model, child.seq_length, child.dropout, child.compile) == ("tiny", 16, 0.1, False)


def test_a_sequence_longer_than_the_model_takes_is_refused() -> None:
    options = options_from_argv(["--model", "gpt2", "--seq-length", "2048"])

    with pytest.raises(InputError, match="--seq-length 2048: gpt2 takes at most 1024; give that"):
        options.resolved(gpu=True)
