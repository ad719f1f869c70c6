"""docs/language_models.md, run as it stands there, on a tiny model in the place of the preset."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

pytestmark = [
    pytest.mark.bridges,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not come back from a"),
    pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning"),
]

PAGE = Path(__file__).parents[1] / "docs" / "language_models.md"


def tiny():
    """A GPT-2 over single letters, with its tokenizer."""
    from keras_hub import models

    letters = ["!", *"abcdefghijklmnopqrstuvwxyzT", "<|endoftext|>", "Ġ", "ab", "cd"]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = models.GPT2Tokenizer(vocabulary, merges=["a b", "c d"])
    backbone = models.GPT2Backbone(
        vocabulary_size=len(letters),
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=16,
    )
    preprocessor = models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=16)
    return models.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor)


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("keras_hub")
    monkeypatch.chdir(tmp_path)
    first, *blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    imports = "".join(line for line in first.splitlines(True) if line.startswith("import"))
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh "), 20)) for _ in range(128)]
    names = {"model": tiny(), "texts": texts, "length": 16}
    for block in (imports, *blocks):
        exec(block, names)
    again, smaller = names["again"], names["smaller"]
    assert type(again) is type(names["model"])
    assert again.backbone.intermediate_dim == 32
    tokens = {name: np.asarray(values) for name, values in names["tokens"].items()}
    for net in (again, names["small"]):
        np.testing.assert_allclose(net(tokens), smaller(tokens), atol=1e-5)
    assert again.generate("ab", max_length=10).startswith("ab")
    printed = capsys.readouterr().out
    assert "verified: outputs differ by" in printed
    assert keras.tree.flatten(again.preprocessor.tokenizer("abcd"))[0].shape == (2,)
