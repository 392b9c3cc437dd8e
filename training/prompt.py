"""How a row of a dataset becomes the text of a document: its `text` column, or the alpaca prompt.

Source of the prompt: https://github.com/tatsu-lab/stanford_alpaca#data-release, word for word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.errors import InputError

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
RESPONSE = "### Response:\n"


@dataclass(frozen=True)
class TextRule:
    """Which columns a document is made of."""

    column: str | None
    """The column that holds the whole text, or None for the alpaca columns."""
    has_input: bool = False
    """Whether the alpaca column `input` is there; it may be empty in any row."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns that are read."""
        if self.column is not None:
            return [self.column]
        return ["instruction", *(["input"] if self.has_input else []), "output"]

    def texts(self, rows: Mapping[str, Sequence[Any]]) -> list[str]:
        """The text of every row of a batch; a missing value counts as empty text, a number as its digits."""
        if self.column is not None:
            return [_text(value) for value in rows[self.column]]
        return [prompt + answer for prompt, answer in self.questions(rows)]

    def questions(self, rows: Mapping[str, Sequence[Any]]) -> list[tuple[str, str]]:
        """The prompt and the expected answer of every row; for a plain text, its opening and what follows."""
        if self.column is not None:
            return [question_of(text) for text in self.texts(rows)]
        inputs = rows["input"] if self.has_input else [None] * len(rows["instruction"])
        return [
            (alpaca_prompt(_text(instruction), _text(context)), _text(answer))
            for instruction, context, answer in zip(rows["instruction"], inputs, rows["output"], strict=True)
        ]


def text_rule(columns: Sequence[str], wanted: str | None) -> TextRule:
    """The rule for a dataset with these columns: the wanted column, else `text`, else alpaca's columns.

    Raises:
        InputError: the columns hold no text that this knows to find.
    """
    if wanted is not None and wanted not in columns:
        raise InputError(f"--text-column {wanted}: the dataset has no such column, but {_listing(columns)}")
    if wanted is not None or "text" in columns:
        return TextRule(wanted or "text")
    if {"instruction", "output"} <= set(columns):
        return TextRule(None, has_input="input" in columns)
    raise InputError(
        f"the dataset has neither a column `text` nor the columns `instruction` and `output`, but "
        f"{_listing(columns)}; name the one to train on with --text-column"
    )


def alpaca_prompt(instruction: str, context: str) -> str:
    """The prompt up to the place where the answer begins."""
    if context.strip():
        return ALPACA_WITH_INPUT.format(instruction=instruction, input=context)
    return ALPACA_WITHOUT_INPUT.format(instruction=instruction)


def question_alone(prompt: str) -> str:
    """What an alpaca prompt asks, without what is the same in all of them; another text as it is."""
    question = prompt.split("### Instruction:\n")[-1].removesuffix(f"\n\n{RESPONSE}")
    return question.replace("\n\n### Input:\n", " ")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def question_of(text: str) -> tuple[str, str]:
    """A document as a prompt and what follows it: the response, else all but the opening."""
    question, response, answer = text.partition(RESPONSE)
    if response:
        return question + response, answer
    words = text.split(" ")
    cut = max(1, min(32, len(words) // 3))
    return " ".join(words[:cut]), " ".join(words[cut:])


def _listing(columns: Sequence[str]) -> str:
    return ", ".join(f"`{column}`" for column in columns) or "no columns at all"
