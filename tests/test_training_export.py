"""A run's model as a Hugging Face folder, and the card that goes with it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from tiny_training import flip_a_bit, tiny_run
from training import export
from training.config import TrainConfig
from training.incarnation import claim_incarnation
from training.manifest import Manifest
from training.model_card import CardFacts, curve_rows, render_card


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second of three checkpoints is the best."""
    return tiny_run(tmp_path_factory.mktemp("made") / "a", {2: 3.0, 4: 1.5, 6: 2.0})


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test."""
    return shutil.copytree(made, tmp_path / "outputs/a")


def exported(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit status and what was printed."""
    status = export.main(argv)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(input_ids=torch.arange(24).view(2, 12)).logits


def test_the_exported_model_gives_the_very_logits_of_the_checkpoint_and_its_tokenizer_works(run: Path, capsys):
    from transformers import AutoTokenizer

    status, printed = exported(capsys, str(run))
    assert (status, printed.splitlines()[0]) == (0, str(run / "export"))
    assert f"  step 6 of {run}/checkpoints/step-00000006, " in printed
    names = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    assert set(os.listdir(run / "export")) == names
    assert torch.equal(logits(run / "export"), logits(run / "checkpoints/step-00000006"))
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    assert tokenizer.decode(tokenizer("Give the plural. ß")["input_ids"]) == "Give the plural. ß"


def test_what_was_exported_can_be_had_as_json(run: Path, capsys):
    status, printed = exported(capsys, str(run), "--json")
    assert status == 0
    assert json.loads(printed) == {
        "folder": f"{run}/export",
        "checkpoint": f"{run}/checkpoints/step-00000006",
        "step": 6,
        "bytes": sum(path.stat().st_size for path in (run / "export").iterdir()),
        "card": f"{run}/export/README.md",
    }


@pytest.mark.parametrize(("which", "step"), [("last", 6), ("best", 4), ("2", 2)])
def test_the_checkpoint_is_chosen_by_its_step_or_as_the_best_or_the_last(run: Path, capsys, which: str, step: int):
    status, printed = exported(capsys, "a", "--output-dir", str(run.parent), "--checkpoint", which)
    assert status == 0
    assert f"step-{step:08d}, " in printed
    assert f"the checkpoint of step {step}." in (run / "export/README.md").read_text()


def test_one_checkpoints_folder_is_exported_into_its_run(run: Path, capsys):
    assert exported(capsys, str(run / "checkpoints/step-00000004"))[0] == 0
    assert "| held-out loss, nats per token | perplexity |" in (run / "export/README.md").read_text()


def test_the_last_checkpoint_is_one_that_no_later_attempt_has_overtaken(run: Path, capsys):
    claim_incarnation(run / "checkpoints", 0)
    claim_incarnation(run / "checkpoints", 4)
    status, printed = exported(capsys, str(run))
    assert status == 0
    assert "step 4 of" in printed
    claim_incarnation(run / "checkpoints", 0)
    status, printed = exported(capsys, str(run), "--overwrite")
    assert status == 64
    assert "a later attempt began anew and has no checkpoint yet; give --checkpoint 2, 4, 6" in printed


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_refused_and_leaves_nothing(run: Path, capsys, name: str):
    flip_a_bit(run / "checkpoints/step-00000006" / name)
    status, printed = exported(capsys, str(run))
    assert status == 64
    assert f"error: checkpoint {run}/checkpoints/step-00000006 is not as it was written ({name}" in printed
    assert printed.endswith("give another with --checkpoint STEP\n")
    assert set(os.listdir(run)) == {"checkpoints", "config.json", "metrics.jsonl"}


def test_a_copy_that_is_not_what_was_proved_is_refused_and_leaves_nothing(run: Path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.copyfile", lambda source, target: Path(target).write_bytes(b"else"))
    status, printed = exported(capsys, str(run))
    assert status == 64
    assert "error: the copy of " in printed
    assert set(os.listdir(run)) == {"checkpoints", "config.json", "metrics.jsonl"}


def test_a_checkpoint_that_the_training_removes_during_an_export_is_named(run: Path, capsys, monkeypatch):
    copyfile, checkpoint = shutil.copyfile, run / "checkpoints/step-00000006"

    def remove_first(source: Path, target: Path) -> None:
        shutil.rmtree(checkpoint, ignore_errors=True)
        copyfile(source, target)

    monkeypatch.setattr("shutil.copyfile", remove_first)
    status, printed = exported(capsys, str(run))
    assert status == 64
    assert printed == f"error: {checkpoint} was removed meanwhile by the training; run the same command again\n"
    assert set(os.listdir(run)) == {"checkpoints", "config.json", "metrics.jsonl"}


def test_an_export_is_replaced_only_when_that_is_asked_and_by_nothing_half(run: Path, capsys, monkeypatch):
    exported(capsys, str(run))
    (run / "export/README.md").write_text("mine")
    status, printed = exported(capsys, str(run))
    assert status == 64
    assert printed.startswith(f"error: {run}/export is there already: give --overwrite to replace it, or another --out")
    monkeypatch.setattr("training.model_card.render_card", lambda facts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.main([str(run), "--overwrite"])
    assert (run / "export/README.md").read_text() == "mine"
    monkeypatch.undo()
    assert exported(capsys, str(run), "--overwrite", "--checkpoint", "2")[0] == 0
    assert "step 2" in (run / "export/README.md").read_text()
    assert {path.name for path in run.iterdir() if path.name.startswith(".")} == set()


def test_a_folder_that_is_no_export_is_never_replaced(run: Path, capsys, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    status, printed = exported(capsys, str(run), "--output", str(tmp_path / "mine"), "--overwrite")
    assert status == 64
    assert "mine is there, and is no exported model: give another --output DIR" in printed
    assert (tmp_path / "mine/thesis.tex").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: RUN is missing; see `python -m training.export --help`"),
        (["{run}", "--bogus"], "unknown option --bogus"),
        (["none"], "'none': no such folder, and no run of that name in"),
        (["{run}", "--checkpoint", "3"], "--checkpoint 3: {run} has none of that step, there are 2, 4, 6"),
        (["{run}", "--checkpoint", "newest"], "--checkpoint newest: a step, best or last is wanted; there are 2, 4, 6"),
        (["{run}/checkpoints/step-00000002", "--checkpoint", "2"], "--checkpoint 2 is for a run's directory, and"),
        (["{run}", "--public"], "--public is for --push OWNER/NAME"),
        (["{run}", "--output", "/dev/null/x"], "/dev/null/x cannot be written"),
        (["{run}/.."], "there is neither a checkpoint nor a model"),
        (
            ["{run}", "--push", "me/model"],
            "nothing is exported yet of {run}: run `python -m training.export",
        ),
    ],
)
def test_each_bad_input_is_one_line_and_status_64(run: Path, capsys, argv: list[str], message: str):
    status, printed = exported(capsys, *(word.format(run=run) for word in argv))
    assert (status, len(printed.splitlines())) == (64, 1)
    assert printed.startswith("error: ")
    assert message.format(run=run) in printed


def test_pushing_without_a_token_says_where_to_get_one(run: Path, capsys, monkeypatch):
    exported(capsys, str(run))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    status, printed = exported(capsys, str(run), "--push", "me/model")
    assert (status, len(printed.splitlines())) == (64, 1)
    assert "--push me/model: there is no token for the hub: `hf auth login`, or set HF_TOKEN" in printed
    status, printed = exported(capsys, str(run), "--push", "me/a/model")
    assert "a name such as me/model is wanted" in printed


def test_pushing_without_a_network_says_what_to_push_from_elsewhere(run: Path, capsys, monkeypatch):
    exported(capsys, str(run))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, printed = exported(capsys, "a", "--output-dir", str(run.parent), "--push", "me/model")
    assert (status, len(printed.splitlines())) == (64, 1)
    assert "error: --push me/model: the hub cannot be reached (" in printed
    assert printed.endswith(f"push from a machine that reaches it: {run}/export\n")


def test_pushing_uploads_the_folder_as_it_is_to_a_private_model(run: Path, capsys, monkeypatch):
    from huggingface_hub import HfApi, RepoUrl

    exported(capsys, str(run))
    did: list[object] = []

    def create_repo(self: HfApi, name: str, **options: object) -> RepoUrl:
        did.append((name, options))
        return RepoUrl(f"https://huggingface.co/{name}")

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: did.append(options["folder_path"]))
    assert exported(capsys, str(run), "--push", "me/model")[0] == 0
    assert did == [("me/model", {"private": True, "exist_ok": True}), run / "export"]


def test_help_and_a_wrong_name_load_no_torch():
    program = """if True:
        import runpy, sys
        sys.argv[0] = "x"
        module = sys.argv.pop(1)
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            print("status", end.code, sorted({"torch", "transformers", "datasets"} & set(sys.modules)))
    """
    for module in ("training.export", "training.generate", "training.evaluate_model"):
        for argument, status in (("--help", 0), ("no-such-run", 64)):
            command = [sys.executable, "-c", program, module, argument]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
            assert done.stdout.splitlines()[-1] == f"status {status} []", (module, argument)


# ── the card ──────────────────────────────────────────────────────────────────────────────────────


def facts(**changes: object) -> CardFacts:
    options = TrainConfig(max_steps=10, seq_length=64).to_json() | changes
    manifest = Manifest(10, 320, 4, 1, None, 1.0, "abc", {})
    identity = {"--model-name": options["model_name"], "--dataset-name": options["dataset_name"]}
    rows = [{"step": step, "loss": 5 - step / 10} for step in range(1, 11)] + [{"step": 10, "eval_loss": 2.0}]
    conditions = {"device": "NVIDIA H100", "torch": "2.13", "transformers": "5.23", "--dtype": "bfloat16"}
    description = {"config": options, "identity": identity}
    return CardFacts("a", manifest, "gpt2", 124_439_808, description, rows, conditions, True)


def test_the_card_has_the_hubs_block_with_all_that_is_known():
    from huggingface_hub import ModelCard

    data = ModelCard(render_card(facts())).data
    assert (data.base_model, data.datasets) == ("openai-community/gpt2", ["tatsu-lab/alpaca"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["gpt2", "causal-lm", "slurm-mpi-train"]
    [result] = data.eval_results
    assert (result.dataset_type, result.dataset_split) == ("tatsu-lab/alpaca", "held-out")
    assert (result.metric_type, result.metric_value) == ("perplexity", 7.3891)


def test_the_card_says_what_it_was_trained_with():
    text = render_card(facts())
    for row in (
        "| tokens seen | 20,480 |",
        "| batch | 8 sequences × 1 accumulated × 4 ranks |",
        "| hardware | 4 × NVIDIA H100 |",
        "| 10 | 4.0000 | 2.0000 |",
        "| torch | 2.13 |",
    ):
        assert row in text
    assert "124,439,808 parameters" in text


def test_what_is_not_known_is_not_claimed():
    from huggingface_hub import ModelCard

    card = render_card(facts(from_scratch=True))
    assert ModelCard(card).data.base_model is None
    assert "`openai-community/gpt2`, from random initialisation" in card
    assert not {"license", "language"} & set(ModelCard(card).data.to_dict())
    bare = CardFacts("a", Manifest(1, 4, 1, 1, None, 1.0, "abc", {}), "gpt2", 9, {}, [], {}, False, "mit", "en")
    data = ModelCard(render_card(bare)).data.to_dict()
    assert "model-index" not in data
    assert (data["license"], data["language"]) == ("mit", "en")


def test_the_card_says_of_a_checkpoint_what_that_one_was_trained_with():
    made = facts()
    card = render_card(replace(made, conditions={**made.conditions, "--lr": 0.123, "--batch-size": 16}))
    assert "| peak learning rate | 0.123 |" in card
    assert "| batch | 16 sequences × 1 accumulated × 4 ranks |" in card


def test_the_card_says_by_which_commit_the_model_was_made_where_that_is_known():
    made = facts()
    for revision, line in (
        ({"commit": "47c6a35d", "dirty": False}, "| code | commit `47c6a35d` |\n"),
        ({"commit": "47c6a35d", "dirty": True}, "| code | commit `47c6a35d`, with changes that were not committed |\n"),
        (None, ""),
    ):
        card = render_card(replace(made, description={**made.description, "revision": revision}))
        assert line in card
        assert ("| code |" in card) == bool(line)


def test_a_path_of_this_machine_does_not_come_into_the_card():
    made = facts(model_name="/home/me/secret/gpt2", dataset_name="/home/me/secret/data.json")
    card = render_card(CardFacts(**{**vars(made), "hub_dataset": False}))
    assert "secret" not in card
    assert "| data | `data.json` |" in card


def test_the_curve_is_the_evaluated_steps_or_evenly_chosen_ones():
    steps = [{"step": step, "loss": 1.0} for step in range(1, 101)]
    chosen = [step for step, _, _ in curve_rows(steps, 90)]
    assert (len(chosen), chosen[0], chosen[-1]) == (12, 1, 90)
    evaluated = [*steps, {"step": 50, "eval_loss": 2.0}]
    assert curve_rows(evaluated, 100) == [(1, 1.0, None), (50, 1.0, 2.0)]
