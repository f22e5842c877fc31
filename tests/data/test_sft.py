import gzip
import json

import datasets
import numpy as np
import pytest
import torch

from smdiff.data import prompts
from smdiff.data.mixture import Collator, Mixture, Row, valid_rows
from smdiff.data.packing import Shuffled
from smdiff.data.sft import Format, load_sources, parse_mixture
from smdiff.data.tokenizers import bytes_tokenizer, load_tokenizer
from smdiff.errors import UserError

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True)
def no_cache():
    """Every test tokenises with the code as it is."""
    datasets.disable_caching()
    yield
    datasets.enable_caching()


@pytest.fixture
def plain():
    return bytes_tokenizer()


@pytest.fixture
def chatty():
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def messages(question: str, answer: str, user: str = "user", assistant: str = "assistant") -> dict:
    return {"messages": [{"role": user, "content": question}, {"role": assistant, "content": answer}]}


def pairs(n: int, **more: str) -> list[dict]:
    return [{"prompt": f"question {i}?", "response": f"answer {i}", **more} for i in range(n)]


def jsonl(path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(spec, tokenizer, max_length: int = 200, fmt: Format | None = None, **options):
    return load_sources(str(spec), tokenizer, fmt or Format(), max_length=max_length, **options)


def decoded(tokenizer, row) -> tuple[str, str]:
    ids, length = list(row["input_ids"]), row["prompt_length"]
    return tokenizer.decode(ids[:length]), tokenizer.decode(ids[length:])


def everything(source) -> list[dict]:
    return [*source.train, *source.valid]


def test_mixtures_are_named_and_weighted(tmp_path):
    assert parse_mixture("a:0.7,b:0.3") == [("a", 0.7), ("b", 0.3)]
    assert parse_mixture("a.jsonl:3, owner/name/config:1,markov:3:4") == [
        ("a.jsonl", 0.375),
        ("owner/name/config", 0.125),
        ("markov:3", 0.5),
    ]
    for one in ("a", "markov:3", "owner/name", "a:b"):
        assert parse_mixture(one) == [(one, 1.0)]
    assert parse_mixture("a:0.7") == [("a", 1.0)]
    for name in ("x:0.5", "x:1,y:2"):
        (tmp_path / name).touch()
        assert parse_mixture(str(tmp_path / name)) == [(str(tmp_path / name), 1.0)]
    assert len(parse_mixture(",".join(f"owner/{'n' * 60}{i}:1" for i in range(9)))) == 9


@pytest.mark.parametrize(
    "spec", ["a,b", "a:1,b", "a:1,b:0", "a:1,b:-2", "a:1,b:inf", "a:1,b:nan", "a:1,:2", "a:1,", "a:1,b:2,a:3"]
)
def test_parts_of_a_mixture_need_names_of_their_own_and_weights(spec):
    with pytest.raises(UserError, match="a name of its own and a weight above 0"):
        parse_mixture(spec)


def test_chats_are_split_at_the_response(chatty, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [messages("hi", f"there {i}", "human", "gpt") for i in range(9)])
    (source,) = load(path, chatty)
    assert source.kind == "chat"
    assert source.dropped == {}
    assert len(everything(source)) == 9
    for row in everything(source):
        prompt, response = decoded(chatty, row)
        assert prompt == "<user>hi<end><assistant>"
        assert response.startswith("there ")
        assert response.endswith("<end>")
        fed = prompts.chat(chatty, [{"role": "user", "content": "hi"}]).ids
        assert list(row["input_ids"][: row["prompt_length"]]) == fed


def test_a_template_that_ends_prompts_otherwise_is_split_where_tokens_differ(chatty, tmp_path):
    chatty.chat_template = TEMPLATE.replace("<assistant>{% endif %}", "<assistant><think>{% endif %}")
    (source,) = load(jsonl(tmp_path / "a.jsonl", [messages("hi", f"there {i}") for i in range(3)]), chatty)
    assert {decoded(chatty, row)[0] for row in everything(source)} == {"<user>hi<end><assistant>"}


def test_prompts_and_responses_with_and_without_the_template(chatty, plain, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", pairs(5))
    for tokenizer, fmt, first, last in (
        (plain, Format(), "question", plain.eos_token),
        (chatty, Format(chat=False), "question", plain.eos_token),
        (chatty, Format(), "<user>question", "<end>"),
    ):
        (source,) = load(path, tokenizer, fmt=fmt)
        assert source.kind == "prompt"
        for row in everything(source):
            prompt, response = decoded(tokenizer, row)
            assert prompt.startswith(first)
            assert response.startswith("answer ")
            assert response.endswith(last)
    assert row["prompt_length"] == len("<user>question 0?<end><assistant>")


@pytest.mark.parametrize(
    ("row", "named", "prompt", "response"),
    [
        ({"prompt": "p", "completion": "c"}, {}, "p", "c"),
        ({"instruction": "p", "input": "i", "output": "c"}, {}, "p\n\ni", "c"),
        ({"instruction": "p", "input": "", "response": "c", "output": "d"}, {}, "p", "c"),
        ({"question": "p", "answer": "c", "text": "t"}, {}, "p", "c"),
        ({"query": "p", "response": "c"}, {}, "p", "c"),
        ({"a": "p", "b": None, "c": "q", "d": "r"}, {"prompt_column": "a, b,c", "response_column": "d"}, "p\n\nq", "r"),
        ({"prompt": "p", "response": "r", "x": "s"}, {"prompt_column": "x", "response_column": "prompt"}, "s", "p"),
    ],
)
def test_columns_are_found_or_named(plain, tmp_path, row, named, prompt, response):
    rows = [row, {key: value and value + "2" for key, value in row.items()}]
    (source,) = load(jsonl(tmp_path / "a.jsonl", rows), plain, fmt=Format(**named))
    assert (prompt, response + plain.eos_token) in [decoded(plain, r) for r in everything(source)]


def test_every_kind_of_table_gives_the_same_rows(plain, tmp_path):
    rows = pairs(20)
    path = jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "c.parquet")
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    (tmp_path / "folder").mkdir()
    jsonl(tmp_path / "folder" / "1.jsonl", rows[:9])
    jsonl(tmp_path / "folder" / "2.jsonl", rows[9:])
    (expected,) = load(path, plain)
    for name in ("b.json", "c.parquet", "d.jsonl.gz", "folder"):
        (source,) = load(tmp_path / name, plain)
        assert source.train[:] == expected.train[:], name
        assert source.valid[:] == expected.valid[:]
        assert source.sha256 == expected.sha256
    (other,) = load(jsonl(tmp_path / "a.jsonl", rows[1:]), plain)
    assert other.sha256 != expected.sha256


def test_text_is_packed_and_does_not_spoil_chats(chatty, tmp_path):
    """Packing reads marks in texts as letters; the chats beside it still have their marks."""
    (tmp_path / "text.txt").write_text("word <|endoftext|> " * 400)
    marked = TEMPLATE.replace("<end>", "<|endoftext|>")
    chatty.chat_template = marked
    path = jsonl(tmp_path / "a.jsonl", [messages("hi", f"there {i}") for i in range(4)])
    text, chats = load(f"{tmp_path / 'text.txt'}:1,{path}:3", chatty, max_length=64)
    assert (text.kind, chats.kind) == ("text", "chat")
    assert (text.weight, chats.weight) == (0.25, 0.75)
    assert {(len(r["input_ids"]), r["prompt_length"]) for r in everything(text)} == {(64, 0)}
    assert all(list(r["input_ids"]).count(chatty.eos_token_id) == 2 for r in everything(chats))
    table = jsonl(tmp_path / "t.jsonl", [{"text": f"word {i} " * 50} for i in range(9)])
    assert load(table, chatty, max_length=64)[0].kind == "text"
    body = jsonl(tmp_path / "b.jsonl", [{"prompt": "x", "response": "y", "body": f"word {i} " * 50} for i in range(9)])
    assert load(body, chatty, max_length=64, fmt=Format(text_column="body"))[0].kind == "text"
    assert load("markov:3", chatty, max_length=64)[0].kind == "text"


def test_held_out_rows_depend_on_content_alone(plain, tmp_path):
    def parts(rows: list[dict]) -> tuple[set, set]:
        (source,) = load(jsonl(tmp_path / "a.jsonl", rows), plain, valid_fraction=0.1)
        train, valid = ({decoded(plain, r) for r in part} for part in (source.train, source.valid))
        assert not train & valid
        assert len(source.train) + len(source.valid) == len(rows)
        return train, valid

    rows = pairs(200)
    _, valid = parts(rows)
    assert 8 < len(valid) < 35
    more = [*rows[::-1], *rows[:30], {"prompt": "another", "response": "one", "unused": 3}]
    assert {v for v in parts(more)[1] if v[0] != "another"} == valid
    assert [len(part) for part in parts(rows[:2])] == [1, 1]


def test_chats_are_held_out_alike_beside_rows_with_other_keys(chatty, tmp_path):
    rows = [messages(f"hi {i}", "there") for i in range(60)]
    named = {"messages": [{"role": "user", "content": "a", "name": "b"}, {"role": "assistant", "content": "c"}]}

    def valid(rows: list[dict]) -> set:
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
        (source,) = load(tmp_path / "a.parquet", chatty, valid_fraction=0.2)
        return {decoded(chatty, r) for r in source.valid if "hi" in decoded(chatty, r)[0]}

    assert valid(rows) == valid([named, *rows])


def test_held_out_data_of_its_own(plain, tmp_path):
    a, b = (jsonl(tmp_path / name, pairs(n, x=name)) for name, n in (("a.jsonl", 6), ("b.jsonl", 1)))
    held = jsonl(tmp_path / "held.jsonl", [{"prompt": f"held {i}", "response": "x" * 150 * i + "y"} for i in range(3)])
    first, second = load(f"{a}:1,{b}:1", plain, valid_spec=held)
    assert [len(first.train), len(first.valid), len(second.train), len(second.valid)] == [6, 2, 1, 0]
    assert second.valid.column_names == second.train.column_names == ["input_ids", "prompt_length"]
    assert first.dropped == {"longer than 200 tokens": 1}
    assert len(valid_rows([first, second], 9)) == 2
    for name in ("c", "d"):
        (tmp_path / f"{name}.txt").write_text(name * 500)
    (text,) = load(tmp_path / "c.txt", plain, valid_spec=str(tmp_path / "d.txt"))
    assert [plain.decode(part[0]["input_ids"]) for part in (text.train, text.valid)] == ["c" * 200, "d" * 200]
    assert [len(text.train), len(text.valid)] == [2, 2]


def test_long_rows_are_left_out_whole(plain, tmp_path):
    rows = [*pairs(8), {"prompt": "long", "response": "x" * 300}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    (source,) = load(path, plain)
    assert source.dropped == {"longer than 200 tokens": 1}
    assert len(everything(source)) == 8
    length = max(len(r["input_ids"]) for r in everything(source))
    assert load(path, plain, max_length=length)[0].dropped == {f"longer than {length} tokens": 1}
    with pytest.raises(UserError, match=rf"no row has at most {length - 1} tokens: the shortest has {length}\. Raise"):
        load(path, plain, max_length=length - 1)


BAD_CHATS = {
    "it has no messages": {"messages": []},
    "the last message is not the assistant's": {"messages": messages("a", "b")["messages"][:1]},
    "the response is blank": messages("hi", " \n"),
    "there is no message before the response": {"messages": messages("a", "b")["messages"][1:]},
    "a message's content is no text": messages("hi", 3),
    "a message has no role": {"messages": [{"content": "x"}, {"role": "assistant", "content": "y"}]},
    "the chat template refuses it (no tools here)": messages("hi", "there", user="tool"),
    "it holds the mask token": messages("hi", "<|mask|>"),
}
BAD_PAIRS = {
    "the response is blank": {"prompt": "x", "response": ""},
    "the prompt is blank": {"prompt": " ", "response": "y"},
    "the prompt or the response is no text": {"prompt": "x", "response": 3},
}


@pytest.mark.parametrize(
    ("why", "row"), [*BAD_CHATS.items(), *BAD_PAIRS.items(), ("it has no messages", {"messages": "x"})]
)
def test_rows_that_cannot_be_used_are_refused_or_left_out(chatty, tmp_path, why, row):
    good = [messages("hi", f"there {i}") for i in range(4)] if "messages" in row else pairs(4)
    path = jsonl(tmp_path / "a.jsonl", [*good[:2], row, *good[2:], row])
    with pytest.raises(UserError) as error:
        load(path, chatty)
    assert str(error.value) == f"{path}: 2 of 6 rows cannot be used: row 3: {why}. --skip-bad-rows leaves them out."
    (source,) = load(path, chatty, fmt=Format(skip_bad=True))
    assert source.dropped == {why: 2}
    assert len(everything(source)) == 4
    with pytest.raises(UserError, match="2 of 2 rows cannot be used"):
        load(jsonl(tmp_path / "b.jsonl", [row, row]), chatty, fmt=Format(skip_bad=True))


def test_a_response_of_no_token_is_refused(chatty, tmp_path):
    chatty.chat_template = TEMPLATE.replace(
        "{{ m.content }}<end>", "{% if m.role == 'user' %}{{ m.content }}{% endif %}"
    )
    with pytest.raises(UserError, match="no token of its own"):
        load(jsonl(tmp_path / "a.jsonl", [messages("hi", f"there {i}") for i in range(3)]), chatty)


@pytest.mark.parametrize(
    ("fmt", "says"),
    [
        ({"prompt_column": "prompt"}, "--prompt-column without --response-column"),
        ({"response_column": "prompt"}, "--response-column without --prompt-column"),
        ({"prompt_column": " ,", "response_column": "response"}, "row 1: the prompt is blank. Pick with"),
        (
            {"prompt_column": "prompt,nope", "response_column": "response"},
            "no column 'nope': its columns are prompt, r",
        ),
        ({"messages_column": "nope"}, "no column 'nope': its columns are prompt, response"),
        ({"text_column": "nope"}, "no column 'nope'"),
        ({"kind": "chat"}, "its columns are prompt, response. Pick with --messages-column, --prompt-column with"),
        ({"kind": "text"}, "its columns are prompt, response. Pick"),
        ({"kind": "chat", "prompt_column": "prompt", "response_column": "response"}, "--prompt-column has no effect"),
        ({"kind": "prompt", "messages_column": "x"}, "--messages-column has no effect"),
        ({"chat": True}, "the tokenizer has none. Give one with --chat-template FILE"),
    ],
)
def test_formats_that_do_not_fit_are_refused(plain, tmp_path, fmt, says):
    with pytest.raises(UserError, match=says) as error:
        load(jsonl(tmp_path / "a.jsonl", pairs(3)), plain, fmt=Format(**fmt))
    assert "\n" not in str(error.value)


def test_sources_that_cannot_be_read_are_refused_with_one_line(plain, tmp_path):
    def write(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    whole = json.dumps(pairs(50)).encode()
    datasets.Dataset.from_list(pairs(50)).to_parquet(tmp_path / "whole.parquet")
    cases = {
        "": "empty",
        str(tmp_path / "missing.jsonl"): "no such file",
        write("cut.json", whole[:-30]): "cannot read",
        write("cut.jsonl", json.dumps(pairs(1)[0]).encode() + b'\n{"prompt": "x", "resp'): "cannot read",
        write("cut.json.gz", gzip.compress(whole)[:-30]): "cannot read",
        write("cut.parquet", (tmp_path / "whole.parquet").read_bytes()[:-30]): "cannot read",
        write("empty.jsonl", b""): "it is empty",
        write("empty.json", b"[]"): "it is empty",
        write("empty.txt", b" "): "no text",
        jsonl(tmp_path / "chat.jsonl", [messages("a", "b")] * 2): "needs a chat template: the tokenizer has none",
        jsonl(tmp_path / "other.jsonl", [{"a": "b", "c": "d"}]): "its columns are a, c. Pick with --messages-column",
        jsonl(tmp_path / "one.jsonl", pairs(1)): "nothing to hold out: all its rows are one row. Give --valid-data",
        jsonl(tmp_path / "same.jsonl", pairs(1) * 5): "nothing to hold out",
        "nobody/nothing/x": "not loaded from the hub",
    }
    for spec, says in cases.items():
        with pytest.raises(UserError, match=says) as error:
            load(spec, plain)
        assert "\n" not in str(error.value), spec
    with pytest.raises(UserError, match="holds text, not rows"):
        load("markov", plain, fmt=Format(kind="chat"))
    with pytest.raises(UserError, match="--prompt-column has no effect: the data is read as text"):
        load("markov", plain, fmt=Format(prompt_column="a", response_column="b"))
    with pytest.raises(UserError, match="shorter than one sequence of 500 tokens. Add text, or lower --max-length"):
        load(write("short.txt", b"text " * 20), plain, max_length=500)


def test_hub_data_keeps_its_own_held_out_rows(plain, monkeypatch):
    asked = []

    def load_dataset(*names, **options):
        asked.append(names)
        table = datasets.Dataset.from_list
        return {"train": table(pairs(5)), "test": table([{"prompt": "held", "response": "out"}])}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (source,) = load("owner/name/config", plain)
    assert (len(source.train), len(source.valid)) == (5, 1)
    assert source.valid.column_names == ["input_ids", "prompt_length"]
    load("owner/name", plain)
    assert asked == [("owner/name", "config"), ("owner/name", None)]


def numbers(*counts: int) -> list[datasets.Dataset]:
    """Sources whose rows hold their source and their number."""
    return [
        datasets.Dataset.from_dict(
            {"input_ids": [[source, i] + [0] * (i % 3) for i in range(n)], "prompt_length": [i % 2 for i in range(n)]}
        )
        for source, n in enumerate(counts)
    ]


def drawn(mixture: Mixture, positions) -> list[tuple[int, int, int, int]]:
    rows = mixture.__getitems__(list(positions))
    return [(int(r.ids[0]), int(r.ids[1]), r.prompt_length, r.extra) for r in rows]


def test_sources_are_drawn_by_weight_and_their_rows_once_each():
    order = drawn(Mixture(numbers(700, 90, 11), [0.6, 0.3, 0.1], 10_000, seed=3), range(10_000))
    shares = np.bincount([source for source, *_ in order], minlength=3) / len(order)
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=0.01)
    for source, count in enumerate((700, 90, 11)):
        own = [number for drawn_from, number, *_ in order if drawn_from == source]
        for start in range(0, len(own) - count + 1, count):
            assert sorted(own[start : start + count]) == list(range(count))
        assert own[:count] != own[count : 2 * count]


def test_a_row_depends_on_seed_and_position_alone():
    sources, weights = numbers(50, 9), [0.7, 0.3]
    order = drawn(Mixture(sources, weights, 9000, seed=1, max_extra=50), range(9000))
    positions = [8999, 3, 4096, 4095, 0, 8192, 8191]
    assert drawn(Mixture(sources, weights, 100_000, 1, 50), positions) == [order[p] for p in positions]
    resumed = Mixture(sources, weights, 9000, 1, 50)
    assert [drawn(resumed, [p])[0] for p in range(5000, 5100)] == order[5000:5100]
    assert drawn(Mixture(sources, weights, 9000, 2, 50), range(50)) != order[:50]
    assert {extra for *_, extra in order} == set(range(51))
    row = resumed[5]
    assert (row.ids.dtype, type(row.prompt_length), len(resumed)) == (np.int64, int, 9000)


def test_one_source_has_the_order_of_packed_text():
    (source,) = numbers(50)
    expected = [int(ids[1]) for ids in Shuffled(source, 130, seed=4).__getitems__(list(range(130)))]
    order = drawn(Mixture([source], [1.0], 130, seed=4), range(130))
    assert [number for _, number, *_ in order] == expected
    assert {extra for *_, extra in order} == {0}


def test_held_out_rows_are_shared_by_weight_and_spread(plain, tmp_path):
    a, b, c = (jsonl(tmp_path / f"{n}.jsonl", pairs(n)) for n in (400, 300, 30))
    sources = load(f"{a}:0.7,{b}:0.29,{c}:0.01", plain, valid_fraction=0.5)
    rows = valid_rows(sources, 20)
    assert [len(r.ids) for r in rows] == [len(r.ids) for r in valid_rows(sources, 20)]
    assert len(rows) == 20
    first = sources[0].valid
    assert rows[0].ids.tolist() == first[0]["input_ids"]
    assert rows[12].ids.tolist() == first[-1]["input_ids"]
    assert rows[13].ids.tolist() == sources[1].valid[0]["input_ids"]
    assert rows[19].ids.tolist() == sources[2].valid[0]["input_ids"]
    assert rows[0].prompt_length == first[0]["prompt_length"]
    assert len(valid_rows(sources, 10**6)) == sum(len(s.valid) for s in sources)
    assert len(valid_rows(sources, 2)) == 2


def rows_of(*lengths: int, prompt: int = 2, extra: int = 0) -> list[Row]:
    return [Row(np.arange(n, dtype=np.int64), prompt, extra) for n in lengths]


@pytest.mark.parametrize(
    ("policy", "limit", "rows", "length"),
    [
        ("learn", None, rows_of(5, 9), 16),
        ("learn", None, rows_of(5, 9, extra=7), 16),
        ("learn", None, rows_of(5, 9, extra=8), 24),
        ("learn", 14, rows_of(5, 9, extra=8), 14),
        ("learn", 4, rows_of(5, 9), 9),
        ("learn", None, rows_of(9, 9), 16),
        ("learn", None, rows_of(9, 9, prompt=0), 9),
        ("learn", None, rows_of(9, 9, prompt=0, extra=1), 16),
        ("ignore", None, rows_of(5, 9, extra=8), 16),
        ("ignore", 12, rows_of(5, 9), 12),
        ("ignore", None, rows_of(9, 9), 9),
    ],
)
def test_rows_are_filled_up(policy, limit, rows, length):
    batch = Collator(99, policy, limit)(rows)
    assert batch["input_ids"].shape == batch["maskable"].shape == (2, length)
    assert (batch["input_ids"].dtype, batch["maskable"].dtype) == (torch.int64, torch.bool)
    for i, row in enumerate(rows):
        n, ids = len(row.ids), batch["input_ids"][i]
        assert ids[:n].tolist() == row.ids.tolist()
        assert (ids[n:] == 99).all()
        end = n if policy == "ignore" else length
        assert batch["maskable"][i].tolist() == [row.prompt_length <= p < end for p in range(length)]
        if "valid" in batch:
            assert batch["valid"][i].tolist() == [p < n for p in range(length)]
    assert ("valid" in batch) == (policy == "ignore" and any(len(r.ids) < length for r in rows))


def test_padding_matches_the_reference(golden):
    case = golden("collator_coding")
    for run in case.info["runs"]:
        name = run["name"]
        lengths = case[f"{name}.prompt_lengths"].tolist()
        rows = [
            Row(case[f"{name}.feature{i}.input_ids"].numpy(), lengths[i], run["extra_len"]) for i in range(len(lengths))
        ]
        batch = Collator(case.info["pad_id"], "learn")(rows)
        assert batch["input_ids"].shape[1] == run["pad_length"], name
        masked = case[f"{name}.mask_idx"]
        clean = torch.where(masked, case[f"{name}.labels"], case[f"{name}.input_ids"])
        assert torch.equal(batch["input_ids"], clean)
        assert not (masked & ~batch["maskable"]).any()


@pytest.fixture(scope="session")
def dream_tokenizer(shared):
    return load_tokenizer(str(shared / "data/tokenizers/dream"))


def test_real_chats_with_the_real_tokenizer(dream_tokenizer, shared):
    path = shared / "data/sft/mbpp_train_messages.jsonl"
    (source,) = load(path, dream_tokenizer, max_length=1024)
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    assert source.kind == "chat"
    assert len(everything(source)) == len(rows) == 374
    asked = {m[0]["content"]: m[1]["content"] for m in rows}
    end = dream_tokenizer.convert_tokens_to_ids("<|im_end|>")
    for row in everything(source)[::20]:
        prompt, response = decoded(dream_tokenizer, row)
        question = prompt.rpartition("<|im_start|>user\n")[2].removesuffix("<|im_end|>\n<|im_start|>assistant\n")
        assert response == asked[question] + "<|im_end|>\n"
        assert row["input_ids"][row["prompt_length"] :].count(end) == 1
        fed = prompts.chat(dream_tokenizer, [{"role": "user", "content": question}])
        assert row["input_ids"][: row["prompt_length"]] == fed.ids


def test_real_instructions_with_the_real_tokenizer(dream_tokenizer, shared, tmp_path):
    rows = json.loads((shared / "data/sft/code_alpaca_4k.json").read_text())[:300]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = {}
    (source,) = load(tmp_path / "a.json", dream_tokenizer, max_length=512, fmt=Format(skip_bad=True))
    assert source.kind == "prompt"
    for row in everything(source):
        prompt, response = decoded(dream_tokenizer, row)
        found[response] = prompt
    assert len(everything(source)) + sum(source.dropped.values()) == 300
    row = rows[0]
    prompt = found[row["response"] + "<|im_end|>\n"]
    assert f"<|im_start|>user\n{row['instruction']}\n\n{row['input']}<|im_end|>\n" in prompt


def test_a_response_never_merges_with_the_prompt(dream_tokenizer, tmp_path):
    """The prompt ends with a new line, and two of them are one token."""
    (source,) = load(jsonl(tmp_path / "a.jsonl", [messages("hi", f"\n\nthere {i}") for i in range(3)]), dream_tokenizer)
    for row in everything(source):
        fed = prompts.chat(dream_tokenizer, [{"role": "user", "content": "hi"}])
        assert row["input_ids"][: row["prompt_length"]] == fed.ids
        assert decoded(dream_tokenizer, row)[1].startswith("\n\nthere")
