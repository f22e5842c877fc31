"""A small text and runs on it, for the tests of what a run leaves behind; others define their own."""

import pytest

from smdiff.config import PretrainConfig, resolve
from smdiff.training.pretrain import pretrain
from tests.training.test_training import TINY


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"def f{i}(x):\n    return x * {i}\n\n" for i in range(60)))
    return str(path)


@pytest.fixture
def train(text, tmp_path, monkeypatch):
    monkeypatch.setattr("smdiff.training.run.training_curves", lambda *arguments: None)

    def run(out: str = "run", **options):
        flags = {**TINY, "data": text, "out": str(tmp_path / out), "save_every": 2, "keep": 3, **options}
        return pretrain(resolve(PretrainConfig, flags))

    return run
