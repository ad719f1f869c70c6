"""README and docs: every block of code runs as it is printed, every name and link is right."""

import json
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from nets import randomise

import keras_nisp as kn
from keras_nisp_cli import loading
from keras_nisp_cli.console import Console
from keras_nisp_cli.main import cli

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
# Pages whose blocks take minutes, or packages that not every environment has. Others are left to
# `make test-tutorials`, but for this one.
FIRST = "README.md"
HUB = [
    "ignore::DeprecationWarning",
    "ignore:.*does not come back from a",
    "ignore::keras_nisp.UnknownLayerWarning",
]
MARKS = {
    "export.md": [pytest.mark.bridges],
    "language_models.md": [pytest.mark.bridges, *map(pytest.mark.filterwarnings, HUB)],
    "phone.md": [
        pytest.mark.slow,
        pytest.mark.filterwarnings("ignore:Quantization changes the answers"),
    ],
    "serving.md": [pytest.mark.bridges],
    "tfmot.md": [
        pytest.mark.bridges,
        pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected"),
    ],
}
HOME = "https://github.com/keras_nisp/keras_nisp"
PREAMBLE = "index.md#preamble"
COMMAND = re.compile(r"(?:\w+=\S+ )*keras-nisp (.*)")
BLOCK = re.compile(r"^( *)```(python|sh)\b[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks(page: Path):
    """Language, first line and text of each block of code that runs."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        indent, language, code = found.groups()
        lines = [line.removeprefix(indent) for line in code.splitlines(True)]
        yield language, text[: found.start(3)].count("\n"), "".join(lines)


def run(page: Path, names: dict) -> dict:
    """Python in one namespace, commands of keras-nisp in the same folder, and no others."""
    for language, line, code in blocks(page):
        if language == "python":
            exec(compile("\n" * line + code, str(page), "exec"), names)
            continue
        for command in code.replace("\\\n", " ").splitlines():
            if words := COMMAND.match(command):
                words = shlex.split(words[1], comments=True)
                cli(words, prog_name="keras-nisp", standalone_mode=False, obj=Console())
    return names


PAGES = [page for page in (ROOT / "README.md", *DOCS) if any(blocks(page))]


def _marks(page: Path) -> list:
    return MARKS.get(page.name, [] if page.name == FIRST else [pytest.mark.tutorials])


@pytest.fixture(scope="module")
def preamble(tmp_path_factory):
    """What the first block of docs/index.md makes; models are loaded afresh for each page."""
    page = blocks(ROOT / "docs" / "index.md")
    code = next(code for language, _, code in page if language == "python")
    names: dict = {}
    exec(compile(code, "preamble", "exec"), names)
    path = tmp_path_factory.mktemp("preamble") / "model.keras"
    names["model"].save(path)
    return lambda: {**names, "model": keras.models.load_model(path)}


def custom_layers(names):
    """Rules and importances of the page do what it says."""
    scale, gated = names["ChannelScale"], names["GatedDense"]
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    inputs = keras.Input((8,))
    h = scale(name="scale")(names["Square"]()(layers.Dense(8)(inputs)))
    network = randomise(keras.Model(inputs, layers.Dense(3)(gated(6, name="gated")(h))))
    plan = kn.plan_pruning(network, kn.NISP(x), ratio=0.5)
    small = kn.rebuild(network, plan)
    assert small.get_layer("scale").scale.shape == (4,)
    assert small.get_layer("gated").value.shape == (4, 3)
    assert kn.verify(small, network, plan).ok

    hidden = layers.Dense(8, name="hidden")(layers.Dense(5, activation="relu")(inputs))
    network = randomise(keras.Model(inputs, layers.Dense(2)(hidden)))
    samples = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    expected = {
        names["FilterDeviation"](): network.get_layer("hidden").kernel.numpy().std(0),
        names["MeanResponse"](samples): np.abs(keras.Model(inputs, hidden)(samples)).mean(0),
    }
    for importance, scores in expected.items():
        plan = kn.plan_pruning(network, importance, ratio=0.5)
        assert plan.creators[1].removed == tuple(np.sort(np.argsort(scores)[:4]))


def language_models(names):
    """The smaller model is one of keras-hub, and computes what the pruned graph computes."""
    again, smaller = names["again"], names["smaller"]
    assert type(again) is type(names["model"])
    assert again.backbone.intermediate_dim == 32
    tokens = {name: np.asarray(values) for name, values in names["tokens"].items()}
    for net in (again, names["small"]):
        np.testing.assert_allclose(net(tokens), smaller(tokens), atol=1e-5)
    assert again.generate("ab", max_length=10).startswith("ab")
    assert keras.tree.flatten(again.preprocessor.tokenizer("abcd"))[0].shape == (2,)


CHECKS = {"custom_layers.md": custom_layers, "language_models.md": language_models}


@pytest.mark.parametrize("page", [pytest.param(p, marks=_marks(p), id=p.name) for p in PAGES])
def test_blocks_run_as_they_are_printed(page, preamble, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "_silence_native_code", lambda: None)  # for the whole process
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # of latency tables
    needs = PREAMBLE in page.read_text(encoding="utf-8") and page.name != "index.md"
    if page.name == "language_models.md":
        pytest.importorskip("keras_hub")
    names = run(page, preamble() if needs else {})
    CHECKS.get(page.name, lambda names: None)(names)


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


def test_files_behind_the_papers_are_there():
    text = (ROOT / "docs" / "how_it_works.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:/|\.py))`", text)
    assert len(named) > 12
    places = (ROOT, ROOT / "keras_nisp")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


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


def test_readme_fits_a_screen_or_two():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def anchors(page: Path) -> set[str]:
    """What headings of a page can be linked as."""
    titles = re.findall(r"(?m)^#+ (.*)", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *DOCS], ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page):
    """Those of README are absolute, so that they hold on a package index, too."""
    text = re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        inside = re.match(rf"{HOME}/(?:blob|tree|raw)/main/(.*)", link)
        if link.startswith("http") and not inside:
            continue
        assert inside or page.name != "README.md", link
        path, _, anchor = (inside[1] if inside else link).partition("#")
        target = (ROOT if inside else page.parent) / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_project_has_one_address_and_one_version():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "setup.cfg", ROOT / "mkdocs.yml")]
    assert all(HOME in text for text in texts)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {kn.__version__}\n" in citation
    assert HOME in citation
    assert f"## [{kn.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_reference_has_every_public_name():
    pages = (ROOT / "docs" / "api").glob("*.md")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert sorted(re.findall(r"::: keras_nisp\.(\w+)\n", text)) == sorted(kn.__all__)


def test_the_notebook_is_the_page():
    book = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    page = [code.strip() for language, _, code in blocks(ROOT / "docs" / "index.md")]
    assert cells == page[1:4]
    assert all(cell["outputs"] for cell in book["cells"] if cell["cell_type"] == "code")
