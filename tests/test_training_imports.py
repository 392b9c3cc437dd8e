"""Imports in one go: without garbage collection, and all that a model needs."""

import gc
import sys

import pytest

from training.imports import MODEL_CODE, collector_at_rest, import_model_code


def test_no_garbage_is_collected_while_importing_and_again_afterwards():
    with collector_at_rest():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_import_that_fails_leaves_the_collector_at_work():
    with pytest.raises(ImportError), collector_at_rest():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_at_rest():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_imported_is_not_walked_again():
    kept = []
    before = gc.get_freeze_count()
    with collector_at_rest():
        kept += [[] for _ in range(100_000)]
    assert gc.get_freeze_count() - before >= 100_000
    gc.unfreeze()


def test_the_models_code_is_there_before_a_model_is_named():
    import_model_code()
    assert set(MODEL_CODE) <= set(sys.modules)
