"""Secrets: variables whose values reach the ranks by the environment alone, and are written down nowhere.

Not on a command line (ps, `scontrol show job`, sbatch's record of it), not in the batch script, the request or a
pickle, and not in what is shown.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from cluster.errors import RequestError

KNOWN = ("HF_TOKEN", "WANDB_API_KEY")
"""Secrets in any case, and handed to the ranks in any case."""
SHORTEST = 8
"""Characters of a value that is looked for among other words: a shorter one would be found by chance."""
MASK = "***"
SECRET_NAME = re.compile(
    r"(^|_)(AUTH|CREDENTIALS?|KEY|PASSWD|PASSWORD|SECRET|TOKEN)(_|$)|(KEY|PASSWORD|SECRET|TOKEN)S?$", re.IGNORECASE
)
"""Names of variables whose values are not shown."""
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def check_secrets(
    named: Sequence[str],
    forwarded: Iterable[tuple[str, str | None]],
    words: Iterable[str],
    environ: Mapping[str, str],
) -> None:
    """Raise `RequestError` where a secret is missing, or where its value stands in what others can read.

    Args:
        named: the names of ``--secret``.
        forwarded: names and values of ``-x``.
        words: of the whole command line, with what a file says.
        environ: where secrets have their values.
    """
    for name in named:
        if not environ.get(name):
            raise RequestError(f"--secret {name}: it is not set here; export {name}=… and give the name alone")
    for name, value in forwarded:
        if value is not None and name in (*KNOWN, *named):
            raise RequestError(
                f"-x {name}=…: a command line can be read by others; export {name}=… and give --secret {name}"
            )
    words = list(words)
    for name, value in secret_values(named, environ).items():
        if len(value) >= SHORTEST and any(value in word for word in words):
            raise RequestError(
                f"the value of {name} stands among the arguments, which others can read: "
                "take it out, the program finds it in its environment"
            )


def secret_values(named: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The secrets that are set: those known, and those `named`."""
    return {name: environ[name] for name in dict.fromkeys((*KNOWN, *named)) if environ.get(name)}


def masked(name: str, value: str, secrets: Mapping[str, str]) -> str:
    """The value as it may be shown: a mask where its name says that it is secret, and for any of the `secrets` in it.

    Users and passwords in addresses are masked too.
    """
    if name in secrets or SECRET_NAME.search(name):
        return MASK
    return without(_USER_IN_URL.sub(MASK, value), secrets)


def without(text: str, secrets: Mapping[str, str]) -> str:
    """The text with a mask in the place of each of these values."""
    for value in secrets.values():
        if len(value) >= SHORTEST:
            text = text.replace(value, MASK)
    return text
