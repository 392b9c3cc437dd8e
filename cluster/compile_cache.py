"""Where torch keeps what it compiles: on the node's own disk, for all ranks of the node, from one attempt to the next.

By default torch puts it below /tmp by the user's name, and Triton in the home directory, which is a file server's.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.node_local import make_private, node_local_folder

VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""The first also holds the compiled graphs and the results of autotuning
(https://docs.pytorch.org/tutorials/recipes/torch_compile_caching_tutorial.html)."""
GPUS = Path("/proc/driver/nvidia/gpus")


def compile_cache_variables(program: Sequence[str], run_dir: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables above, as far as the user has not set them, with folders that are there and this user's alone.

    Where the node's own disk offers none, or would not let compiled code be loaded, they lie in the run directory.
    """
    missing = {name: folder for name, folder in VARIABLES.items() if not environ.get(name)}
    if not missing:
        return {}
    local = node_local_folder(environ)
    if local is None or is_noexec(local):
        local = run_dir / "compiled" / os.uname().nodename
        if not (make_private(local.parent) and make_private(local)):
            return {}
    kind = local / cache_key(torch_version(program), gpu_models(GPUS))
    places = {name: kind / folder for name, folder in missing.items()}
    if not make_private(kind) or not all(make_private(place) for place in places.values()):
        return {}
    return {name: str(place) for name, place in places.items()}


def cache_key(torch: str | None, gpus: Sequence[str]) -> str:
    """A folder's name, so that what was compiled for another torch or another kind of GPU is never looked at."""
    words = ["torch", torch or "unknown", os.uname().machine, *(sorted(set(gpus)) or ["cpu"])]
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", "-".join(words))


def torch_version(program: Sequence[str]) -> str | None:
    """The torch that the program's Python has, by what its installer left; None where that is not to be found.

    The program's Python may be another than the launcher's, so it is looked for and not asked.
    """
    prefix = Path(program[0]).parent.parent
    for found in sorted(prefix.glob("lib/python3*/site-packages/torch-*.dist-info")):
        return found.name.removeprefix("torch-").removesuffix(".dist-info")
    return None


def gpu_models(folder: Path) -> list[str]:
    """The models of this node's NVIDIA GPUs, as the driver names them; none where there is no driver."""
    models: list[str] = []
    for information in sorted(folder.glob("*/information")):
        try:
            models += re.findall(r"^Model:\s*(.+?)\s*$", information.read_text(), re.MULTILINE)
        except OSError:
            continue
    return models


def is_noexec(folder: Path) -> bool:
    """Whether compiled code that lies there cannot be loaded."""
    return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
