"""What the documentation names is there."""

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
