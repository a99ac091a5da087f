"""Text that people bring, with all that is wrong with it."""

import json
from functools import partial

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llm.config.errors import Refused
from llm.data.corpus import Document
from llm.data.custom import Custom
from llm.data.pydoc import Pydoc
from llm.data.splits import HeldOut
from llm.data.texts import Stretch
from tests.documents import whole_documents


def custom(path, text_column="text", val_fraction=0.25) -> Custom:
    return Custom(path=str(path), text_column=text_column, val_fraction=val_fraction)


def split(texts: list[str], fraction: float) -> list[Document]:
    return list(HeldOut(lambda: map(Stretch, texts), fraction).documents())


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_folder_with_its_subfolders_in_the_order_of_names(tmp_path):
    write(
        tmp_path, b_md="# two", a_txt="one", c__d_txt="four", c__a_jsonl='{"text": "three"}\n',
        ignored_py="code", picture_png=b"\xff\xfe",
    )  # fmt: skip
    assert whole_documents(custom(tmp_path)) == ["one", "# two", "three", "four"]


def test_documents_in_one_file(tmp_path):
    write(tmp_path, a_txt="one\n<|endoftext|>\ntwo<|endoftext|> \n <|endoftext|>three")
    assert whole_documents(custom(tmp_path / "a.txt")) == ["one\n", "\ntwo", "three"]


def test_empty_documents_are_left_out(tmp_path):
    write(
        tmp_path, a_txt="  \n\t", b_txt="", c_jsonl='{"text": ""}\n\n{"text": null}\n{"text": "x"}'
    )
    write(tmp_path, d_txt="y")
    assert whole_documents(custom(tmp_path)) == ["x", "y"]


def test_jsonl_with_another_column(tmp_path):
    write(tmp_path, a_jsonl='{"body": "one", "text": "no"}\n{"body": "two"}\n')
    assert whole_documents(custom(tmp_path, "body")) == ["one", "two"]


ANY = st.text(min_size=1).filter(str.strip)


@given(st.lists(ANY, min_size=2, max_size=6), st.booleans())
@example(["a\u2028b", "c\x85d", "e\x0bf\r\ng"], False)
def test_jsonl_holds_any_text(tmp_path_factory, values, ascii_only):
    """U+2028, U+0085 and vertical tabs end no line of JSON, though splitlines() thinks so."""
    folder = tmp_path_factory.mktemp("any")
    lines = [json.dumps({"text": value}, ensure_ascii=ascii_only) + "\n" for value in values]
    (folder / "a.jsonl").write_text("".join(lines), encoding="utf-8", newline="")
    assert whole_documents(custom(folder)) == values


def test_half_a_surrogate_pair_is_mended(tmp_path):
    write(tmp_path, a_jsonl='{"text": "cut \\ud83d"}\n{"text": "whole \\ud83d\\ude00"}\n')
    assert whole_documents(custom(tmp_path)) == ["cut \ufffd", "whole 😀"]


def test_what_windows_adds_is_taken_off(tmp_path):
    write(tmp_path, a_txt=b"\xef\xbb\xbfone\r\ntwo\r\n", b_jsonl=b'\xef\xbb\xbf{"text": "x"}\r\n')
    assert whole_documents(custom(tmp_path)) == ["one\ntwo\n", "x"]
    (tmp_path / "a.txt").rename(tmp_path / "A.TXT")
    assert len(whole_documents(custom(tmp_path))) == 2


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"fine\nalso fine\nb\xe4d\n", "a_txt", "a.txt, line 3: is not UTF-8"),
        (
            b'{"text": "fine"}\n{"txt": "x"}\n',
            "a_jsonl",
            "a.jsonl, line 2: .*'text'.*data.text_col",
        ),
        (b'{"text": "fine"}\n\n[1, 2]\n', "a_jsonl", "a.jsonl, line 3"),
        (b'{"text": "fine"}\n{"text": \n', "a_jsonl", "a.jsonl, line 2"),
        (b'{"text": {"a": 1}}\n', "a_jsonl", "a.jsonl, line 1"),
        (b"17\n", "a_jsonl", "a.jsonl, line 1"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, content, name, said):
    write(tmp_path, **{name: content})
    with pytest.raises(Refused, match=said) as refusal:
        whole_documents(custom(tmp_path))
    assert str(refusal.value).startswith("data.path: ") and "\n" not in str(refusal.value)


def test_paths_that_hold_nothing(tmp_path):
    with pytest.raises(Refused, match="name your text"):
        Custom(path=None, text_column="text", val_fraction=0.1)
    with pytest.raises(Refused, match="there is no "):
        custom(tmp_path / "missing")
    with pytest.raises(Refused, match="no text found"):
        custom(tmp_path).found()
    write(tmp_path, a_pdf="x")
    with pytest.raises(Refused, match=r"a\.pdf; it reads \.txt, \.md, \.jsonl, \.csv"):
        custom(tmp_path / "a.pdf").found()


def test_description_follows_content_and_not_place(tmp_path):
    first = custom(write(tmp_path / "x", a_txt="one", b_txt="two")).describe()
    assert custom(write(tmp_path / "elsewhere", a_txt="one", c_txt="two")).describe() == first
    others = [
        custom(write(tmp_path / "y", a_txt="one", b_txt="twO")),
        custom(write(tmp_path / "z", a_txt="onetwo")),
        custom(write(tmp_path / "v", a_txt="one", b_md="two")),  # a suffix may say how it is read
        custom(tmp_path / "x", "body"),
        custom(tmp_path / "x", "text", 0.3),
    ]
    described = [json.dumps(corpus.describe(), sort_keys=True) for corpus in others]
    assert len({json.dumps(first, sort_keys=True), *described}) == 6


# Splits


@given(st.integers(0, 10**6), st.integers(0, 50), st.floats(0.3, 0.6))
@settings(max_examples=40)
def test_adding_documents_moves_none_from_side_to_side(first, n_more, fraction):
    some, more = ([f"document {first + i:07}" for i in n] for n in (range(150), range(-n_more, 0)))
    old, new = (HeldOut(partial(map, Stretch, t), fraction) for t in (some, [*more, *some]))
    before, after = ({d.text: d.split for d in one.documents()} for one in (old, new))
    assert set(before.values()) == {"train", "val"}
    assert [d.text for d in old.documents()] == some
    assume(not old.moves().kept and not new.moves().kept)  # the hash alone gave a fair share
    assert all(after[text] == before[text] for text in some)


def test_many_documents_move_never_and_the_share_is_right():
    many = [f"document {i}" for i in range(4000)]
    sides = {d.text: d.split for d in split(many, 0.1)}
    assert 0.08 < list(sides.values()).count("val") / 4000 < 0.12
    fewer = {d.text: d.split for d in split(many[1000:], 0.1)}
    assert all(sides[text] == split for text, split in fewer.items())
    wider = {d.text: d.split for d in split(many, 0.2)}
    assert all(wider[text] == "val" for text, split in sides.items() if split == "val")


def test_one_document_holds_out_its_end():
    text = "".join(map(str, range(200)))
    train, val = split([text], 0.1)
    assert (train.split, val.split) == ("train", "val")
    assert train.text + val.text == text
    assert len(val.text) == pytest.approx(0.1 * len(text), abs=1)
    assert split([], 0.1) == []


def test_pydoc_is_english_in_two_splits():
    corpus = Pydoc(val_fraction=0.1)
    documents = list(corpus.documents())
    assert {d.split for d in documents} == {"train", "val"}
    assert sum(len(d.text) for d in documents) > 200_000
    assert corpus.describe() == Pydoc(val_fraction=0.1).describe()
    assert corpus.describe() != Pydoc(val_fraction=0.2).describe()
