"""What the documentation names is there, and what is there it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tests_and_scripts_that_docs_name_are_there():
    text = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    written = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")
    )
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 60
    assert [name for name in named if f"def {name}(" not in written] == []
    scripts = re.findall(r"(benchmarks/\w+\.py)", text)
    assert [name for name in scripts if not (ROOT / name).exists()] == []


def test_every_file_has_its_room_in_the_design():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\w+)/` \| (.*) \|", text)
    package = ROOT / "keras_nisp"
    assert {room for room, _ in rows} == {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    for room, described in rows:
        if room != "rules":  # a file for each family of layers
            files = {path.name for path in (package / room).glob("*.py")} - {"__init__.py"}
            assert set(re.findall(r"`(\w+\.py)`", described)) == files
