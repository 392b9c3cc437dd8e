"""Programs that stand in for Slurm's and others: a few lines of sh each, first on a PATH of the test's own."""

from pathlib import Path


def stand_ins(folder: Path, **programs: str) -> str:
    """Write them into the folder, by name; the PATH on which they come before the system's own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"
