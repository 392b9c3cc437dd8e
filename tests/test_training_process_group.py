"""How ranks find each other."""

import subprocess
import sys
import threading

import pytest

from conftest import ROOT
from training.errors import InputError
from training.process_group import Joining
from training.ranks import RankInfo


def test_the_device_is_chosen_and_warm_when_joining_is_finished():
    device, store = Joining(RankInfo("single"), lambda: "cpu").finish()
    assert (device.type, store) == ("cpu", None)


def test_a_rank_without_its_device_says_so_where_the_main_thread_finishes():
    def choose() -> str:
        raise InputError("torch sees no GPU")

    with pytest.raises(InputError, match="torch sees no GPU"):
        Joining(RankInfo("single"), choose).finish()


def test_the_main_thread_goes_on_while_the_device_is_chosen():
    imported = threading.Event()

    def choose() -> str:
        return "cpu" if imported.wait(20.0) else "meta"

    joining = Joining(RankInfo("single"), choose)
    imported.set()
    assert joining.finish()[0].type == "cpu"


def test_a_rank_that_cannot_import_does_not_stay_for_the_others():
    """Threads that are no daemons would be awaited at the end of the process."""
    rank = "import os; from training.process_group import Joining; from training.ranks import RankInfo\n"
    rank += "os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '1'}\n"
    rank += "Joining(RankInfo('mpirun', 1, 2, 1, 2), lambda: 'cpu'); raise ImportError('no transformers')"
    done = subprocess.run([sys.executable, "-c", rank], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stderr.endswith("ImportError: no transformers\n")
