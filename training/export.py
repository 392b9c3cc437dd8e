"""Write a run's model as a Hugging Face folder, and, as a step of its own, push that folder to the hub.

    python -m training.export outputs/a
    python -m training.export a --checkpoint best --output model/
    python -m training.export outputs/a --push me/model

The folder holds weights, configuration, generation configuration and tokenizer as the checkpoint has them, byte for
byte, and a model card. Exit status: 0 it is there, 64 the request is wrong.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from training.command import run_command
from training.config import TrainConfig, parse_options
from training.disk_space import size
from training.errors import InputError, class_and_line, first_line
from training.run_directory import RunDirectory

if TYPE_CHECKING:
    from training.manifest import Manifest
    from training.trained import Trained

PROG = "python -m training.export"


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's model as a Hugging Face folder; with --push, push the folder that was written to the hub.

    python -m training.export a

    python -m training.export a --push me/model
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run's directory, the name of an experiment below --output-dir, or one checkpoint's folder. With --push also the
    exported folder itself."""

    checkpoint: Annotated[str | None, arg(metavar="STEP|best|last")] = None
    """Which checkpoint of the run: a step, best (the lowest held-out loss), or last, which is also taken without this
    option."""

    output: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """The folder to write. Without it: RUN/export."""

    overwrite: bool = False
    """Replace an export that is there already."""

    license: Annotated[str | None, arg(metavar="ID")] = None
    """For the model card: the licence you give the model, as the hub writes it (apache-2.0)."""

    language: Annotated[str | None, arg(metavar="CODE")] = None
    """For the model card: the language of the data (en)."""

    output_dir: Annotated[Path, arg(metavar="DIR")] = TrainConfig.output_dir
    """Where the directories of experiments lie."""

    push: Annotated[str | None, arg(metavar="OWNER/NAME")] = None
    """Write nothing, but push the folder that an export before has written to this model of the hub."""

    public: bool = False
    """With --push: a model that is not there yet is made public; without it private."""

    json: bool = False
    """Print one JSON object instead of lines."""


def main(argv: Sequence[str]) -> int:
    """Export or push as the command line says; the process's exit status."""

    def work() -> None:
        options = parse_options(argv, PROG, ExportOptions)
        done = push(options) if options.push is not None else export(options)
        print(json.dumps(done) if options.json else text_of(done), flush=True)

    return run_command(work, "nothing was exported")


def text_of(done: Mapping[str, Any]) -> str:
    """What was written or pushed, for people."""
    if "url" in done:
        return f"{done['folder']} → {done['url']}"
    what = f"step {done['step']} of {done['checkpoint']}, {size(done['bytes'])}"
    return f"{done['folder']}\n  {what}\n  card: {done['card']}"


def export(options: ExportOptions) -> dict[str, Any]:
    """Write the folder; which it is, of which checkpoint, and its size in bytes.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or the folder cannot be written.
    """
    from training.trained import find_trained

    if options.public:
        raise InputError("--public is for --push OWNER/NAME; leave it out, or give both")
    trained = find_trained(options.run, options.output_dir, options.checkpoint)
    if trained.manifest is None:
        raise InputError(f"{trained.folder} is a model's folder already, and no checkpoint; nothing is to be exported")
    if options.output is not None:
        folder = options.output
    elif trained.run is not None:
        folder = trained.run.export
    else:
        raise InputError(f"{trained.folder} lies in no run's directory: give --output DIR")
    _check_replaceable(folder, options.overwrite)

    aside = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _fill(aside, trained, options)
        _put_in_place(aside, folder)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and Path(error.filename or "").parent == trained.folder:
            raise InputError(
                f"{trained.folder} was removed meanwhile by the training; run the same command again"
            ) from error
        raise InputError(
            f"{folder} cannot be written: {error.filename or aside}: {error.strerror or error}; make room there, or "
            f"give another --output DIR"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {
        "folder": str(folder),
        "checkpoint": str(trained.folder),
        "step": trained.manifest.step,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "card": str(folder / "README.md"),
    }


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or folder.is_symlink() or (any(folder.iterdir()) and not _is_export(folder)):
        raise InputError(f"{folder} is there, and is no exported model: give another --output DIR")
    if any(folder.iterdir()) and not overwrite:
        raise InputError(f"{folder} is there already: give --overwrite to replace it, or another --output DIR")


def _is_export(folder: Path) -> bool:
    from training.manifest import WEIGHTS

    return all((folder / name).is_file() for name in ("config.json", WEIGHTS, "README.md"))


def _fill(aside: Path, trained: "Trained", options: ExportOptions) -> None:
    from training.manifest import OPTIMIZER, RNG, DamagedError, check_files
    from training.whole_file import force_to_disk

    manifest = trained.manifest
    assert manifest is not None
    files = {name: proof for name, proof in manifest.files.items() if name not in (OPTIMIZER, RNG)}
    for name in files:
        shutil.copyfile(trained.folder / name, aside / name)
        force_to_disk(aside / name)
    try:
        # What was copied, rather than what was proved a moment ago: a training that goes on removes checkpoints.
        check_files(aside, replace(manifest, files=files))
    except DamagedError as fault:
        raise InputError(f"the copy of {trained.folder} is not whole ({fault}); run the same command again") from fault
    (aside / "README.md").write_text(_card(aside, trained, manifest, options), encoding="utf-8")
    force_to_disk(aside / "README.md")
    force_to_disk(aside)


def _put_in_place(aside: Path, folder: Path) -> None:
    gone = folder.parent / f".{folder.name}.{os.getpid()}.old"
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
    try:
        aside.rename(folder)
    except OSError:
        if gone.exists():
            gone.rename(folder)
        raise
    shutil.rmtree(gone, ignore_errors=True)


def _card(folder: Path, trained: "Trained", manifest: "Manifest", options: ExportOptions) -> str:
    from training.checkpoint import read_states
    from training.documents import is_hub_name
    from training.manifest import WEIGHTS
    from training.metrics import read_rows
    from training.model_card import CardFacts, render_card

    description = trained.description()
    states = read_states(trained.folder)
    dataset = description.get("identity", {}).get("--dataset-name")
    rows = read_rows(trained.run.metrics) if trained.run is not None else []
    return render_card(
        CardFacts(
            name=trained.run.root.absolute().name if trained.run is not None else folder.absolute().name,
            manifest=manifest,
            model_type=json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"],
            parameters=_parameters(folder / WEIGHTS),
            description=description,
            rows=[row for row in rows if row["step"] <= manifest.step],
            conditions=states[0].get("conditions", {}) if states else {},
            hub_dataset=dataset is not None and is_hub_name(dataset),
            license=options.license,
            language=options.language,
        )
    )


def _parameters(weights: Path) -> int:
    """How many numbers are in a file of weights; tensors that are shared lie there once."""
    from math import prod

    from safetensors import safe_open

    with safe_open(weights, framework="np") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 – not a mapping


def push(options: ExportOptions) -> dict[str, Any]:
    """Push the exported folder; which it is, and where the model is now.

    Raises:
        InputError: nothing was exported, there is no token, or the hub refuses or cannot be reached.
    """
    assert options.push is not None
    folder = next((one for one in _pushable(options) if _is_export(one)), None)
    if folder is None:
        raise InputError(
            f"nothing is exported yet of {options.run}: run `{PROG} {options.run}` first, look at its README.md, and "
            f"then push it"
        )
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(options.push)
    except HFValidationError as error:
        raise InputError(f"--push {options.push}: {first_line(error)}; a name such as me/model is wanted") from error
    if get_token() is None:
        raise InputError(
            f"--push {options.push}: there is no token for the hub: `hf auth login`, or set HF_TOKEN to one that may "
            f"write (https://huggingface.co/settings/tokens)"
        )
    api = HfApi()
    try:
        url = api.create_repo(options.push, private=not options.public, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Upload by slurm-mpi-train")
    except HfHubHTTPError as error:
        raise InputError(f"--push {options.push}: the hub refused: {first_line(error)}") from error
    except Exception as error:
        # Offline mode, no route, a proxy's refusal, a time-out: as many classes as there are HTTP libraries.
        raise InputError(
            f"--push {options.push}: the hub cannot be reached ({class_and_line(error)}); push "
            f"from a machine that reaches it: {folder.absolute()}"
        ) from error
    return {"folder": str(folder), "url": str(url)}


def _pushable(options: ExportOptions) -> list[Path]:
    """Where the export of this request may lie, in the order of what is meant first."""
    if options.output is not None:
        return [options.output]
    places = (Path(options.run), options.output_dir / options.run)
    return [places[0], *(RunDirectory(place).export for place in places)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
