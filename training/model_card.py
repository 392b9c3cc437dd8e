"""The model card of an exported model: what is known of how it came about, as a `README.md` of the Hugging Face hub.

The block on top is the hub's (https://huggingface.co/docs/hub/model-cards); what is not known is left out of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from training.config import option_name
from training.evaluate import perplexity
from training.manifest import Manifest

CURVE_ROWS = 12
SETTINGS = {
    "lr": "peak learning rate",
    "lr_scheduler": "schedule",
    "weight_decay": "weight decay",
    "max_grad_norm": "gradient clipping",
    "seed": "seed",
    "packing": "packing",
}
HOW_TO_LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```"""


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of."""

    name: str
    """Of the model: the experiment's."""
    manifest: Manifest
    model_type: str
    """Of its configuration."""
    parameters: int
    description: Mapping[str, Any]
    """The run's `config.json`; empty where the checkpoint was found without its run."""
    rows: Sequence[Mapping[str, Any]]
    """Of the run's `metrics.jsonl`."""
    conditions: Mapping[str, Any]
    """Under which the checkpoint was made: device, ranks and versions, by `training.random_state.conditions`."""
    hub_dataset: bool
    """The dataset's name is one of the hub."""
    license: str | None = None
    """An identifier of the hub, such as `apache-2.0`; only the user knows."""
    language: str | None = None
    """A code such as `en`; likewise."""

    @property
    def options(self) -> Mapping[str, Any]:
        return self.description.get("config", {})

    @property
    def base_model(self) -> str | None:
        """The hub's name of the model whose weights it began with."""
        return self.options["model_name"] if self.hub_model and not self.options.get("from_scratch") else None

    @property
    def hub_model(self) -> bool:
        """The model's name is one of the hub; a run knows the whole of a path."""
        known = self.description.get("identity", {}).get("--model-name")
        return known not in (None, "demo") and not known.startswith("/")

    @property
    def held_out_loss(self) -> float | None:
        """Of the checkpoint's weights, in nats per token."""
        rows = [row for row in self.rows if row["step"] == self.manifest.step and row.get("eval_loss") is not None]
        return rows[-1]["eval_loss"] if rows else self.manifest.held_out_loss


def render_card(facts: CardFacts) -> str:
    """The card's text, with the hub's block on top."""
    from huggingface_hub import EvalResult, ModelCardData

    dataset = facts.options.get("dataset_name")
    results = None
    if facts.held_out_loss is not None and dataset is not None:
        label = _label(dataset, facts.hub_dataset)
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=label,
                dataset_name=label,
                dataset_config=facts.options.get("dataset_subset"),
                dataset_split="held-out",
                metric_type="perplexity",
                metric_name="perplexity",
                metric_value=round(perplexity(facts.held_out_loss), 4),
            )
        ]
    data = ModelCardData(
        base_model=facts.base_model,
        datasets=[dataset] if dataset is not None and facts.hub_dataset else None,
        language=facts.language,
        library_name="transformers",
        license=facts.license,
        pipeline_tag="text-generation",
        tags=[facts.model_type, "causal-lm", "slurm-mpi-train"],
        model_name=facts.name if results else None,
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_text(facts)}"


def _text(facts: CardFacts) -> str:
    options, manifest = facts.options, facts.manifest
    parts = [
        f"# {facts.name}",
        _opening(facts),
        "## Use",
        HOW_TO_LOAD,
    ]
    if facts.held_out_loss is not None:
        parts += [
            "## Evaluation",
            _table(
                ("held-out loss, nats per token", "perplexity"),
                [(f"{facts.held_out_loss:.4f}", f"{perplexity(facts.held_out_loss):.4f}")],
            ),
        ]
    if options:
        parts += ["## Training", _table(("", ""), _settings(facts))]
    curve = curve_rows(facts.rows, manifest.step)
    if curve:
        parts += ["## Curve", _table(("step", "loss", "held-out loss"), [tuple(map(_cell, row)) for row in curve])]
    parts += ["## Origin", _table(("", ""), _origin(facts))]
    return "\n\n".join(parts) + "\n"


def _opening(facts: CardFacts) -> str:
    return (
        f"A causal language model ({facts.model_type}, {facts.parameters:,} parameters, float32), trained with "
        f"slurm-mpi-train: the checkpoint of step {facts.manifest.step:,}."
    )


def _settings(facts: CardFacts) -> list[tuple[str, str]]:
    options, manifest = facts.options, facts.manifest
    model = f"`{_label(options['model_name'], facts.hub_model)}`"
    if options.get("from_scratch") or options["model_name"] == "demo":
        model += ", from random initialisation"
    # The checkpoint knows for itself; the run's options are those of the latest attempt.
    known = {name: facts.conditions.get(option_name(name), value) for name, value in options.items()}
    batch, accumulation = known["batch_size"], known["gradient_accumulation_steps"]
    rows = [
        ("model", model),
        ("data", f"`{_label(options['dataset_name'], facts.hub_dataset)}`"),
        ("steps", f"{manifest.step:,}"),
        ("sequences", f"{manifest.samples:,} of {options['seq_length']:,} tokens"),
        ("tokens seen", f"{manifest.samples * options['seq_length']:,}"),
        ("batch", f"{batch} sequences × {accumulation} accumulated × {manifest.world_size} ranks"),
        *((label, str(known[name])) for name, label in SETTINGS.items() if name in known),
    ]
    if options.get("dataset_subset"):
        rows.insert(2, ("subset", f"`{options['dataset_subset']}`"))
    if facts.conditions:
        precision, kernels = facts.conditions.get("--dtype"), facts.conditions.get("--kernels")
        rows.append(("precision", f"float32 weights, {precision} passes ({kernels} kernels)"))
        rows.append(("hardware", f"{manifest.world_size} × {facts.conditions.get('device')}"))
    speeds = [row["tokens_per_second"] for row in facts.rows if row.get("tokens_per_second")]
    if speeds:
        rows.append(("speed", f"{median(speeds):,.0f} tokens/s"))
    return rows


def _origin(facts: CardFacts) -> list[tuple[str, str]]:
    versions = [(name, str(facts.conditions[name])) for name in ("torch", "transformers") if name in facts.conditions]
    if revision := facts.description.get("revision"):
        changed = ", with changes that were not committed" if revision["dirty"] else ""
        versions.insert(0, ("code", f"commit `{revision['commit']}`{changed}"))
    return [*versions, ("SHA-256 of the weights", f"`{facts.manifest.weights_sha256}`")]


def curve_rows(
    rows: Sequence[Mapping[str, Any]], until: int, most: int = CURVE_ROWS
) -> list[tuple[int, float | None, float | None]]:
    """Steps with their training and held-out loss, None where there is none: the evaluated steps, or all where none was
    evaluated; of many so many, evenly chosen, the first and the last among them.

    Args:
        rows: of `metrics.jsonl`.
        until: the last step.
        most: how many, at least 2.
    """
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row and row["step"] <= until}
    held_out = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row and row["step"] <= until}
    steps = sorted({*held_out, *list(losses)[:1]} if held_out else losses)
    if len(steps) > most:
        steps = [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]
    return [(step, losses.get(step), held_out.get(step)) for step in steps]


def _label(name: str, hub: bool) -> str:
    """A name of the hub as it is; of a path the last part, because a card is public."""
    text = name if hub else Path(name).name
    return "".join(letter for letter in text if letter.isprintable() and letter not in "`|")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
