"""What the Hugging Face hub says of a model or dataset, asked once and without waiting long."""

from typing import Any, Literal

from training.errors import InputError


def ask_hub(kind: Literal["model", "dataset"], name: str, otherwise: str) -> Any | None:
    """The hub's description of it; None where the hub cannot be reached. `otherwise` says what to give instead.

    Raises:
        InputError: the hub answers, and has no such model or dataset or keeps it from this user.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        return ask(name, timeout=10)
    except HFValidationError as error:
        here = "folder" if kind == "model" else "file"
        raise InputError(f"--{kind}-name {name}: no such {here}, and no name of a hub {kind}; {otherwise}") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"--{kind}-name {name}: the hub has no such {kind}, or it is private and no token is set (HF_TOKEN); "
            f"{otherwise}"
        ) from error
    except Exception:
        # Offline mode, no route, a proxy's refusal, a time-out: as many classes as there are HTTP libraries.
        return None
