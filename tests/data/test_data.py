import gzip
import json

import datasets
import numpy as np
import pytest
import torch

from smdiff.data.corpora import MARKOV_PROBABILITIES, MarkovChain, load_corpus
from smdiff.data.corpora import texts as each_text
from smdiff.data.packing import Shuffled, Streamed, pack, sequences
from smdiff.data.tokenizers import bytes_tokenizer, load_tokenizer, make_tokenizer, symbols_tokenizer, train_bpe
from smdiff.errors import UserError

TEXT = "def f(x):\n    return 'gr\u00fc\u00dfe \u4f60\u597d \U0001f600'\t# end\r\n"


def texts(documents) -> list[str]:
    return list(each_text(documents))


def test_standard_library_is_split_by_file():
    corpus = load_corpus("python-stdlib")
    train, valid = set(texts(corpus.train)), set(texts(corpus.valid))
    assert len(train) > 300
    assert 0.02 < len(corpus.valid) / (len(corpus.train) + len(corpus.valid)) < 0.08
    assert not train & valid
    assert any("class JSONDecoder" in t for t in train | valid)
    assert texts(load_corpus("python-stdlib").valid) == texts(corpus.valid)


def test_held_out_documents_depend_on_content_alone(tmp_path):
    rows = [f"document {i}" for i in range(300)]

    def held_out(rows: list[str], fraction: float) -> set[str]:
        datasets.Dataset.from_dict({"text": rows}).to_parquet(tmp_path / "x.parquet")
        corpus = load_corpus(str(tmp_path / "x.parquet"), valid_fraction=fraction)
        assert not set(texts(corpus.valid)) & set(texts(corpus.train))
        return set(texts(corpus.valid))

    some = held_out(rows, 0.1)
    assert 15 < len(some) < 50
    assert held_out([*rows[::-1], *rows[:9], "another"], 0.1) - {"another"} == some
    assert held_out(rows, 0.05) < some
    assert len(held_out(rows[:2], 0.01)) == len(held_out(rows[:2], 0.5)) == 1


def test_python_docs_are_prose():
    documents = texts(load_corpus("python-docs").train)
    assert len(documents) > 200
    assert sum("import " in d for d in documents) < len(documents) / 2


def test_markov_chain_has_its_transitions_and_known_optimum():
    chain = MarkovChain.drawn(3)
    np.testing.assert_allclose(chain.matrix.sum(1), 1)
    assert ((chain.matrix > 0).sum(1) == 3).all()
    states = np.array([ord(c) for c in chain.documents(3)[0]])
    symbols = {ord(c): i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz012345")}
    states = np.array([symbols[s] for s in states])
    counts = np.zeros((32, 32))
    np.add.at(counts, (states[:-1], states[1:]), 1)
    seen = counts.sum(1) > 500
    frequencies = counts[seen] / counts[seen].sum(1, keepdims=True)
    np.testing.assert_allclose(frequencies, chain.matrix[seen], atol=0.08)
    branch = np.array(MARKOV_PROBABILITIES)
    rate = -(branch * np.log(branch)).sum()
    assert chain.entropy(1_000_000) == pytest.approx(rate, abs=1e-4)
    assert 0.92 < chain.entropy(64) < 0.96
    assert texts(load_corpus("markov:1").valid) != texts(load_corpus("markov:2").valid)


def test_files_of_every_kind_become_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one " * 50)
    (tmp_path / "sub").mkdir()
    with gzip.open(tmp_path / "sub" / "b.txt.gz", "wt") as file:
        file.write("two " * 50)
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": f"three {i}", "n": i}) + "\n" for i in range(3)))
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "four"}) + "\n")
    datasets.Dataset.from_dict({"text": ["five", "six"]}).to_parquet(tmp_path / "e.parquet")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    corpus = load_corpus(str(tmp_path))
    found = texts(corpus.train) + texts(corpus.valid)
    assert len(found) == 8
    assert {t.split()[0] for t in found} == {"one", "two", "three", "four", "five", "six"}
    assert corpus.sha256 == load_corpus(str(tmp_path)).sha256
    (tmp_path / "a.txt").write_text("changed")
    assert corpus.sha256 != load_corpus(str(tmp_path)).sha256


def test_one_document_is_cut_once_near_its_end(tmp_path):
    text = "\n\n".join(f"paragraph {i} " + "word " * 20 for i in range(100))
    (tmp_path / "book.txt").write_text(text)
    corpus = load_corpus(str(tmp_path / "book.txt"))
    train, valid = texts(corpus.train)[0], texts(corpus.valid)[0]
    assert train + valid == text
    assert valid.startswith("paragraph 9")


def test_held_out_file_of_its_own(tmp_path):
    (tmp_path / "a.txt").write_text("train " * 50)
    (tmp_path / "b.txt").write_text("valid " * 50)
    corpus = load_corpus(str(tmp_path / "a.txt"), valid_spec=str(tmp_path / "b.txt"))
    assert texts(corpus.train) == ["train " * 50]
    assert texts(corpus.valid) == ["valid " * 50]


def write(path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_bad_data_is_refused_with_one_line(tmp_path):
    rows = json.dumps({"body": "x", "title": "y"}) + "\n"
    table = write(tmp_path / "rows.jsonl", rows.encode())
    cases = {
        str(tmp_path / "missing.txt"): "no such file",
        write(tmp_path / "empty.txt", b" \n"): "no text",
        write(tmp_path / "latin.txt", "gr\u00fc\u00dfe".encode("latin-1")): "UTF-8",
        write(tmp_path / "cut.txt.gz", gzip.compress(b"hello" * 1000)[:30]): "cannot read",
        write(tmp_path / "cut.jsonl", rows.encode() + b'{"body": "half'): "cannot read",
        write(tmp_path / "bad.parquet", b"PAR1 not really"): "cannot read",
        table: "its columns are body, title",
        write(tmp_path / "numbers.jsonl", b'{"text": 3}\n'): "no text",
        "": "empty",
        "markov:x": "number",
        "nobody/nothing": "not loaded from the hub",
    }
    (tmp_path / "folder").mkdir()
    cases[str(tmp_path / "folder")] = "no data"
    for spec, says in cases.items():
        with pytest.raises(UserError, match=says) as error:
            load_corpus(spec)
        assert "\n" not in str(error.value), spec
    assert len(load_corpus(table, column="body").train) == 1


@pytest.mark.parametrize("make", [bytes_tokenizer, lambda: train_bpe([TEXT * 3, "return x " * 50], 300)])
def test_byte_level_tokenizers_are_lossless(make, tmp_path):
    tokenizer = make()
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    assert tokenizer.eos_token_id != tokenizer.mask_token_id
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert again.mask_token_id == tokenizer.mask_token_id


def test_tokenizer_sizes_and_names():
    assert len(bytes_tokenizer()) == 258
    assert len(symbols_tokenizer()) == 34
    assert symbols_tokenizer()("abz5")["input_ids"] == [0, 1, 25, 31]
    assert symbols_tokenizer().decode([0, 1, 25, 31]) == "abz5"
    assert len(make_tokenizer("bpe:300", ["print(value) " * 200, TEXT])) <= 300
    for bad in ("bpe:12", "bpe:x", "no/such-tokenizer"):
        with pytest.raises(UserError, match="--tokenizer"):
            make_tokenizer(bad, [])


def test_gpt2_files_give_the_papers_vocabulary(shared):
    tokenizer = load_tokenizer(str(shared / "data/tokenizers/gpt2"))
    assert len(tokenizer) == 50258
    assert tokenizer.mask_token_id == 50257
    assert tokenizer.eos_token_id == 50256
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


def test_documents_are_wrapped_with_end_of_text_between():
    tokenizer = bytes_tokenizer()
    documents = datasets.Dataset.from_dict({"text": ["abc", "defgh", "i"]})
    packed = sequences(pack(documents, tokenizer, 4, "x"), 99)
    end = tokenizer.eos_token
    assert "".join(tokenizer.batch_decode(packed)) == f"abc{end}defgh{end}i{end}"
    assert packed.shape == (3, 4)
    with pytest.raises(UserError, match="shorter than one sequence of 50"):
        pack(documents, tokenizer, 50, "x")


def packed_numbers(n: int = 10) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": [[i, i] for i in range(n)]})


@pytest.mark.parametrize("kind", ["fast", "truncating"])
def test_text_is_encoded_whole_and_marks_in_it_are_letters(kind):
    tokenizer = bytes_tokenizer()
    if kind == "truncating":
        tokenizer.backend_tokenizer.enable_truncation(4)
    documents = datasets.Dataset.from_dict({"text": ["x <|mask|> <|endoftext|> y"] * 3})
    packed = sequences(pack(documents, tokenizer, 27, "x"), 9)
    assert len(packed) == 3
    assert not (packed == tokenizer.mask_token_id).any()
    assert (packed == tokenizer.eos_token_id).sum(1).tolist() == [1, 1, 1]


def test_training_order_depends_on_seed_and_position_alone():
    rows = Shuffled(packed_numbers(), 35, seed=1)
    order = [int(rows[i][0]) for i in range(35)]
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert [int(r[0]) for r in Shuffled(packed_numbers(), 99, seed=1).__getitems__(list(range(35)))] == order
    assert [int(r[0]) for r in rows.__getitems__([33, 4])] == [order[33], order[4]]
    assert [int(Shuffled(packed_numbers(), 35, seed=2)[i][0]) for i in range(10)] != order[:10]


def test_a_stream_packs_the_same_text_and_never_ends(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"document {i} "}) + "\n" for i in range(30)))
    stream = datasets.load_dataset("json", data_files=str(tmp_path / "a.jsonl"), split="train", streaming=True)
    table = datasets.load_dataset("json", data_files=str(tmp_path / "a.jsonl"), split="train")
    tokenizer = bytes_tokenizer()
    from_stream = pack(stream, tokenizer, 16, "x")
    from_table = pack(table, tokenizer, 16, "x")
    assert torch.equal(sequences(from_stream, 9), sequences(from_table, 10**6)[:9])
    spread = sequences(from_table, 3)
    assert torch.equal(spread, sequences(from_table, 10**6)[[0, (len(from_table) - 1) // 2, -1]])
    rows = iter(Streamed(from_stream, seed=1, buffer=5))
    drawn = [tuple(next(rows)) for _ in range(2 * len(from_table))]
    expected = sorted(tuple(r) for r in sequences(from_table, 10**6).tolist())
    assert sorted(drawn[: len(expected)]) == sorted(drawn[len(expected) :]) == expected
