"""Models of strangers: nothing in them runs, leads out of their folder, or takes memory that they do not hold."""

import contextlib
import json
import pickle
import shutil
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from smdiff.config import EvalTextConfig, PretrainConfig, SampleConfig
from smdiff.data.templates import render
from smdiff.data.tokenizers import bytes_tokenizer
from smdiff.errors import UserError
from smdiff.evaluation.evaluate_text import evaluate
from smdiff.files import gunzip, read_json, read_whole
from smdiff.models import adapters
from smdiff.models import load as loading
from smdiff.models.denoiser import Denoiser
from smdiff.models.load import load, local_path, pinned
from smdiff.models.mdlm import read_pickled_checkpoint
from tests.conftest import small_causal, small_dit

ASKED = [{"role": "user", "content": "a"}]


@pytest.fixture
def run(tmp_path):
    tokenizer, folder = bytes_tokenizer(), tmp_path / "run"
    Denoiser(small_dit(len(tokenizer)), tokenizer.mask_token_id).save(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def shards(tmp_path):
    tokenizer, folder = bytes_tokenizer(), tmp_path / "shards"
    config = small_causal("llama", len(tokenizer), is_causal=False, mask_token_id=257, shifted_logits=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="30KB")
    tokenizer.save_pretrained(folder)
    return folder


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(path, value, compression=zipfile.ZIP_STORED, raw=None):
    """A torch checkpoint whose pickle is another."""
    torch.save({"x": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in parts.items():
            new.writestr(name, (raw or pickle.dumps(value, 2)) if name.endswith("data.pkl") else content)
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**8), ("vocab_size", 10**9), ("hidden_size", 2**30), ("num_attention_heads", 0),
     ("cond_dim", "8"), ("mask_token_id", 258), ("hidden_size", 33), ("max_position_embeddings", None)],
)  # fmt: skip
def test_a_configuration_of_more_than_the_weights_is_refused_before_it_takes_memory(run, key, value):
    assert load(str(run)).denoiser.mask_id == 257
    edited(run / "config.json", **{key: value})
    with pytest.raises(UserError, match=r"cannot be used|does not fit"):
        load(str(run))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**8}, {"vocab_size": 10**9}, {"intermediate_size": 10**10}])
def test_the_same_for_transformers_folders(shards, change):
    load(str(shards))
    edited(shards / "config.json", **change)
    with pytest.raises(UserError, match=r"does not fit the model.*its files"):
        load(str(shards))


@pytest.mark.parametrize("out", ["../model.safetensors", "{home}/model.safetensors", "a/../../model.safetensors", 7])
def test_an_index_stays_in_its_folder(shards, tmp_path, out):
    index = shards / "model.safetensors.index.json"
    stored = json.loads(index.read_text())
    tensor, file = next(iter(stored["weight_map"].items()))
    shutil.copy(shards / file, tmp_path / "model.safetensors")
    target = out.format(home=tmp_path) if isinstance(out, str) else out
    edited(index, weight_map=stored["weight_map"] | {tensor: target})
    with pytest.raises(UserError, match="something else than files of its folder"):
        load(str(shards))


def test_a_folder_with_pickled_weights_only_is_refused(shards, tmp_path):
    tensors = {k: v for path in shards.glob("*.safetensors") for k, v in load_file(path).items()}
    for path in shards.glob("*.safetensors*"):
        path.unlink()
    torch.save(tensors, shards / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load"):
        load(str(shards))
    save_file(tensors, shards / "model.safetensors", metadata={"format": "pt"})
    load(str(shards))


def test_no_code_of_a_folder_runs(shards, tmp_path):
    mark = tmp_path / "ran"
    (shards / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    edited(shards / "config.json", auto_map=auto)
    edited(shards / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    with contextlib.suppress(UserError):
        load(str(shards))
    assert not mark.exists()


class _Command:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_pickles_make_nothing_but_tensors(tmp_path):
    mark = tmp_path / "ran"
    read_pickled_checkpoint(pickled(tmp_path / "a.ckpt", {"state_dict": OrderedDict(), "x": _Command(mark)}))
    assert not mark.exists()
    # A memo of four thousand million entries, and as many bytes.
    for raw in (b"\x80\x02}r\xff\xff\xff\xff.", b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"."):
        with_memo = pickled(tmp_path / "b.ckpt", None, raw=raw)
        try:
            assert read_pickled_checkpoint(with_memo) == {}
        except UserError as error:
            assert "cannot read" in str(error)  # noqa: PT017
    with pytest.raises(UserError, match="compressed"):
        read_pickled_checkpoint(pickled(tmp_path / "c.ckpt", {"x": "a" * 10**6}, zipfile.ZIP_DEFLATED))
    torch.save({"x": torch.zeros(1).expand(10**9)}, tmp_path / "d.ckpt")
    with pytest.raises(UserError, match="larger than the file"):
        read_pickled_checkpoint(tmp_path / "d.ckpt")
    weights = torch.rand(10, 10)
    torch.save({"a": weights, "b": weights}, tmp_path / "e.ckpt")
    assert torch.equal(read_pickled_checkpoint(tmp_path / "e.ckpt")["b"], weights)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end"),
        ("{% for a in range(1000000000) %}{% endfor %}", "too big"),
        ("{{ 'a' * 100000000000 }}", ""),
        ("{% set n = namespace(x='a') %}{% for _ in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", ""),
        ("{{ 10 ** 10 ** 10 }}", "power"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
    ],
)
def test_templates_reach_nothing_and_take_little(template, says):
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(Exception, match=says):
        render(tokenizer, ASKED)


def test_ordinary_templates_are_rendered():
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ dict(**m)['role'] }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}you: {% endif %}"
    )
    assert render(tokenizer, ASKED, answer=True) == "user: a\nyou: "
    assert render(tokenizer, ASKED * 2000) == "user: a\n" * 2000


def test_small_files_stay_small(tmp_path, monkeypatch):
    import gzip

    path = tmp_path / "x.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        read_json(path)
    path.write_text('{"a": ' + "9" * 5000 + "}")
    with pytest.raises(UserError, match="cannot read"):
        read_json(path)
    path.write_text("{" + " " * 2000 + "}")
    with pytest.raises(ValueError, match="more than"):
        read_whole(path, 1000)
    packed = gzip.compress(b"\0" * 3_000_000)
    assert len(gunzip(packed)) == 3_000_000
    monkeypatch.setattr("smdiff.files._UNPACKED", 2_000_000)
    with pytest.raises(OSError, match="unpacks to more"):
        gunzip(packed)
    monkeypatch.undo()
    with pytest.raises(OSError, match="end-of-stream|EOF|ended"):
        gunzip(packed[:-20])


def test_a_hub_model_is_pinned(monkeypatch, run, tmp_path):
    asked = []

    def download(name, revision=None, **_):
        asked.append((name, revision))
        return str(run)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert pinned("a/b", None) == "a/b"
    load(pinned("a/b", "v1.0"))
    load("a/b")
    assert list(dict.fromkeys(asked)) == [("a/b", "v1.0"), ("a/b", None)]
    for name, revision in ((str(run), "main"), ("gpt2.bin", "main"), ("a/b", "../x"), ("a/b", ""), ("a/b@v1", "v2")):
        with pytest.raises(UserError, match=f"--revision {revision}"):
            pinned(name, revision)
    with pytest.raises(UserError, match="no such file or folder"):
        local_path("a/b@../../x")
    with pytest.raises(UserError, match="owner/model@revision"):
        evaluate(["a/b", "c/d"], EvalTextConfig(revision="main"))
    assert SampleConfig(revision="x").revision == PretrainConfig(revision="x").revision == "x"


def test_an_adapter_remembers_the_revision_of_its_base(tmp_path):
    backbone = AutoModelForCausalLM.from_config(small_causal("llama", 64))
    model = adapters.attach(backbone, "lora", base="a/b@v1.0")
    adapters.save(model, tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (stored["base_model_name_or_path"], stored["revision"]) == ("a/b", "v1.0")
    assert adapters.base_of(adapters.read_config(tmp_path)) == "a/b@v1.0"
    edited(tmp_path / "adapter_config.json", base_model_name_or_path=str(tmp_path))
    assert adapters.base_of(adapters.read_config(tmp_path)) == str(tmp_path)
