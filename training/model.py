"""The model and its tokenizer, from a Hugging Face name, a local folder, or the built-in demo.

Only rank 0 asks the hub or reads weights; the other ranks build the same architecture and are sent the parameters
(`training.strategy`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import TrainConfig
from training.demo import DEMO, demo_architecture, demo_tokenizer
from training.errors import InputError, first_line
from training.hub import ask_hub

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
DESCRIPTION = ("*.json", "*.txt", "*.model", "*.jinja")
OTHERWISE = "give a local model folder, or --model-name demo, which is built in"


@dataclass(frozen=True)
class ModelSource:
    """What a model's name stands for."""

    name: str
    architecture: dict[str, Any]
    """The Hugging Face configuration, with `model_type`."""
    folder: Path | None
    """Where configuration, tokenizer and weights lie on the host of rank 0; None for the demo."""
    pretrained: bool
    """Whether training starts from weights in `folder`."""

    @property
    def of_text(self) -> dict[str, Any]:
        """The part of the configuration that is about text; of a model of text alone, all of it."""
        return self.architecture.get("text_config") or self.architecture


def find_model(config: TrainConfig, weights: bool = True) -> ModelSource:
    """Look the model up, downloading it where it is a hub name that the cache does not hold.

    Args:
        config: names the model and says whether weights are insisted on.
        weights: False asks for the description alone, to check a request without a download of gigabytes.

    Raises:
        InputError: no such model, no causal language model, no weights where they are insisted on, or a sequence
            longer than it takes.
    """
    if config.model_name == DEMO and not Path(DEMO).exists():
        source = ModelSource(DEMO, demo_architecture(), None, False)
    else:
        path = Path(config.model_name)
        folder = path if path.is_dir() else _hub_folder(config, weights)
        has_weights = any(any(folder.glob(pattern)) for pattern in WEIGHTS)
        source = ModelSource(
            config.model_name,
            _architecture(folder, config.model_name),
            folder,
            has_weights and not config.from_scratch,
        )
    if config.pretrained and not source.pretrained and (weights or source.folder is None):
        raise InputError(
            f"--pretrained, but --model-name {config.model_name} has no weights (*.safetensors or pytorch_model*.bin); "
            f"give a model that has some, or --from-scratch"
        )
    check_seq_length(config.seq_length, source)
    return source


def check_seq_length(seq_length: int, source: ModelSource) -> None:
    """Refuse sequences longer than the model's positions.

    Raises:
        InputError: names both lengths.
    """
    keys = ("n_positions", "max_position_embeddings")
    limit = next((source.of_text[key] for key in keys if source.of_text.get(key)), None)
    if limit is not None and seq_length > limit:
        raise InputError(
            f"--seq-length {seq_length}: --model-name {source.name} takes at most {limit} tokens; give that"
        )


def _hub_folder(config: TrainConfig, weights: bool) -> Path:
    """The snapshot of a hub model in the local cache, completed from the hub where that can be reached."""
    name = config.model_name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"--model-name {name}: no such folder; {OTHERWISE}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    weights = weights and not config.from_scratch
    info = ask_hub("model", name, OTHERWISE)
    reachable = info is not None
    patterns = [*DESCRIPTION]
    if weights:
        files = [file.rfilename for file in info.siblings or []] if info is not None else []
        patterns.append(WEIGHTS[0] if any(file.endswith(".safetensors") for file in files) else WEIGHTS[1])
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not reachable))
    except GatedRepoError as error:
        raise InputError(
            f"--model-name {name}: the hub wants its terms accepted and a token (HF_TOKEN); {OTHERWISE}"
        ) from error
    except OSError as error:
        raise InputError(
            f"--model-name {name}: no such folder, the hub cannot be reached, and it is not in the local cache; "
            f"{OTHERWISE}"
        ) from error
    if weights and not reachable and not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        # A cache filled in part must not turn a fine-tuning into a training from nothing.
        raise InputError(
            f"--model-name {name}: the hub cannot be reached and the local cache has no weights of it; "
            f"give --from-scratch to start from random initialisation, or a local model folder"
        )
    return folder


def _architecture(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise InputError(f"--model-name {name}: there is no config.json in {folder}; {OTHERWISE}")
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        architecture: dict[str, Any] = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--model-name {name}: {folder}/config.json cannot be used ({first_line(error)}); {OTHERWISE}"
        ) from error
    if architecture.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            f"--model-name {name}: {architecture.get('model_type')} is no causal language model that "
            f"transformers knows; {OTHERWISE}"
        )
    return architecture


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer.

    Raises:
        InputError: the model has none, or one with more tokens than the model has embeddings.
    """
    if source.folder is None:
        return demo_tokenizer()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"--model-name {source.name}: no tokenizer in {source.folder} ({first_line(error)}); {OTHERWISE}"
        ) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # What transformers makes of a folder that has no vocabulary, without a word.
        raise InputError(f"--model-name {source.name}: no tokenizer in {source.folder}; {OTHERWISE}")
    tokens = largest_token(tokenizer) + 1
    if tokens > source.of_text["vocab_size"]:
        raise InputError(
            f"--model-name {source.name}: its tokenizer has {tokens} tokens and its configuration a "
            f"vocab_size of {source.of_text['vocab_size']}; raise that in {source.folder}/config.json"
        )
    return tokenizer


def largest_token(tokenizer: Any) -> int:
    """Not its length less one: the numbers of a vocabulary may have gaps."""
    return max(tokenizer.get_vocab().values())


def build_model(architecture: dict[str, Any], weights: Path | None) -> Any:
    """The model in float32: from the weights of a folder, or randomly initialised from torch's current seed.

    Raises:
        InputError: the weights do not fit the architecture.
    """
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in architecture.items() if key != "model_type"}
    config = AutoConfig.for_model(architecture["model_type"], **values)
    if weights is None:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                weights, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise InputError(
                f"the weights in {weights} cannot be loaded ({first_line(error)}); give --from-scratch, or repair them"
            ) from error
        model, report = loaded
        if report["missing_keys"]:
            raise InputError(
                f"the weights in {weights} lack {len(report['missing_keys'])} of the model's tensors, "
                f"{min(report['missing_keys'])} for one; give --from-scratch, or repair them"
            )
    # Without it transformers looks the loss up by the class's name, which breaks torch.compile's graph
    # before the loss.
    model.loss_type = "ForCausalLM"
    return model


def check_predicts_next(model: Any) -> None:
    """Refuse a model that sees later tokens, or whose loss is not that of predicting each next one: transformers
    counts encoders and translators among the causal language models too.

    Raises:
        InputError: names the kind of model.
    """
    import torch
    from torch.nn import functional

    training, _ = model.training, model.eval()
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]])
    with torch.no_grad():
        told = model(input_ids=tokens, labels=tokens)
    model.train(training)
    first, second = logits = told.logits[:, :-1].float()
    more = float(told.loss) - float(functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    # A mixture of experts may add its router's loss.
    has_more = more < -1e-3 or (getattr(told, "aux_loss", None) is None and more > 1e-3)
    if has_more or not torch.allclose(first, second, atol=1e-5):
        raise InputError(
            f"--model-name: a {model.config.model_type} does not predict each next token from those before it; "
            f"{OTHERWISE}"
        )


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice out of the log."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
