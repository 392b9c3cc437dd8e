"""What must be the same for two attempts to compute the same."""

from dataclasses import fields, replace

import pytest
import torch

from training.config import TrainConfig
from training.random_state import conditions, differences
from training.run_directory import run_identity

CONFIG = TrainConfig()
BY_ANOTHER_NAME = {"max_steps", "num_epochs", "warmup_steps"}
"""Options that stand among the conditions as `steps` and `warm-up`."""
HARMLESS = {
    *(
        "experiment_name",
        "output_dir",
        "preset",
        "config",
        "streaming",
        "max_train_tokens",
        "pretrained",
        "from_scratch",
    ),
    *("cuda_graphs", "max_skipped_steps", "num_workers", "log_freq", "eval_freq", "max_eval_samples", "ckpt_freq"),
    *("keep_checkpoints", "mtbf_hours", "report_to", "report_interval"),
}
"""Options by which no step of a run that goes on computes anything else; the tokens are compared by their content."""


def changed(config: TrainConfig = CONFIG, hosts: str = "aabb", total: int = 100, warmup: int = 3) -> list[str]:
    """What differs from four ranks on two hosts with the default options."""
    before = conditions(CONFIG, "aabb", 100, 3, "float32", "torch", "cpu")
    return differences(before, conditions(config, hosts, total, warmup, "float32", "torch", "cpu"))


def test_the_same_request_has_the_same_conditions():
    assert changed(hosts="ccdd") == []


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("lr", 1e-3, "--lr 5e-05 → 0.001"),
        ("lr_scheduler", "linear", "--lr-scheduler cosine → linear"),
        ("weight_decay", 0.5, "--weight-decay 0.1 → 0.5"),
        ("max_grad_norm", 0.0, "--max-grad-norm 1.0 → 0.0"),
        ("deterministic", True, "--deterministic False → True"),
        ("strategy", "fsdp", "--strategy ddp → fsdp"),
        ("reduce_dtype", "bfloat16", "--reduce-dtype float32 → bfloat16"),
        ("ddp_bucket_cap_mb", 50, "--ddp-bucket-cap-mb 25 → 50"),
        ("ddp_overlap", "off", "--ddp-overlap auto → off"),
    ],
)
def test_an_option_that_changes_the_numbers_is_named(option: str, value: object, said: str):
    assert changed(replace(CONFIG, **{option: value})) == [said]  # type: ignore[arg-type]


def test_of_every_option_it_is_known_whether_it_changes_the_numbers():
    named = {*conditions(CONFIG, "a", 100, 3, "float32", "torch", "cpu"), *run_identity(CONFIG, {}, None)}
    compared = {name.removeprefix("--").replace("-", "_") for name in named}

    assert {field.name for field in fields(TrainConfig)} - compared == BY_ANOTHER_NAME | HARMLESS


def test_another_length_of_the_run_is_named():
    assert changed(total=200, warmup=6) == ["steps 100 → 200", "warm-up 3 → 6"]


def test_the_same_ranks_on_other_hosts_are_named():
    assert changed(hosts="abbb") == ["ranks per host 2,2 → 1,3"]


def test_a_processor_with_other_vectors_is_named(monkeypatch):
    before = conditions(CONFIG, "a", 100, 3, "float32", "torch", "cpu")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    [said] = differences(before, conditions(CONFIG, "a", 100, 3, "float32", "torch", "cpu"))
    assert said.startswith("vectors ")
    assert said.endswith(" → OTHER")
