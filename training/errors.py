"""What a training process says when it stops early, and the exit status that goes with it."""

COMPLETE = 0
INPUT_ERROR = 64  # EX_USAGE of sysexits.h: running the same request again cannot help.
NODE_UNFIT = 71  # EX_OSERR of sysexits.h: the same request may well succeed on other hosts.
SAVED_FOR_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: a checkpoint is on disk, run the same request again.
INTERRUPTED = 130  # 128 + SIGINT, as shells count.


class InputError(ValueError):
    """The request cannot be carried out as given.

    The message is one line that says what was given, what was wanted and what to do next. It is printed as
    `error: <message>` without a traceback, and the process exits with `INPUT_ERROR`.
    """


class AgreedError(InputError):
    """The same, raised by every rank of the group in the same words, so that one rank says it for all."""


class NodeError(RuntimeError):
    """A host is not fit to train on.

    The message is one line that names the host and what is wrong with it. It is printed as `error: <message>` without a
    traceback, and the process exits with `NODE_UNFIT`.
    """

    def __init__(self, message: str, speaker: int) -> None:
        """`speaker`: the rank that says it, on the host in question where that one answers."""
        super().__init__(message)
        self.speaker = speaker


class PeerError(RuntimeError):
    """Another rank failed, and this one stops because of it: the fault is in the rank the message names."""


class StorageError(OSError):
    """A file of the run could not be written, or a checkpoint not be read: the message names the path, the system's
    words and the way out."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(errno, message)

    def __str__(self) -> str:
        # Without the `[Errno 28]` in front: the message has the system's own words.
        return str(self.strerror)


class TakenOverError(StorageError):
    """A newer attempt of the same run writes its checkpoints; this one must not."""


def first_line(error: BaseException) -> str:
    """What an error says, on one line of at most 200 characters; its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def class_and_line(error: BaseException) -> str:
    """The same with its class in front, as a traceback ends: for errors that nobody foresaw."""
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
