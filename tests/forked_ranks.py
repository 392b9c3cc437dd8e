"""Starts many small training runs of several ranks quickly: the imports happen once, each rank is then a fork.

    python forked_ranks.py < one JSON object a line        one JSON line back for each: the ranks' exit statuses

The orders are what `ForkedRanks.run` is given. A signal is sent by the rank to itself in the middle of a step, so that
a test knows where it comes.
"""

import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LAUNCHERS = ("RANK", "WORLD_SIZE", "OMPI_", "PMI", "PRTE", "SLURM_", "MASTER_", "CLUSTER_", "LOCAL_", "MPI_")
LONGEST_RUN_SECONDS = 60


def environment(**more: str) -> dict[str, str]:
    """This process's environment without any launcher's variables, for ranks of one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more


@contextmanager
def held_port() -> Iterator[int]:
    """A port of this machine at which rank 0 may listen, and that nobody else comes to have meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield held.getsockname()[1]


class ForkedRanks:
    """The test's end: a process that carries out orders."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(TOKENIZERS_PARALLELISM="false"),
        )

    def run(
        self,
        log: Path,
        world: int,
        *argv: str,
        stop: tuple[int, int] | None = None,
        environ: Mapping[str, str] | None = None,
        inject: Mapping[int, str] | None = None,
    ) -> list[int]:
        """Train with these ranks to the end; their exit statuses.

        Args:
            log: gets what all of them print.
            world: how many.
            argv: of the trainer.
            stop: a rank gets SIGUSR1 in a step.
            environ: more variables.
            inject: a line of Python that a rank carries out before it trains: the fault of the test.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        order = {"argv": argv, "world": world, "log": str(log), "environ": dict(environ or {}), "stop": stop}
        order["inject"] = dict(inject or {})
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)


def serve() -> None:
    # What the ranks import: by name alone, nothing may be started before the fork.
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401
    from torch.distributed.elastic.multiprocessing import errors  # noqa: F401

    from training import checkpoint, evaluate, loop, sample, start, summary, train_llm  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        with held_port() as port:
            children = [_fork(order, rank, port) for rank in range(order["world"])]
            statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(statuses), flush=True)


def _fork(order: Mapping[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": order["world"], "LOCAL_WORLD_SIZE": order["world"]}
        # A rank that hangs says where, and does not keep the tests.
        faulthandler.dump_traceback_later(LONGEST_RUN_SECONDS, exit=True)
        os.environ |= {name: str(value) for name, value in places.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **order["environ"]}
        exec(order["inject"].get(str(rank), ""), {})
        if order["stop"] is not None and order["stop"][0] == rank:
            _stop_in(order["stop"][1])
        from training.train_llm import main

        status = main(order["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _stop_in(step: int) -> None:
    from training import loop

    rate = loop.learning_rate

    def rate_and_signal(made: int, *rest: Any) -> float:
        if made + 1 == step:
            os.kill(os.getpid(), signal.SIGUSR1)
        return rate(made, *rest)

    loop.learning_rate = rate_and_signal  # type: ignore[assignment]


if __name__ == "__main__":
    serve()
