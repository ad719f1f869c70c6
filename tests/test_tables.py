"""Tables that fit: names lose their middles, rows are folded, numbers stay whole."""

import keras
import pytest

import keras_nisp as kn
from keras_nisp.io.tables import Column, brief, render_table, shortened

LONG = "a_rather_long_block_name_{}_1_conv"


@pytest.fixture(scope="module")
def model():
    x = inputs = keras.Input((64, 64, 3))
    for block in range(3):
        x = keras.layers.Conv2D(512, 3, name=LONG.format(block))(x)
        x = keras.layers.BatchNormalization(name=f"bn{block}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x), name="net")


@pytest.fixture(scope="module")
def plan(model):
    return kn.plan_pruning(model, kn.Magnitude(), widths={LONG.format(1): 256})


def table_of(text):
    """The lines of a table, without title and prose."""
    return [line for line in text.splitlines() if line.startswith(" ")]


@pytest.mark.parametrize("width", [80, 120])
def test_a_summary_fits(plan, model, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    summary = plan.summary()
    table = table_of(summary)
    assert max(map(len, table)) <= width
    assert max(map(len, table_of(str(kn.profile(model))))) <= width
    assert ("Conv2D" in summary) == (width == 120)
    text = "\n".join(table)
    assert "512 -> 256" in text
    assert "2.36 M -> 1.18 M" in text
    assert "1 without FLOPs" in text
    assert "4 unchanged" in text  # a convolution, two normalisations, the head
    total = f"{brief(plan.before.parameters)} -> {brief(plan.after.parameters)}"
    assert total in text


def test_a_wide_summary_has_everything(plan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = plan.summary(wide=True)
    for block in range(3):
        assert LONG.format(block) in text
        assert f"bn{block}" in text
    assert "2,359,808 -> 1,179,904" in text


def test_folded_rows_add_up(plan):
    """Parameters of the rows, those that share one included, are the total's."""
    before = 0
    for line in table_of(plan.summary(wide=True))[2:-2]:
        cells = line.split("  ")
        numbers = [cell for cell in cells if cell.strip()][-2].split(" -> ")[0]
        before += int(numbers.replace(",", ""))
    assert before == plan.before.parameters


def test_names_lose_their_middle(monkeypatch):
    assert shortened("block1_shortcut_conv", 11) == "block…_conv"
    assert shortened("short", 11) == "short"
    monkeypatch.setenv("COLUMNS", "40")
    columns = [Column("layer"), Column("type", optional=True), Column("number", True)]
    text = render_table("title", columns, [("x" * 60, "Conv2D", 1_234_567_890)])
    assert 36 < max(map(len, table_of(text))) <= 40
    assert "1,234,567,890" in text
    assert "Conv2D" not in text


def test_brief_numbers():
    counts = (0, 999_999, 1_806_336, 118_013_952, 4_089_184_256)
    assert [*map(brief, counts)] == ["0", "999,999", "1.806 M", "118 M", "4.089 G"]
