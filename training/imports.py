"""Importing what every training needs: once, and in one go.

On two ranks of two cores this is most of the time from the start to the first step, so it does nothing besides:
the garbage collector rests, and the process group is joined in the meantime (`training.joining`).
"""

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager

MODEL_CODE = (
    "transformers.modeling_utils",
    "transformers.modeling_layers",
    "transformers.masking_utils",
    "transformers.activations",
    "transformers.models.auto.modeling_auto",
)
"""What the file of every causal language model of transformers imports; the file itself takes a few milliseconds."""


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """A `with` block of imports in which no garbage is collected.

    Imports make a million objects that stay, and a collection walks all of them again each time that their number
    has grown by a quarter. Afterwards they count as permanent, so that no later collection walks them either
    (https://docs.python.org/3/library/gc.html#gc.freeze).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def import_model_code() -> None:
    """Import what a model needs whichever it is, before rank 0 has looked up which one that is."""
    for name in MODEL_CODE:
        importlib.import_module(name)
