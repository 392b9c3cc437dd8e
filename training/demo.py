"""The built-in demo: instruction data, a byte-level tokenizer and a small GPT-2 that learns it in minutes,
offline.

Every answer is a short function of its question (a sum, a plural, a word in capitals), asked in several
wordings, so that a model of under a million parameters gets visibly better within a few hundred steps and a
held-out question can be answered.
"""

import random
from typing import TYPE_CHECKING, Any

from training.prompt import ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEMO = "demo"
ROWS = 6000
END_OF_TEXT = "<|endoftext|>"

# Few words, and few sums below: each comes often enough to be learned within the few minutes that a demo has.
WORDS = ("bird", "boat", "cake", "door", "fish", "frog", "hand", "king", "moon", "rain", "star", "wolf")
IRREGULAR_PLURALS = {"fish": "fish", "wolf": "wolves"}
OPPOSITES = {"hot": "cold", "big": "small", "up": "down", "fast": "slow", "light": "dark", "young": "old"}


def demo_rows(count: int = ROWS, seed: int = 0) -> dict[str, list[str]]:
    """Instruction data in alpaca's columns: `instruction`, `input` (may be empty) and `output`, `count` rows
    each."""
    chance = random.Random(seed)
    rows = [_row(chance) for _ in range(count)]
    return {column: [row[i] for row in rows] for i, column in enumerate(("instruction", "input", "output"))}


def _row(chance: random.Random) -> tuple[str, str, str]:
    task = chance.choice((_sum, _sum, _difference, _opposite, _plural, _capitals, _copy, _first_letter, _length))
    return task(chance)


def _sum(chance: random.Random) -> tuple[str, str, str]:
    a, b = chance.randint(1, 5), chance.randint(1, 5)
    wording = chance.choice(("What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?"))
    return wording.format(a=a, b=b), "", str(a + b)


def _difference(chance: random.Random) -> tuple[str, str, str]:
    b, rest = chance.randint(1, 5), chance.randint(1, 5)
    wording = chance.choice(("What is {a} minus {b}?", "Take {b} from {a}.", "How much is {a} - {b}?"))
    return wording.format(a=b + rest, b=b), "", str(rest)


def _opposite(chance: random.Random) -> tuple[str, str, str]:
    pair = list(chance.choice(list(OPPOSITES.items())))
    chance.shuffle(pair)
    wording = chance.choice(("What is the opposite of {}?", "Name the opposite of {}."))
    return wording.format(pair[0]), "", pair[1]


def _plural(chance: random.Random) -> tuple[str, str, str]:
    word = chance.choice(WORDS)
    return (
        chance.choice(("Give the plural.", "Say it for two of them.")),
        word,
        IRREGULAR_PLURALS.get(word, word + "s"),
    )


def _capitals(chance: random.Random) -> tuple[str, str, str]:
    word = chance.choice(WORDS)
    return chance.choice(("Write the word in capitals.", "Make it upper case.")), word, word.upper()


def _copy(chance: random.Random) -> tuple[str, str, str]:
    word = chance.choice(WORDS)
    return chance.choice(("Repeat the word.", "Copy the word.")), word, word


def _first_letter(chance: random.Random) -> tuple[str, str, str]:
    word = chance.choice(WORDS)
    return chance.choice(("What is the first letter?", "Name the first letter.")), word, word[0]


def _length(chance: random.Random) -> tuple[str, str, str]:
    word = chance.choice(WORDS)
    return chance.choice(("Count the letters.", "How many letters are there?")), word, str(len(word))


def demo_tokenizer() -> "PreTrainedTokenizerFast":
    """One token per byte, an end-of-text token, and one token for each fixed piece of the alpaca prompt.

    The prompt's fixed pieces are 4 of every 5 bytes of a demo row and teach nothing; as single tokens they
    leave the CPU's time to the questions and answers. Encoding and decoding stays lossless for any text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in _prompt_pieces()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def _prompt_pieces() -> list[str]:
    pieces: list[str] = []
    for template in (ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT):
        for piece in template.replace("{instruction}", "\0").replace("{input}", "\0").split("\0"):
            if piece and piece not in pieces:
                pieces.append(piece)
    return pieces


def demo_architecture() -> dict[str, Any]:
    """The configuration of the demo model: GPT-2 with 4 layers of width 128, about 0.9 million parameters."""
    return {
        "model_type": "gpt2",
        "vocab_size": 256 + 1 + len(_prompt_pieces()),
        "n_positions": 256,
        "n_embd": 128,
        "n_layer": 4,
        "n_head": 4,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 256,
        "eos_token_id": 256,
    }
