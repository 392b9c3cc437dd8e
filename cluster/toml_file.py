"""The file of `--config`, read whole; what its tables mean is for others."""

from typing import Any

from cluster.errors import RequestError

DEEPEST = 100
"""Dots between two equals signs of a line: over a deep `a.a.a…` Python's reader takes gigabytes (3.11)."""


def read_toml(file: str) -> dict[str, Any]:
    """Its content. Raises `RequestError` where it cannot be read or is not TOML."""
    import tomllib

    try:
        with open(file, encoding="utf-8") as stream:
            text = stream.read()
        if any(part.count(".") > DEEPEST for line in text.splitlines() for part in line.split("=")):
            raise ValueError(f"a line with more than {DEEPEST} dots")
        return tomllib.loads(text)
    except OSError as error:
        raise RequestError(f"--config {file}: {error.strerror}; give a TOML file that can be read") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"--config {file}: not TOML: {error}") from error
