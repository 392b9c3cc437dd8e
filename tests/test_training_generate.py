"""What a trained model writes: to the standard output the answers alone."""

import io
import json
from pathlib import Path

import pytest

from tiny_training import tiny_run
from training import generate
from training.prompt import alpaca_prompt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model, which takes 32 tokens."""
    return tiny_run(tmp_path_factory.mktemp("outputs") / "a", {2: 3.0, 4: 1.5})


def answered(capsys: pytest.CaptureFixture[str], run: Path, *argv: str) -> list[dict]:
    """The answers as JSON."""
    assert generate.main([str(run), "--json", *argv]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def greedy(folder: Path, prompt: str, tokens: int) -> str:
    """The same by a plain loop over the model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt)["input_ids"]
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[-tokens:]))


def test_without_sampling_each_token_is_the_likeliest_of_the_chosen_checkpoint(run: Path, capsys):
    for which, folder in (("2", "step-00000002"), ("best", "step-00000004")):
        [answer] = answered(capsys, run, "ab", "--max-new-tokens", "6", "--checkpoint", which)
        assert answer["answer"] == greedy(run / "checkpoints" / folder, "ab", 6)
        assert (answer["prompt"], answer["tokens"], answer["finished"]) == ("ab", 6, False)


def test_the_standard_output_has_the_answers_and_nothing_else(run: Path, capsys):
    assert generate.main([str(run), "ab", "cd", "--max-new-tokens", "3"]) == 0
    captured = capsys.readouterr()
    wanted = [greedy(run / "checkpoints/step-00000004", prompt, 3) for prompt in ("ab", "cd")]
    assert captured.out == "".join(f"{answer}\n" for answer in wanted)
    assert captured.err == f"step 4 of {run}/checkpoints/step-00000004 on cpu, the likeliest tokens\n"


@pytest.mark.parametrize(("terminal", "said"), [(False, "\x1b[2J\x9ba\n"), (True, "?[2J?a\n")])
def test_an_answer_cannot_steer_the_terminal(run: Path, capsys, monkeypatch, terminal: bool, said: str):
    monkeypatch.setattr(generate, "answers", lambda *_: [generate.Answer("ab", "\x1b[2J\x9ba", 3, True)])
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)

    assert generate.main([str(run), "ab"]) == 0

    assert capsys.readouterr().out == said


def test_what_is_drawn_follows_from_the_seed_and_not_from_the_prompts_before(run: Path, capsys):
    sampled = ["--do-sample", "--num-return-sequences", "2", "--max-new-tokens", "8"]
    first, second, *others = answered(capsys, run, "ab", "cd", *sampled)
    assert first["answer"] != second["answer"]
    assert answered(capsys, run, "cd", *sampled) == others
    assert answered(capsys, run, "cd", *sampled, "--seed", "1") != others


@pytest.mark.parametrize("option", [("--top-k", "1"), ("--top-p", "1e-9"), ("--temperature", "1e-4")], ids=" ".join)
def test_drawing_from_the_likeliest_alone_is_the_same_as_not_drawing(run: Path, capsys, option: tuple[str, str]):
    [plain] = answered(capsys, run, "ab", "--max-new-tokens", "6")
    assert answered(capsys, run, "ab", "--max-new-tokens", "6", *option) == [plain]


def test_an_answer_ends_before_its_end_of_text_token():
    from training.demo import demo_tokenizer

    tokenizer = demo_tokenizer()
    end = tokenizer.eos_token_id
    [a] = tokenizer("a")["input_ids"]
    assert vars(generate._answer(tokenizer, "q", [a, a, end, end])) == {
        "prompt": "q", "answer": "aa", "tokens": 2, "finished": True,
    }  # fmt: skip


def test_an_instruction_is_put_into_the_alpaca_prompt(run: Path, capsys):
    for argv, prompt in (
        (["Add 2."], alpaca_prompt("Add 2.", "")),
        (["Count.", "--input", "cat"], alpaca_prompt("Count.", "cat")),
    ):
        [answer] = answered(capsys, run, *argv, "--instruction", "--max-new-tokens", "2")
        assert answer["prompt"] == prompt


def test_a_run_of_instructions_hints_at_the_option(run: Path, capsys):
    (run / "summary.json").write_text(json.dumps({"samples": [{"prompt": alpaca_prompt("Add 2.", "")}]}))
    hint = "this run was trained on instructions: --instruction puts a prompt into their form"
    generate.main([str(run), "ab", "--max-new-tokens", "1"])
    assert hint in capsys.readouterr().err
    generate.main([str(run), "ab", "--max-new-tokens", "1", "--instruction"])
    assert hint not in capsys.readouterr().err
    (run / "summary.json").unlink()


def test_prompts_are_lines_of_a_file_or_of_the_standard_input(run: Path, capsys, tmp_path: Path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("ab\n\ncd e\n")
    argv = ["--max-new-tokens", "1"]
    from_file = answered(capsys, run, *argv, "--prompts-file", str(tmp_path / "prompts.txt"))
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\n\ncd e"))
    from_input = answered(capsys, run, *argv)
    assert [answer["prompt"] for answer in from_file] == ["ab", "cd e"]
    assert from_input == from_file


def test_of_a_prompt_that_is_too_long_the_end_is_shown_and_it_is_said(run: Path, capsys):
    [short] = answered(capsys, run, "b" * 28, "--max-new-tokens", "4")
    assert generate.main([str(run), "a" * 50 + "b" * 28, "--max-new-tokens", "4"]) == 0
    captured = capsys.readouterr()
    assert captured.out == short["answer"] + "\n"
    assert "the model takes 32 tokens: of 78 in the prompt the last 28 are shown" in captured.err
    [answer] = answered(capsys, run, "ab", "--max-new-tokens", "99")
    assert answer["tokens"] == 30


def test_an_empty_prompt_begins_after_an_end_of_text(run: Path, capsys):
    [answer] = answered(capsys, run, "", "--max-new-tokens", "3")
    assert answer["tokens"] == 3


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_standard_input_that_is_no_text_is_one_line_and_status_64(run: Path, capsys, monkeypatch, errors: str):
    """Where the locale is C, Python lets any byte through."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), "utf-8", errors))
    assert generate.main([str(run), "--max-new-tokens", "1"]) == 64
    captured = capsys.readouterr()
    assert captured.err.endswith("error: the standard input is no UTF-8 text; give a prompt on each line\n")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x", "--max-new-tokens", "0"], "--max-new-tokens 0: at least 1 is wanted"),
        (
            ["x", "--temperature", "0"],
            "--temperature 0.0: a number above 0 is wanted; for the likeliest tokens leave it",
        ),
        (["x", "--top-p", "1.5"], "--top-p 1.5: above 0 and at most 1 is wanted"),
        (["x", "--top-k", "many"], "Error parsing --top-k: 'many' is not a whole number"),
        (["x", "--input", "y"], "--input goes with an instruction: give --instruction too"),
        (["x", "--prompts-file", "y"], "prompts were given both as arguments and by --prompts-file"),
        (["--prompts-file", "none.txt"], "--prompts-file none.txt: No such file or directory; give a text file"),
        (["x", "--maxnew-tokens", "3"], "unknown option --maxnew-tokens: did you mean --max-new-tokens?"),
    ],
)
def test_each_bad_input_is_one_line_and_status_64(run: Path, capsys, argv: list[str], message: str):
    assert generate.main([str(run), *argv]) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_folder_whose_weights_cannot_be_loaded_is_one_line(capsys, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert generate.main([str(tmp_path), "x"]) == 64
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path} cannot be loaded (")
