"""The built-in data, tokenizer and model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.demo import demo_architecture, demo_rows, demo_tokenizer
from training.prompt import alpaca_prompt

TOKENIZER = demo_tokenizer()


def test_the_rows_are_the_same_for_the_same_seed_and_several_thousand():
    rows = demo_rows()
    assert {name: len(column) for name, column in rows.items()} == {"instruction": 6000, "input": 6000, "output": 6000}
    assert demo_rows() == rows != demo_rows(seed=1)


def test_the_answers_are_right():
    rows = demo_rows()
    for instruction, word, answer in zip(rows["instruction"], rows["input"], rows["output"], strict=True):
        if instruction in ("Write the word in capitals.", "Make it upper case."):
            assert answer == word.upper()
        if instruction.startswith("Add "):
            a, b = instruction.removeprefix("Add ").rstrip(".").split(" and ")
            assert int(answer) == int(a) + int(b)


@given(st.text())
def test_any_text_survives_encoding_and_decoding(text: str):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    if "<|endoftext|>" not in text:
        assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_prompts_fixed_pieces_are_one_token_each():
    prompt = alpaca_prompt("Say it.", "é")
    assert len(TOKENIZER(prompt)["input_ids"]) == 3 + len(b"Say it.") + len("é".encode())


def test_the_model_has_an_embedding_for_every_token():
    assert demo_architecture()["vocab_size"] == len(TOKENIZER)
    assert demo_architecture()["eos_token_id"] == TOKENIZER.eos_token_id


@pytest.mark.parametrize("word", ["", "<|endoftext|>"])
def test_the_end_of_text_is_one_token_of_its_own(word):
    assert TOKENIZER(word)["input_ids"] == ([256] if word else [])
