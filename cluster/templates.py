"""The templates for sbatch and the site's set-up, copied to where a project is submitted from.

python -m cluster templates DIR            into DIR/sbatch, which is made; python -m cluster templates . here
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

from cluster.errors import COMPLETE, RequestError
from cluster.options import OptionParser, run

USAGE = "python -m cluster templates DIR"
EPILOG = """\
A file that is there already is left where it is the same, and else nothing is copied.
exit status: 0 the files are there, 64 another one is in the way, or DIR cannot be written"""

FOLDER = "sbatch"
"""By this name templates and `cluster.submit` find `env.sh`, from the directory that the job is submitted from."""


def main(arguments: list[str]) -> int:
    options = parser().parse_options(arguments)
    folder = Path(options.directory).absolute() / FOLDER
    sources = sorted(templates_folder().glob("*.sh"))
    written = copy_to(folder, sources)
    for source in sources:
        print(f"{'written  ' if source in written else 'unchanged'}  {folder / source.name}")
    print(f"next: in {folder / 'env.sh'} load your site's modules and export PYTHON={shlex.quote(sys.executable)},")
    print(f"      then, from {folder.parent}: sbatch {FOLDER}/smoke_mpi.sh")
    return COMPLETE


def parser() -> OptionParser:
    options = OptionParser("python -m cluster templates", USAGE, str(__doc__), EPILOG)
    options.add_argument("directory", metavar="DIR", help="the folder that jobs will be submitted from")
    return options


def templates_folder() -> Path:
    """Where they lie: in the package where it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / FOLDER
    return installed if installed.is_dir() else package.parent / FOLDER


def copy_to(folder: Path, sources: list[Path]) -> list[Path]:
    """Copy what is not there yet; those that were copied.

    Raises:
        RequestError: a file of another content is in the way (nothing was copied), or the folder cannot be written.
    """
    try:
        missing = [source for source in sources if not os.path.lexists(folder / source.name)]
        for source in sources:
            if source not in missing and (folder / source.name).read_bytes() != source.read_bytes():
                raise RequestError(
                    f"{folder / source.name} is not as this version has it, and nothing was copied: "
                    "move it away, then take your own lines over"
                )
        folder.mkdir(parents=True, exist_ok=True)
        for source in missing:
            shutil.copy(source, folder)
    except OSError as error:
        raise RequestError(f"{folder} cannot be written ({error.strerror}): choose another DIR") from error
    return missing


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
