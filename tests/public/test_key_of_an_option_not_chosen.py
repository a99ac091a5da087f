"""A key that only other options of its group have: refused where nobody chose the option, as with
`data.path=TEXT` without `data=custom`, which would train on another text; a note where the line
chose it, as grids do."""

import shlex

import pytest

from tests.typist import Typist


@pytest.fixture
def type_line(workplace, monkeypatch, capsys):
    (workplace / "text.txt").write_text("some text")
    return Typist(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("data.path=text.txt", "data.path=text.txt: has no effect with the default data=tinytown"),
        ("-m data.path=text.txt seed=1,2", "; add data=custom (or "),
        ("tokenizer.vocab_size=300,400 -m", "add tokenizer=bpe"),
        (
            "model.d_ff=64 model.position.factor=4",
            "default model/position=rope; add model/position=",
        ),
        ("'++model.position={factor: 4}'", "model.position.factor: has no effect"),
    ],
)
def test_it_is_refused_with_the_option_that_was_meant(type_line, line, told):
    assert told in type_line.refused(*shlex.split(line))


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("data=tinytown data.path=text.txt", "data.path=text.txt has no effect with data=tinytown"),
        ("model=llama moe.n_experts=4", "moe.n_experts=4 has no effect with moe=dense"),
        ("model=gpt2 model.position.base=5", "has no effect with model/position=learned"),
    ],
)
def test_it_is_noted_where_the_line_chose_the_option(type_line, line, note):
    (told,) = type_line.accepted(*line.split()).validated.notes
    assert note in told


def test_a_grid_over_options_takes_it_where_it_has_an_effect(type_line):
    type_line.accepted("-m", "model=nano,llama", "moe.n_experts=8")
    assert [len(job.validated.notes) for job in type_line.jobs] == [0, 1]
