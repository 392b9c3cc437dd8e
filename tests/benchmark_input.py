"""How fast data becomes tokens and tokens become batches, beside what else is used for it.

    python tests/benchmark_input.py [ROUNDS]
    python tests/benchmark_input.py --second-start [TOKENS ...]

The first tokenises and packs the same documents: by the tokenizer alone, which only encodes, in the same batches, bare
and called through transformers; by `training.tokenise`, from the file on disk to the tokens on disk; and in the way of
Hugging Face's example run_clm, a map that tokenises and a map that concatenates and cuts. Then it reads batches of 64 ×
1024 tokens by `training.loader` and by nanoGPT's `get_batch`. What is compared runs in turns, after one round that only
warms up. Printed are the median with the smallest and largest of the rounds. The documents are those of ../shared/data
with the tokenizer of GPT-2 where that is there, else the built-in demo's.

The second makes caches of so many random tokens, and measures how long a start takes to find them.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_checkpoint import spread

from training.config import TrainConfig
from training.demo import demo_rows, demo_tokenizer
from training.documents import load_corpus
from training.loader import Loader
from training.model import quiet_libraries
from training.prepare import data_tokens
from training.prompt import TextRule
from training.sampler import RankBatches, SampleOrder
from training.source import SETTLED_SECONDS
from training.tokens import Blocks, open_tokens, publish_tokens, stage_tokens

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared/data"
LENGTH, BATCH, BATCHES = 1024, 64, 200
CLM_GOAL, BARE_GOAL, LOADER_GOAL = 3.0, 0.9, 5.0


def corpus_of(name: str) -> Any:
    """All documents of a dataset, none of them held out."""
    return load_corpus(TrainConfig(dataset_name=name, validation_split_percentage=0.0))


def real_or_demo(folder: Path) -> tuple[Path, Any, str]:
    """A file of documents with a column `text`, and a tokenizer; and what they are."""
    if DATA.is_dir():
        from transformers import AutoTokenizer

        source, tokenizer = str(DATA / "gsm8k_alpaca.json"), AutoTokenizer.from_pretrained(DATA / "gpt2")
        name = "GSM8K, tokenizer of GPT-2"
        texts = [text for batch in corpus_of(source).batches() for text in batch.texts]
    else:
        tokenizer, name = demo_tokenizer(), "the demo's data and tokenizer"
        texts = TextRule(None, has_input=True).texts(demo_rows(20_000))
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path, tokenizer, name


def bare(tokenizer: Any, texts: list[str]) -> None:
    """The fastest that the tokenizer's own library has: encode, and throw the result away."""
    for start in range(0, len(texts), 1000):
        tokenizer.backend_tokenizer.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False)


def called(tokenizer: Any, texts: list[str]) -> None:
    """The same through transformers."""
    for start in range(0, len(texts), 1000):
        tokenizer(texts[start : start + 1000], add_special_tokens=False)


def ours(path: Path, tokenizer: Any, folder: Path) -> None:
    """From the file to a cache on disk."""
    publish_tokens(
        stage_tokens(folder, corpus_of(str(path)), tokenizer),
        folder,
    )


def run_clm(path: Path, tokenizer: Any, cache: Path) -> None:
    """As the example run_clm.py of transformers does it, in one process as by default: load, tokenise, group."""
    import datasets

    datasets.disable_progress_bars()
    raw = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    tokenised = raw.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=raw.column_names)

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(chain(*values)) for name, values in rows.items()}
        whole = len(joined["input_ids"]) // LENGTH * LENGTH
        cut = {name: [row[i : i + LENGTH] for i in range(0, whole, LENGTH)] for name, row in joined.items()}
        return {**cut, "labels": [row.copy() for row in cut["input_ids"]]}

    tokenised.map(group, batched=True)


def seconds_of(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def in_turns(rounds: int, **works: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds of each in each round, after one that only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            taken = seconds_of(work)
            if number:
                seconds[name].append(taken)
    return seconds


def times(slow: list[float], fast: list[float]) -> str:
    return spread([one / other for one, other in zip(slow, fast, strict=True)])


def measure_tokenising(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, tokenizer, what = real_or_demo(folder)
        texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        numbers = iter(range(10**6))
        ours(path, tokenizer, folder / "tokens")
        tokens = len(open_tokens(folder / "tokens").train)
        seconds = in_turns(
            rounds,
            bare=lambda: bare(tokenizer, texts),
            called=lambda: called(tokenizer, texts),
            ours=lambda: ours(path, tokenizer, folder / f"tokens-{next(numbers)}"),
            run_clm=lambda: run_clm(path, tokenizer, folder / f"run_clm-{next(numbers)}"),
        )
    print(f"tokenise and pack {tokens:,} tokens ({what}), {len(os.sched_getaffinity(0))} CPUs, {rounds} rounds")
    for way, taken in seconds.items():
        print(f"{way:<12} {spread(taken)} s   {spread([tokens / one / 1e6 for one in taken])} million tokens a second")
    print(f"ours is      {times(seconds['run_clm'], seconds['ours'])} times run_clm (goal: at least {CLM_GOAL})")
    print(
        f"ours is      {times(seconds['bare'], seconds['ours'])} times the bare tokenizer (goal: at least {BARE_GOAL})"
    )


def measure_loading(rounds: int, device: torch.device) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "train.bin"
        np.random.default_rng(0).integers(0, 50257, 100_000_000, dtype=np.uint16).tofile(path)
        blocks = Blocks(np.memmap(path, np.uint16, "r"), LENGTH)
        batches = RankBatches(SampleOrder(len(blocks), 0), 0, 1, BATCH, 1, 0, BATCHES)

        def loader() -> None:
            for batch in Loader(blocks, batches, 0, device):
                assert batch.shape == (BATCH, LENGTH)
            synchronise(device)

        def get_batch() -> None:
            for _ in range(BATCHES):
                x, y = nanogpt_batch(path, device)
                assert x.shape == y.shape == (BATCH, LENGTH)
            synchronise(device)

        seconds = in_turns(rounds, get_batch=get_batch, loader=loader)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"batches of {BATCH} × {LENGTH} tokens on {where}, {rounds} rounds of {BATCHES}")
    for way, taken in seconds.items():
        print(f"{way:<12} {spread([one / BATCHES * 1e3 for one in taken])} ms a batch")
    print(
        f"loader is    {times(seconds['get_batch'], seconds['loader'])} times get_batch (goal: at least {LOADER_GOAL})"
    )


def nanogpt_batch(path: Path, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What nanoGPT's train.py does for each batch: map the file anew, take windows at random places, widen, stack."""
    data = np.memmap(path, np.uint16, "r")
    starts = torch.randint(len(data) - LENGTH, (BATCH,))
    x = torch.stack([torch.from_numpy(data[start : start + LENGTH].astype(np.int64)) for start in starts])
    y = torch.stack([torch.from_numpy(data[start + 1 : start + 1 + LENGTH].astype(np.int64)) for start in starts])
    if device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
    return x, y


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Synthetic:
    """A tokenizer that takes no time: random tokens, one for each character."""

    eos_token_id = 50256

    def __init__(self, characters: int) -> None:
        self._ids = np.random.default_rng(0).integers(0, 50256, characters).tolist()

    def __len__(self) -> int:
        return 50257

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [self._ids for _ in texts]}

    def get_vocab(self) -> dict[str, int]:
        return {"x": self.eos_token_id}


def measure_second_start(tokens: int, rounds: int) -> None:
    characters = 999_999
    with tempfile.TemporaryDirectory() as name:
        data, tokenizer = Path(name) / "data.jsonl", Synthetic(characters)
        line = json.dumps({"text": "x" * characters}) + "\n"
        with data.open("w") as file:
            file.writelines(line for _ in range(tokens // 10**6))
        time.sleep(SETTLED_SECONDS)
        config = TrainConfig(dataset_name=str(data), output_dir=Path(name) / "out", validation_split_percentage=0)

        def start(whole: bool = False) -> None:
            with data_tokens(config, tokenizer, print, whole=whole) as found:
                found.publish()
                assert len(found.corpus.train) == tokens

        made = seconds_of(start)
        seconds = in_turns(rounds, start=start, whole=lambda: start(whole=True))
    print(f"tokens of a file of {len(line) * (tokens // 10**6) / 1e9:.3f} GB: {tokens:,}, {rounds} rounds")
    print(f"made         {made:.3f} s")
    print(f"found        {spread(seconds['start'])} s")
    print(f"every byte   {spread(seconds['whole'])} s")


if __name__ == "__main__":
    quiet_libraries()
    if sys.argv[1:2] == ["--second-start"]:
        for count in map(int, sys.argv[2:] or ["5000000", "1000000000"]):
            measure_second_start(count, 9)
    else:
        rounds_asked = int(sys.argv[1]) if len(sys.argv) > 1 else 7
        if torch.cuda.is_available():
            measure_loading(rounds_asked, torch.device("cuda:0"))
        measure_loading(rounds_asked, torch.device("cpu"))
        measure_tokenising(rounds_asked)
