"""One amount is one budget and one run, however it is spelt.

Before, `20steps`, `20step`, `20 steps`, `2e1steps` and `0.02ksteps` were five runs.
"""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config.errors import Refused
from llm.config.root import Budget
from llm.runs.identity import canonical

NAMES = {
    "tok": ["tok"],
    "step": ["step", "steps"],
    "epoch": ["epoch", "epochs"],
    "flops": ["flops", "active_flops"],
    "min": ["min"],
}
POWERS = {"": 0, "k": 3, "M": 6, "G": 9, "B": 9}


@st.composite
def spellings(draw) -> tuple[float, str, list[str]]:
    """An amount, its unit, and two ways to write them."""
    exact = Decimal(draw(st.integers(1, 99_999))).scaleb(draw(st.integers(-4, 14)))
    unit = draw(st.sampled_from(sorted(NAMES)))
    written = []
    for _ in range(2):
        letter = draw(st.sampled_from(sorted(POWERS)))
        number = exact.scaleb(-POWERS[letter])
        form = draw(st.sampled_from(["{:f}", "{:e}", "0{:f}"]))
        digits = form.format(number).replace("e+", draw(st.sampled_from(["e", "e+"])))
        space = draw(st.sampled_from(["", " ", "  "]))
        written.append(f"{digits}{space}{letter}{draw(st.sampled_from(NAMES[unit]))}")
    return float(exact), unit, written


@given(spellings(), spellings())
def test_a_budget_has_one_spelling(one, other):
    budgets = []
    for amount, unit, written in (one, other):
        first, second = map(Budget.parse, written)
        assert first == second == Budget(amount, unit)
        assert first.spelling == second.spelling
        assert Budget.parse(first.spelling) == first
        budgets.append(first)
    assert (budgets[0].spelling == budgets[1].spelling) == (budgets[0] == budgets[1])


@pytest.mark.parametrize(
    ("typed", "spelling"),
    [
        *[(text, "20steps") for text in ("20step", "20 steps", "2e1steps", "0.02ksteps")],
        *[(text, "20Mtok") for text in ("20000ktok", "2e7tok", "0.02Gtok")],
        ("1500000000tok", "1500Mtok"),
        ("1.5Mtok", "1500ktok"),
        ("1Gtok", "1Btok"),
        ("1000Gactive_flops", "1e12flops"),
        ("2.50e3flops", "2.5e3flops"),
        (".5epoch", "0.5epochs"),
        *[(text, text) for text in ("1200steps", "20Mtok", "320tok", "3epochs", "1e15flops")],
        *[(text, text) for text in ("10min", "0.05min", "1500ktok", "125ktok", "2000steps")],
    ],
)
def test_the_spelling_is_the_usual_one(typed, spelling):
    assert Budget.parse(typed).spelling == spelling
    # As a run of old has it in its config.
    assert canonical({"train": {"budget": typed}}) == {"train": {"budget": spelling}}


@pytest.mark.parametrize(
    "typed", ["1e400steps", "1e999999999Mtok", "0tok", "1e-400min", "1.2.3tok"]
)
def test_what_is_no_amount_is_refused(typed):
    with pytest.raises(Refused):
        Budget.parse(typed)
