"""From `constraints.txt`: `constraints-hashed.txt`, the same versions with the SHA-256 of their wheels, and
`docs/licences.md`. By hand, after a version has changed: `make lock`.

pip itself says what it would install, for each Python and processor in turn, and installs nothing. torch has no hash
here: which of its builds is taken depends on the machine, and so does the index that it comes from.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11.9", "3.12.9")
PROCESSORS = ("x86_64", "aarch64")
GLIBC = ("_2_28", "_2_27", "_2_26", "_2_24", "_2_17", "2014", "_2_12", "2010", "_2_5", "1")
"""Of the wheels, as in `manylinux_2_28_x86_64`; Debian 12, Ubuntu 22.04 and RHEL 8 have at least 2.28."""
PYPI = "https://files.pythonhosted.org/"
NO_HASH = ("torch",)
UNSAID = {
    "mpich": "MPICH (permissive)",
}
"""Licences that the package's own metadata do not tell."""
PAGE = """\
# Licences

What `constraints.txt` pins, and what each package says its licence is. Written by `make lock`.

| package | version | licence |
|---|---|---|
"""


def main() -> int:
    pins = read_pins((ROOT / "constraints.txt").read_text())
    reports = [would_install(pins, python, processor) for python in PYTHONS for processor in PROCESSORS]
    (ROOT / "constraints-hashed.txt").write_text(hashed(pins, reports))
    told: dict[str, Mapping[str, Any]] = {
        plain(item["metadata"]["name"]): item["metadata"] for report in reports for item in report
    }
    # What is installed tells more: pip 23 does not pass the SPDX expression on.
    told |= {plain(found.name): found.metadata.json for found in distributions()}
    rows = [f"| {name} | {version} | {licence(told[plain(name)])} |\n" for name, version in pins.items()]
    (ROOT / "docs/licences.md").write_text(PAGE + "".join(rows))
    return 0


def read_pins(constraints: str) -> dict[str, str]:
    """Version by name, as the file has them."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ \\\n]+)", constraints, re.MULTILINE))


def would_install(pins: Mapping[str, str], python: str, processor: str) -> list[dict[str, Any]]:
    """What pip would install there: of each package its wheel and its metadata."""
    wanted = [f"{name}=={version}" for name, version in pins.items() if name not in NO_HASH]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    command += ["--report", "-", "--only-binary=:all:", "--target", "nowhere", f"--python-version={python}"]
    command += [f"--platform=manylinux{glibc}_{processor}" for glibc in GLIBC]
    done = subprocess.run([*command, *wanted], stdout=subprocess.PIPE, text=True, check=True)
    return list(json.loads(done.stdout)["install"])


def hashed(pins: Mapping[str, str], reports: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """A file for ``pip install --require-hashes --no-deps -r``."""
    hashes: dict[str, set[str]] = {}
    for item in (item for report in reports for item in report):
        name, url = plain(item["metadata"]["name"]), item["download_info"]["url"]
        if not url.startswith(PYPI):
            raise SystemExit(f"pip would take {url}: the hashes of PyPI's files are wanted, let it look there alone")
        hashes.setdefault(name, set()).add(item["download_info"]["archive_info"]["hashes"]["sha256"])
    lines = ["# Written by `make lock` from constraints.txt: pip install --require-hashes --no-deps -r this file.\n"]
    for name, version in pins.items():
        if name not in NO_HASH:
            words = [f"{name}=={version}", *(f"--hash=sha256:{digest}" for digest in sorted(hashes[plain(name)]))]
            lines.append(" \\\n    ".join(words) + "\n")
    return "".join(lines)


def plain(name: str) -> str:
    """The name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(told: Mapping[str, Any]) -> str:
    """In the package's own words: its SPDX expression, else its classifiers, else its licence field, if short."""
    name = plain(told["name"])
    if expression := told.get("license_expression"):
        return str(expression)
    kinds = [line.rpartition(" :: ")[2] for line in told.get("classifier", []) if line.startswith("License ::")]
    kinds = [kind for kind in kinds if kind != "OSI Approved"]
    words = str(told.get("license") or "").strip()
    if words and "\n" not in words and len(words) < 60:
        kinds = kinds or [words]
    return ", ".join(kinds) or UNSAID[name]


if __name__ == "__main__":
    sys.exit(main())
