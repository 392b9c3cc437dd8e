"""Named sets of defaults: what the command line and the TOML file say still wins."""

from collections.abc import Mapping
from typing import Any

_BUILT_IN = {"dataset_name": "demo", "model_name": "demo", "weight_decay": 0.01, "ckpt_freq": "100"}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Sized for 4 ranks on 2 CPU cores: under two and a half minutes from the command to the summary.
    "demo": {
        **_BUILT_IN,
        "seq_length": 128,
        "batch_size": 4,
        "max_steps": 450,
        "lr": 4e-3,
        "eval_freq": 100,
        "max_eval_samples": 64,
    },
    "smoke": {
        **_BUILT_IN,
        "seq_length": 64,
        "batch_size": 4,
        "max_steps": 30,
        "lr": 3e-3,
        "eval_freq": 0,
        "max_eval_samples": 16,
    },
}
