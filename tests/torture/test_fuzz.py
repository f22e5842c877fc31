"""A few cases of each target; `python tests/torture/fuzz.py --cases 2000` draws more."""

import os

import pytest

from tests.torture.fuzz import TARGETS, fuzz

CASES = int(os.environ.get("FUZZ_CASES", "12"))


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_gets_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    assert fuzz(name, CASES, tmp_path) >= min(CASES, 2)
