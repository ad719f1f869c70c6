"""The command line: what it prints, writes and refuses."""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from fresh_process import in_fresh_process
from nets import plain, randomise, residual

import keras_nisp as kn
from keras_nisp.export.interpreter import load_interpreter
from keras_nisp_cli import loading, main
from keras_nisp_cli.console import Console
from keras_nisp_cli.pruning import IMPORTANCES, NEEDS_DATA

COMMAND = [str(Path(sys.executable).with_name("keras-nisp"))]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process; gives its exit code, standard output and error."""
    monkeypatch.setattr(loading, "_silence_native_code", lambda: None)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["keras-nisp", *map(str, arguments)])
        code = 0
        try:
            main.main()
        except SystemExit as stop:
            code = stop.code or 0
        output = capsys.readouterr()
        return code, output.out, output.err

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A model whose BatchNormalization has seen standard normal data, and such data."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    x = rng.normal(size=(96, 9, 9, 3)).astype("float32")
    model = kn.recalibrate(randomise(plain()), x)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=x, y=rng.integers(0, 5, 96))
    return folder


@pytest.fixture
def files(tmp_path, made_once):
    """Copies that a test may change."""
    return shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)


def in_process(*arguments, **settings):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, **settings
    )


# Help ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *main.COMMANDS])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom keras_nisp_cli import main\n"
        "try:\n main.main()\nexcept SystemExit: pass\n"
        "heavy = {'keras', 'tensorflow', 'numpy', 'rich', 'keras_nisp'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    arguments = [*command.split(), "--help"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert "Usage: keras-nisp" in done.stdout
    assert "HEAVY []" in done.stdout


def test_version(run):
    from importlib.metadata import version

    assert run("--version") == (0, f"keras-nisp {version('keras-nisp')}\n", "")


# inspect ---------------------------------------------------------------------------


def test_inspect_says_what_can_be_pruned_and_what_not(files, run):
    code, out, err = run("inspect", files / "model.keras", "--json")
    facts = json.loads(out)
    model = keras.models.load_model(files / "model.keras")
    profile = kn.profile(model).total
    assert (code, err) == (0, "")
    assert (facts["parameters"], facts["flops"]) == (profile.parameters, profile.flops)
    assert facts["parameters"] == model.count_params()
    rows = {row["layer"]: row for row in facts["layers"]}
    assert (rows["a"]["channels"], rows["a"]["prunable"], rows["a"]["group"]) == (8, 8, 0)
    assert rows["head"]["prunable"] == 0
    assert rows["head"]["fixed_because"] == ["model output 'head'"]
    code, out, _ = run("inspect", files / "model.keras")
    assert "30 channels in 3 groups can be removed." in out
    assert "model output 'head'" in out


def test_inspect_names_coupled_layers(tmp_path, run):
    residual().save(tmp_path / "net.keras")
    _, out, _ = run("inspect", tmp_path / "net.keras")
    assert "group 0 couples stem, outer0, outer1" in out


def test_a_model_in_which_nothing_can_be_pruned(tmp_path, run):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "net.keras")
    code, out, _ = run("inspect", tmp_path / "net.keras")
    assert code == 0
    assert "No channel can be removed." in out


# prune, apply, diff -----------------------------------------------------------------


def test_prune_does_what_the_library_does(files, run):
    data = ("--calibration", files / "data.npz")
    outputs = ("-o", files / "small.keras", "--plan", files / "plan.json")
    report = ("--report", files / "report.html")
    code, out, err = run("prune", files / "model.keras", *data, "--flops", "0.5", *outputs, *report)
    assert (code, err) == (0, "")
    assert "verified: outputs differ by" in out
    model = keras.models.load_model(files / "model.keras")
    small = keras.models.load_model(files / "small.keras")
    x = np.load(files / "data.npz")["x"]
    plan = kn.plan_pruning(model, kn.NISP(x), flops_reduction=0.5, calibration=x)
    assert kn.Plan.load(files / "plan.json") == plan
    expected = kn.recalibrate(kn.rebuild(model, plan), x, model, plan)
    np.testing.assert_allclose(
        small.predict(x, verbose=0), expected.predict(x, verbose=0), rtol=1e-4, atol=1e-4
    )
    assert "keras-nisp prune" in (files / "report.html").read_text()


def own_loss(y, outputs):
    return keras.ops.mean(outputs)


@pytest.mark.parametrize("own", [False, True])
def test_prune_knows_the_loss(own, files, run):
    """It says that outputs are logits. A warning says so if it cannot be loaded."""
    model = keras.models.load_model(files / "model.keras")
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, budget = np.load(files / "data.npz")["x"], {"flops_reduction": 0.5, "verbose": 0}
    without = kn.plan_pruning(model, kn.NISP(x), calibration=x, **budget)
    model.compile("adam", own_loss if own else logits)
    model.save(files / "model.keras")
    given = ("--calibration", files / "data.npz", "--flops", "0.5")
    outputs = ("-o", files / "small.keras", "--plan", files / "plan.json")
    code, _, err = run("prune", files / "model.keras", *given, *outputs)
    assert code == 0
    assert ("own_loss" in err and "count as numbers" in err) if own else err == ""
    plan = kn.Plan.load(files / "plan.json")
    assert plan == kn.plan_pruning(model, kn.NISP(x), calibration=x, **budget)
    assert (plan == without) == own
    small = keras.models.load_model(files / "small.keras")
    assert getattr(small.loss, "from_logits", None) == (None if own else True)


def test_prune_allocates(files, run):
    """`--ranking` is what `--allocation` was called."""
    outputs = ("-o", files / "small.keras", "--plan", files / "plan.json", "--force")
    common = (files / "model.keras", *outputs, "--importance", "magnitude")

    def budget(*arguments):
        code, _, err = run("prune", *common, *arguments)
        assert code == 0, err
        return kn.Plan.load(files / "plan.json").budget

    assert budget("--memory", "0.3") == kn.Budget(memory_reduction=0.3, allocation="uniform")
    grouped = kn.Budget(flops_reduction=0.3, allocation="global")
    assert budget("--flops", "0.3", "--allocation", "global") == grouped
    assert budget("--flops", "0.3", "--ranking", "global") == grouped
    data = ("--calibration", files / "data.npz")
    assert budget("--flops", "0.3", *data).allocation == "predicted"
    assert budget("--flops", "0.3", *data, "--allocation", "uniform").allocation == "uniform"


def test_keys_and_values(run, tmp_path):
    inputs = keras.Input((6, 8))
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    model, small = tmp_path / "model.keras", tmp_path / "small.keras"
    randomise(keras.Model(inputs, keras.layers.Dense(3)(x))).save(model)
    code, _, err = run(
        "prune", model, "-o", small, "--cache", "0.5", "--importance", "magnitude"
    )  # fmt: skip
    assert code == 0, err
    code, out, _ = run("inspect", model, "--json")
    assert json.loads(out)["cache_bytes"] == 2 * (4 + 4) * 4
    code, out, _ = run("diff", model, small)
    assert re.search(r"keys/values, bytes +64 -> +\d+ ", out)


@pytest.mark.parametrize("compensate", ["mean", "none"])
def test_prune_compensates(files, run, compensate):
    model, x = keras.models.load_model(files / "model.keras"), np.load(files / "data.npz")["x"]
    data = ("--calibration", files / "data.npz", "-o", files / "small.keras")
    settings = ("--importance", "magnitude", "--ratio", "0.5", "--compensate", compensate)
    outputs = (*data, "--plan", files / "plan.json")
    code, out, err = run("prune", files / "model.keras", *outputs, *settings)
    assert (code, err) == (0, "")
    assert f"(--compensate {compensate})" in out
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    how = None if compensate == "none" else compensate
    expected = kn.recalibrate(kn.rebuild(model, plan), x, model, plan, compensate=how)
    small = keras.models.load_model(files / "small.keras")
    for got, want in zip(small.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    same = (files / "plan.json", files / "model.keras", *data, "--compensate", compensate)
    code, out, _ = run("apply", *same, "--force", "--json")
    assert (code, json.loads(out)["compensate"]) == (0, compensate)
    again = keras.models.load_model(files / "small.keras")
    for got, want in zip(again.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["linear", "mean"])
def test_compensation_needs_data(files, run, how):
    model, settings = files / "model.keras", ("--compensate", how, "-o", files / "small.keras")
    pruning = ("prune", model, "--importance", "magnitude", "--ratio", "0.5")
    for command in (pruning, ("apply", files / "plan.json", model)):
        code, _, err = run(*command, *settings)
        assert code == 2
        assert "give --calibration" in err


def test_what_was_not_repaired_says_why(files, run):
    pruning = ("prune", files / "model.keras", "--ratio", "0.5", "-o", files / "small.keras")
    _, out, _ = run(*pruning, "--calibration", files / "data.npz", "--no-recalibrate")
    assert "not recalibrated (--no-recalibrate)" in out
    _, out, _ = run(*pruning, "--importance", "nisp-mag", "--force")
    assert "not recalibrated (no --calibration)" in out


def test_apply_gives_the_same_model(files, run):
    model = files / "model.keras"
    common = ("--importance", "magnitude", "--ratio", "0.5")
    run("prune", model, *common, "-o", files / "a.keras", "--plan", files / "plan.json")
    code, out, _ = run("apply", files / "plan.json", model, "-o", files / "b.keras", "--json")
    assert code == 0
    assert json.loads(out)["widths"]["a"] == [8, 4]
    first, second = (keras.models.load_model(files / f"{name}.keras") for name in "ab")
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    code, out, _ = run("diff", files / "a.keras", files / "b.keras")
    assert "All layers are alike." in out


def test_a_model_that_was_overwritten_is_not_compared_with_itself(files, run, tmp_path):
    path = tmp_path / "m.keras"
    path.write_bytes((files / "model.keras").read_bytes())
    given = ("--ratio", 0.5, "--importance", "magnitude")
    code, out, _ = run("prune", path, *given, "-o", path, "--force")
    assert code == 0
    assert "next: fine-tune" in out
    assert "keras-nisp diff" not in out


def test_diff_compares_widths_outputs_and_accuracy(files, run):
    small = files / "small.keras"
    model, data = files / "model.keras", files / "data.npz"
    run("prune", model, "--importance", "bn-scale", "--ratio", "0.5", "-o", small)
    code, out, _ = run("diff", model, small, "--data", data, "--json")
    facts = json.loads(out)
    rows = {row["layer"]: row for row in facts["layers"]}
    assert code == 0
    assert rows["a"]["channels"] == [8, 4]
    models = [keras.models.load_model(path) for path in (model, small)]
    assert [m["parameters"] for m in facts["models"]] == [m.count_params() for m in models]
    loaded = np.load(data)
    a, b = (m.predict(loaded["x"], verbose=0) for m in models)
    assert facts["outputs"]["largest_difference"] == pytest.approx(np.abs(a - b).max(), rel=1e-3)
    right = [(v.argmax(-1) == loaded["y"]).mean() for v in (a, b)]
    assert facts["outputs"]["accuracy"] == pytest.approx(right)
    for y in (loaded["y"][:, None], np.eye(int(loaded["y"].max()) + 1)[loaded["y"]]):
        np.savez(files / "other_labels.npz", x=loaded["x"], y=y)
        _, out, _ = run("diff", model, small, "--data", files / "other_labels.npz", "--json")
        assert json.loads(out)["outputs"]["accuracy"] == pytest.approx(right)


def test_a_share_of_channels_that_is_no_share(files, run):
    budget = ("--importance", "magnitude", "--ratio", "0.5", "--min-channels", "2.5")
    code, _, error = run("prune", files / "model.keras", *budget, "-o", files / "small.keras")
    assert (code, "Expected `min_channels`" in error) == (2, True), error


def test_diff_of_models_bound_to_a_batch(tmp_path, run):
    inputs = keras.Input((4, 3), batch_size=2)
    state = keras.layers.GRU(4, stateful=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(state))
    x = np.random.default_rng(0).normal(size=(6, 4, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(6) % 3)
    code, out, _ = run("diff", *[tmp_path / "model.keras"] * 2, "--data", tmp_path / "data.npz")
    assert code == 0
    assert "outputs differ by 0 or less" in out
    assert "accuracy" in out


@pytest.mark.parametrize("importance", [name for name in IMPORTANCES if name != "bn-scale"])
def test_every_importance_has_a_name(importance, files, run):
    needs = ("--calibration", files / "data.npz") if importance in NEEDS_DATA else ()
    budget = ("--params", "0.3", "--allocation", "uniform")
    arguments = ("--importance", importance, *budget, "-o", files / "small.keras")
    code, out, err = run("prune", files / "model.keras", *needs, *arguments, "-q")
    assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize("compiles", [True, False])
@pytest.mark.parametrize("column", [True, False])
def test_taylor_of_one_sigmoid(column, compiles, tmp_path, run):
    """By the loss in the file, or by that of the outputs: no softmax over one class."""
    head = keras.layers.Dense(1, activation="sigmoid")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="a"), head])
    if compiles:
        model.compile("sgd", "binary_crossentropy", jit_compile=False)
    model.save(tmp_path / "model.keras")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 4)).astype("float32"), rng.integers(0, 2, (96, 1))
    np.savez(tmp_path / "data.npz", x=x, y=y if column else y[:, 0])
    made = ("--calibration", tmp_path / "data.npz", "-o", tmp_path / "small.keras")
    plan = ("--plan", tmp_path / "plan.json", "--compensate", "none")
    budget = ("--importance", "taylor", "--ratio", "0.5", "--allocation", "uniform")
    code, _, error = run("prune", tmp_path / "model.keras", *budget, *made, *plan, "-q")
    assert (code, error) == (0, "")
    taylor = kn.Taylor((x, y.astype("float32")), "binary_crossentropy")
    wanted = kn.plan_pruning(model, taylor, ratio=0.5, allocation="uniform")
    assert kn.Plan.load(tmp_path / "plan.json").creators == wanted.creators


def test_clusters_that_have_not_collapsed(files, run):
    run("merge", files / "model.keras", "--ratio", "0.5", "-o", files / "merging.json")
    made = (files / "merging.json", files / "model.keras", "-o", files / "small.keras", "--force")
    code, _, error = run("apply", *made)
    assert code == 2
    assert "would not be free of loss" in error
    assert "or merge in Python by `rebuild(force=True)`" in error  # `--force` is another thing
    assert not (files / "small.keras").exists()


@pytest.mark.slow
def test_latency_is_measured(tmp_path, run, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no table of this machine's user
    layers = [keras.layers.Conv2D(128, 3, activation="relu") for _ in range(2)]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)]
    keras.Sequential([keras.Input((16, 16, 16)), *layers, *head]).save(tmp_path / "net.keras")
    arguments = ("--importance", "random", "--latency", "0.2", "-o", tmp_path / "small.keras")
    code, out, err = run("prune", tmp_path / "net.keras", *arguments)
    assert code == 0, err
    assert "latency: wanted -20.0 %, by the table -" in out
    assert list((tmp_path / "cache").rglob("latency-*.json"))
    widths = [
        layer.filters for layer in keras.models.load_model(tmp_path / "small.keras").layers[:2]
    ]
    assert min(widths) < 128


def test_nothing_is_overwritten_unless_told(files, run):
    output = files / "small.keras"
    output.write_text("precious")
    arguments = ("prune", files / "model.keras", "--importance", "random", "--ratio", "0.5", "-o")
    code, _, err = run(*arguments, output)
    assert code == 2
    assert "exists. Pass --force to replace it." in err
    assert output.read_text() == "precious"
    assert run(*arguments, output, "--force", "-q")[0] == 0
    assert keras.models.load_model(output).count_params() > 0


def test_shares_and_widths_by_layer(files, run):
    common = ("prune", files / "model.keras", "--importance", "magnitude", "-o")

    def widths(name, *arguments):
        code, out, err = run(*common, files / f"{name}.keras", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)["widths"]

    assert widths("a", "--ratios", "a=0.25")["a"] == [8, 6]
    assert widths("b", "--widths", "a=5")["a"] == [8, 5]
    as_in_a = widths("c", "--widths", files / "a.keras")
    assert {name: kept for name, (_, kept) in as_in_a.items()} == {
        layer.name: layer.weights[0].shape[-1]
        for layer in keras.models.load_model(files / "a.keras").layers
        if layer.name in as_in_a
    }


def test_accuracies_and_what_comes_next_are_told(files, run):
    model, small = files / "model.keras", files / "small.keras"
    data = ("--calibration", files / "data.npz")
    code, out, _ = run("prune", model, *data, "--ratio", "0.5", "-o", small)
    assert code == 0
    loaded = np.load(files / "data.npz")
    right = [
        (keras.models.load_model(path).predict(loaded["x"], verbose=0).argmax(-1) == loaded["y"])
        for path in (model, small)
    ]
    told = f"accuracy {right[0].mean():.4f} -> {right[1].mean():.4f} on the 96 calibration samples"
    assert told in out.splitlines()
    assert out.splitlines()[-1] == f"next: keras-nisp diff {model} {small} --data {data[1]}"
    code, out, _ = run("inspect", model)
    follow = f"next: keras-nisp prune {model} --calibration DATA --flops 0.5 -o small.keras"
    assert out.splitlines()[-1] == follow
    code, out, _ = run("diff", model, small, *("--data", files / "data.npz"))
    lines = out.splitlines()
    assert lines[0] == f"{model} -> {small}"
    assert [line.split()[0] for line in lines[1:6]] == [
        *("parameters", "FLOPs", "activations,", "file,", "accuracy")
    ]
    assert lines.index("Layers that differ") > 6


def test_tables_fit(tmp_path, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    x = inputs = keras.Input((4, 4, 3))
    long = "a_rather_long_name_of_a_block_in_the_middle_of_a_network_{}_conv"
    for block in range(2):
        x = keras.layers.Conv2D(16, 1, name=long.format(block))(x)
        x = keras.layers.BatchNormalization(name=f"bn{block}")(x)
    x = keras.layers.Dense(2, name="head")(keras.layers.GlobalAveragePooling2D()(x))
    net, small = tmp_path / "net.keras", tmp_path / "small.keras"
    keras.Model(inputs, x).save(net)
    pruning = ("prune", net, "--importance", "random", "--ratio", "0.5", "-o", small, "-f")
    for command in (pruning, ("inspect", net), ("diff", net, small)):
        code, out, _ = run(*command)
        table = [line for line in out.splitlines() if line.startswith("  ") or "─" in line]
        assert code == 0
        assert 70 < max(map(len, table)) <= 80
        assert "bn0" not in out
        assert "2 without FLOPs" in out
        code, out, _ = run(*command, "--wide")
        assert "bn0" in out
        assert long.format(0) in out


def test_merging_is_planned_and_applied(tmp_path, run):
    """What C-SGD has made identical merges without loss; what it has not is refused."""
    units = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
    network = keras.Sequential([keras.Input((6,)), *units])
    model, path, small = (tmp_path / name for name in ("net.keras", "plan.json", "small.keras"))
    network.save(model)
    planning = ("merge", model, "--ratio", "0.5", "-o", path)
    code, out, err = run(*planning, "--steps", 2000, "--learning-rate", 0.1)
    assert (code, err) == (0, "")
    assert "After 2,000 steps" in out
    assert out.splitlines()[-1] == f"next: keras-nisp apply {path} TRAINED -o small.keras"
    plan = kn.Plan.load(path)
    assert plan.creators == kn.plan_merging(network, ratio=0.5).creators
    code, _, err = run("apply", path, model, "-o", small)
    assert code == 2
    assert "deviation" in err
    kernel, bias = units[0].get_weights()
    for cluster in map(list, plan.creators[0].clusters):
        kernel[:, cluster] = kernel[:, cluster].mean(-1, keepdims=True)
        bias[cluster] = bias[cluster].mean()
    units[0].set_weights([kernel, bias])
    network.save(model)
    code, out, err = run("apply", path, model, "-o", small)
    assert (code, err) == (0, "")
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    merged = keras.models.load_model(small)
    assert merged.layers[0].units == 4
    np.testing.assert_allclose(merged(x), network(x), atol=1e-5)


def test_a_terminal_sees_bars_on_standard_error(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    watched, quiet = Console(), Console()
    quiet.quiet = True
    for console, expected in ((watched, 1), (quiet, 0)):
        with console.watching() as verbose:
            assert verbose == expected
            print("a bar")
    assert sys.stderr.getvalue() == "a bar\n"
    assert capsys.readouterr().out == "a bar\n"


def test_help_has_groups(run):
    _, out, _ = run("prune", "--help")
    titles = [line[:-1] for line in out.splitlines() if re.fullmatch(r"\S.*:", line)]
    assert titles == [
        *("Files", "How much to remove: one of these", "Latency", "What goes", "Limits"),
        *("Data", "Repair", "Model", "Output", "Options"),
    ]


# export, benchmark -------------------------------------------------------------------


def test_export_and_benchmark(files, run):
    model, data = files / "model.keras", ("--data", files / "data.npz")
    tflite, serving = files / "a.tflite", files / "models" / "a"
    code, out, _ = run("export", model, "--tflite", tflite, "--serving", serving, *data, "--json")
    facts = json.loads(out)
    assert code == 0
    assert set(facts) == {"TFLite", "TF Serving"}
    assert all(not f["agreement"]["random"] for f in facts.values())
    assert facts["TFLite"]["bytes"] == tflite.stat().st_size
    assert facts["TFLite"]["agreement"]["top1"] == 1
    loaded = np.load(files / "data.npz")
    answers = keras.models.load_model(model).predict(loaded["x"], verbose=0).argmax(-1)
    right = (answers == loaded["y"]).mean()
    assert facts["TFLite"]["agreement"]["accuracy"] == pytest.approx([right, right])
    assert (serving / "1" / "saved_model.pb").exists()
    int8 = files / "int8.tflite"
    one = ("--quantization", "int8", "--batch-size", 1)
    code, out, _ = run("export", model, "--tflite", int8, *one, *data)
    assert code == 0
    assert load_interpreter(int8).get_input_details()[0]["shape_signature"][0] == 1
    plain = ("--quantization", "float32", "--force")
    assert run("export", model, "--tflite", tflite, *plain, *data)[0] == 0
    assert re.search(r"top-1 agrees for [\d.]+ %, accuracy 0\.\d{4} -> 0\.\d{4}", out)
    speed = ("--rounds", 2, "--repeats", 2)
    code, out, _ = run("benchmark", tflite, int8, *speed, "--json")
    assert [m["name"] for m in json.loads(out)["models"]] == ["a.tflite", "int8.tflite"]
    code, out, _ = run("benchmark", model, int8, *speed)
    assert "int8.tflite is" in out
    assert code == 0


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("tflite", "no TFLite operation for Erfinv"),
        pytest.param(
            "onnx", "tf2onnx has no translation of Erfinv", marks=pytest.mark.bridges, id="onnx"
        ),
    ],
)
def test_what_cannot_be_exported_is_said(kind, said, tmp_path, run):
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.ops.erfinv(inputs)).save(tmp_path / "odd.keras")
    code, _, err = run("export", tmp_path / "odd.keras", f"--{kind}", tmp_path / f"a.{kind}")
    assert code == 2
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["odd.keras"]


def test_labels_and_warm_up(files, run):
    labels = files / "labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n")
    serving = ("--serving", files / "net", "--top-k", "2", "--labels", labels)
    code, out, _ = run(
        "export", files / "model.keras", *serving, "--warmup", "--data", files / "data.npz"
    )
    assert code == 0
    assert "top_k(input) -> classes, scores" in out
    assert (files / "net/1/assets.extra/tf_serving_warmup_requests").exists()


@pytest.mark.slow
def test_teaching(files, run):
    """As by the function: closer to the original than without, and said so."""
    settings = ("--importance", "magnitude", "--ratio", "0.5", "--plan", files / "plan.json")
    data, small = ("--calibration", files / "data.npz"), files / "small.keras"
    command = ("prune", files / "model.keras", *settings, *data, "-o", small, "-f")
    model, x = keras.models.load_model(files / "model.keras"), np.load(files / "data.npz")["x"]
    apart = []
    for steps in (0, 200):
        code, out, err = run(*command, "--teach-steps", steps)
        assert (code, err) == (0, "")
        assert ("taught for 200 steps" in out) == (steps > 0)
        apart.append(np.square(keras.models.load_model(small)(x) - model(x)).mean())
    assert apart[1] < 0.9 * apart[0]
    taught = keras.models.load_model(small).get_weights()
    again = ("apply", files / "plan.json", files / "model.keras", *data, "-o", small, "-f")
    code, out, _ = run(*again, "--teach-steps", 200, "--json")
    assert (code, json.loads(out)["teach_steps"]) == (0, 200)
    for old, new in zip(taught, keras.models.load_model(small).get_weights(), strict=True):
        np.testing.assert_allclose(old, new, atol=1e-4)
    for without in (("--calibration", files / "data.npz", "--no-recalibrate"), ()):
        command = ("prune", files / "model.keras", *settings[:4], *without, "-o", small, "-f")
        code, _, err = run(*command, "--teach-steps", 40)
        assert code == 2
        assert "--teach-steps 40 looks at data: give --calibration" in err


# sensitivity -------------------------------------------------------------------------


def test_sensitivity_without_labels(files, run):
    data, output = files / "data.npz", files / "s.json"
    command = ("sensitivity", files / "model.keras", "-o", output, "--ratios", "0.5")
    code, out, err = run(*command, "--calibration", data, "--json")
    model, x = keras.models.load_model(files / "model.keras"), np.load(data)["x"]
    expected = kn.sensitivity(model, kn.Magnitude(), calibration=x, ratios=[0.5]).to_dict()
    assert (code, err, json.loads(out)) == (0, "", expected)
    code, out, _ = run(*command, "--calibration", data)
    assert "damage to the outputs" in out
    for given in ((), ("--data", data, "--calibration", data)):
        code, _, err = run(*command, *given)
        assert code == 2
        assert "--data, with labels, or --calibration" in err


def test_sensitivity_goes_on_where_it_was(files, run, monkeypatch):
    data, output = files / "data.npz", files / "s.json"
    arguments = ("sensitivity", files / "model.keras", "--data", data, "-o", output)
    code, out, _ = run(*arguments, "--ratios", "0.5", "--json", "--plot", files / "s.png")
    first = json.loads(out)
    assert code == 0
    assert len(first["groups"]) == 3
    assert (files / "s.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads(output.read_text())
    keys = {key[:5]: key for key in kept["results"]}
    del kept["results"][keys["2 0.5"]]  # as after an interruption
    kept["results"][keys["0 0.5"]] = 0.125  # known results are not measured again
    output.write_text(json.dumps(kept))
    code, out, _ = run(*arguments, "--ratios", "0.5", "--json")
    second = json.loads(out)
    assert second["accuracies"][0] == [0.125]
    assert second["accuracies"][2] == first["accuracies"][2]
    code, _, err = run(*arguments, "--importance", "random")
    assert code == 2
    assert "results of another model, importance, metric" in err


# What is wrong with files and data ----------------------------------------------------


def test_files_that_are_no_models(files, run):
    for path, text in (
        (files / "data.npz", "is no Keras model"),
        (files, "is no Keras model"),
        (files / "nix.keras", "There is no file"),
    ):
        code, out, err = run("inspect", path)
        assert (code, out) == (2, "")
        assert text in err
    damaged = files / "damaged.keras"
    damaged.write_bytes((files / "model.keras").read_bytes()[:-200])
    code, _, err = run("inspect", damaged)
    assert code == 2
    assert "is no Keras model" in err


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_code_in_a_model_file_is_not_run(ending, tmp_path, run):
    path, mark = tmp_path / f"lambda.{ending}", tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).write_text('run')"
    function = eval(f"lambda x: ({code}, x)[1]")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Lambda(function)(inputs)))
    model.save(path)
    mark.unlink()
    exit_code, _, err = run("inspect", path)
    assert exit_code == 2
    assert "pass --unsafe" in err
    assert not mark.exists()
    assert run("inspect", path, "--unsafe")[0] == 0
    assert mark.exists()


LAYERS = """
import keras

@keras.saving.register_keras_serializable("mine")
class Halve(keras.layers.Layer):
    def call(self, x):
        return x / 2

class Double(keras.layers.Layer):
    def call(self, x):
        return x * 2
"""
RULE = """
import keras_nisp
keras_nisp.register_rule(Halve)(keras_nisp.PassThrough)
"""
SHADOWS = ("jinja2", "h5py", "rich", "scipy")
MAKE = """
import keras, sys
sys.path.append(sys.argv[1])
import my_layers
inputs = keras.Input((4,))
x = keras.layers.Dense(8, name="hidden")(keras.layers.Dense(8)(inputs))
x = my_layers.Double(name="double")(my_layers.Halve()(x))
keras.Model(inputs, keras.layers.Dense(2)(x)).save(sys.argv[2])
"""


def test_custom_objects_come_from_modules_of_the_user(tmp_path, run):
    (tmp_path / "my_layers.py").write_text(LAYERS)
    in_fresh_process(MAKE, tmp_path, tmp_path / "custom.keras")
    (tmp_path / "my_layers.py").write_text(LAYERS + RULE)
    code, _, error = run("inspect", tmp_path / "custom.keras")
    assert code == 2
    assert "needs 'Halve', which is not part of Keras" in error  # not 'Functional'
    assert "--custom-objects module:Halve" in error
    for name in SHADOWS:  # libraries beside the data; the folder is looked up last
        (tmp_path / f"{name}.py").write_text("open('mark', 'w')")
    pruning = ("prune", "custom.keras", "--importance", "magnitude", "--ratio", "0.5")
    files = ("--custom-objects", "my_layers:Double", "-o", "small.keras", "--report", "a.html")
    done = in_process(*pruning, *files, cwd=tmp_path)
    assert (done.returncode, (tmp_path / "mark").exists()) == (0, False), done.stderr
    assert "No rule follows channels through 'double'" in done.stderr
    assert (tmp_path / "a.html").exists()
    code, _, error = run("inspect", tmp_path / "custom.keras", "--custom-objects", "nix")
    assert (code, "No module named 'nix'" in error) == (2, True)


@pytest.mark.slow
def test_the_working_folder_is_no_library(tmp_path):
    """A file beside the data that is called like a library is not run; with custom objects, above,
    neither."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("open('mark', 'w')")
    plain().save(tmp_path / "net.keras")
    pruning = ("prune", "net.keras", "--importance", "magnitude", "--ratio", "0.5")
    outputs = ("-o", "small.keras", "--report", "report.html")
    done = in_process(*pruning, *outputs, cwd=tmp_path)
    assert (done.returncode, (tmp_path / "mark").exists()) == (0, False), done.stderr


def test_models_in_h5_files(tmp_path, run):
    model = plain()
    expected = kn.rebuild(model, kn.plan_pruning(model, kn.Magnitude(), ratio=0.5))
    model.compile("adam", "mse")
    model.save(tmp_path / "net.h5")
    pruning = ("prune", tmp_path / "net.h5", "--importance", "magnitude", "--ratio", "0.5")
    assert run(*pruning, "-o", tmp_path / "small.keras")[0] == 0
    small = keras.models.load_model(tmp_path / "small.keras")
    for got, want in zip(small.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_damaged_data(files, run):
    whole, x = (files / "data.npz").read_bytes(), np.load(files / "data.npz")["x"]
    at = whole.index(b"NUMPY") + 5000
    (files / "corrupt.npz").write_bytes(whole[:at] + b"noise" + whole[at + 5 :])
    (files / "empty.npy").touch()
    (files / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(files / "labels.npz", x=x, y=np.arange(5))
    np.savez(files / "objects.npz", x=np.array([{}, None]))
    arguments = ("prune", files / "model.keras", "--ratio", "0.5", "-o", files / "small.keras")
    for name, text in (
        ("corrupt.npz", "or damaged: Bad CRC-32 for file 'x.npy'"),
        ("empty.npy", "or damaged: No data left in file"),
        ("half.npz", "or damaged"),
        ("objects.npz", "or damaged: Object arrays"),
        ("labels.npz", "a label for each of the 96 samples"),
        (".", "or damaged"),
    ):
        code, out, err = run(*arguments, "--calibration", files / name)
        assert (code, out) == (2, "")
        assert text in err
        assert err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_arrays_by_the_names_and_keys_of_inputs(tmp_path, run):
    """Also where an input is called `y`, as labels are otherwise."""
    first, second = keras.Input((4,), name="x"), keras.Input((3,), name="y")
    joined = keras.layers.Concatenate()([first, second])
    outputs = keras.layers.Dense(2)(keras.layers.Dense(8)(joined))
    x, y = (np.random.default_rng(0).normal(size=(64, size)) for size in (4, 3))
    for inputs, given in (
        ([first, second], {"x": x, "y": y}),
        ({"left": first, "right": second}, {"left": x, "right": y, "y": np.arange(64)}),
    ):
        keras.Model(inputs, outputs).save(tmp_path / "model.keras")
        np.savez(tmp_path / "data.npz", **given)
        made = ("--ratio", "0.5", "-o", tmp_path / "small.keras", "--force")
        code, _, err = run(
            "prune", tmp_path / "model.keras", "--calibration", tmp_path / "data.npz", *made
        )
        assert code == 0, err
    np.savez(tmp_path / "data.npz", x=x)
    code, _, err = run("diff", *[tmp_path / "model.keras"] * 2, "--data", tmp_path / "data.npz")
    assert code == 2
    assert "['left', 'right'] or ['x', 'y'] (and `y`, labels). It holds ['x']." in err


def test_an_error_leaves_all_files_as_they_were(files, run):
    model, plan, output = (files / name for name in ("model.keras", "plan.json", "small.keras"))
    pruning = ("--importance", "magnitude", "--ratio", "0.5")
    run("prune", model, *pruning, "-o", output, "--plan", plan)
    before = {path: path.read_bytes() for path in files.iterdir()}
    report = ("--report", files / ("long" * 64 + ".html"))  # no file system takes such a name
    for command in (("prune", model, *pruning, "--plan", plan), ("apply", plan, model)):
        code, out, err = run(*command, "-o", output, *report, "--force")
        assert (code, out) == (2, ""), err
        assert {path: path.read_bytes() for path in files.iterdir()} == before
    (files / "net" / "1").mkdir(parents=True)
    exporting = ("--tflite", files / "a.tflite", "--serving", files / "net", "--version", 1)
    code, _, err = run("export", model, *exporting)
    assert code == 2
    assert not (files / "a.tflite").exists()


def test_sizes_of_files_are_compared_without_optimizers(tmp_path, run):
    model = plain()
    model.compile("adam", "mse")
    model.save(tmp_path / "fresh.keras")
    model.optimizer.build(model.trainable_variables)
    for ending in ("keras", "h5"):
        model.save(tmp_path / f"trained.{ending}")
        slots = 8 * sum(np.prod(v.shape) for v in model.trainable_variables)  # two of float32
        code, out, _ = run("diff", tmp_path / f"trained.{ending}", tmp_path / "fresh.keras")
        assert code == 0
        held = re.search(r"trained.* also holds ([\d,]+) bytes of its optimizer", out)[1]
        held = int(held.replace(",", ""))
        assert slots <= held <= slots + 100
    assert "left out" not in run("diff", tmp_path / "fresh.keras", tmp_path / "fresh.keras")[1]


def test_data_of_another_shape_or_range(files, run):
    x = np.load(files / "data.npz")["x"]
    np.save(files / "shape.npy", x[:, :5])
    np.savez(files / "range.npz", x=255 * x)
    np.savez(files / "names.npz", images=x, other=x)
    (files / "notes.txt").write_text("notes")
    arguments = ("prune", files / "model.keras", "--ratio", "0.5", "-o", files / "small.keras")
    for name, text in (
        ("shape.npy", "Expected calibration data of shape (samples, 9, 9, 3)"),
        ("names.npz", "It holds ['images', 'other']"),
        ("nix.npz", "there is no file"),
        ("notes.txt", "is no .npz or .npy file"),
    ):
        code, _, err = run(*arguments, "--calibration", files / name)
        assert code == 2
        assert text in err
        assert not (files / "small.keras").exists()
    code, _, err = run(*arguments, "--calibration", files / "range.npz")
    assert code == 2  # a model that is repaired on these would be broken
    assert "another range than the model was trained on" in err
    assert "such as --scale 255, or --scale 1 if they are right" in err
    assert not (files / "small.keras").exists()
    told = (*arguments, "--force", "--calibration", files / "range.npz", "--scale")
    code, _, err = run(*told, "1")
    assert code == 0
    assert err.count("another range than the model was trained on") == 1
    assert run(*told, "255")[2] == ""


def test_unknown_layers_are_answered_with_the_nearest(files, run):
    code, _, err = run(
        "prune", files / "model.keras", "--importance", "random", "--ratio", "0.5",
        "--exclude", "heed", "-o", files / "small.keras",
    )  # fmt: skip
    assert code == 2
    assert "Did you mean 'head'" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("prune", "MODEL", "-o", "a.keras", "--importance", "random"), "exactly one of --flops"),
        (("prune", "MODEL", "-o", "a.keras", "--flops", "0.5"), "give --calibration"),
        (("prune", "MODEL", "-o", "a.h5", "--flops", "0.5"), "--calibration"),
        (("prune", "MODEL", "-o", "a.keras", "--flops", "1.5"), "not in the range"),
        (
            ("prune", "MODEL", "-o", "a.keras", "--ratio", "0.5", "--allocation", "measured"),
            "--calibration",
        ),
        (
            ("prune", "MODEL", "-o", "no/a.keras", "--flops", "0.5", "--importance", "random"),
            "make",
        ),
        (("export", "MODEL"), "--serving FOLDER"),
        (("export", "MODEL", "--tflite", "a.tflite", "--quantization", "int8"), "needs --data"),
        (("export", "MODEL", "--tflite", "a.tflite", "--top-k", "2"), "goes with --serving"),
        (("export", "MODEL", "--serving", "a", "--batch-size", "1"), "--tflite or --onnx"),
        (("export", "MODEL", "--tflite", "a.tflite", "--onnx", "a.bin"), "ends in .onnx"),
        (("inspect", "MODEL", "--input-shape", "big"), "a shape such as"),
        (("inspcet", "MODEL"), "Did you mean 'inspect'?"),
        (
            ("prune", "MODEL", "-o", "a.keras", "--ratio", "0.5", "--importance", "magnitud"),
            "Did you mean 'magnitude'?",
        ),
        (
            ("prune", "MODEL", "-o", "a.keras", "--widths", "a=b", "--importance", "random"),
            "Expected --widths such as",
        ),
        (("merge", "MODEL", "-o", "a.json", "--latency", "0.5"), "No such option"),
        (
            ("merge", "MODEL", "-o", "a.json", "--ratio", "0.5", "--clustering", "activations"),
            "give --calibration",
        ),
        (("apply", "MODEL", "MODEL", "-o", "a.keras"), "Expected a plan"),
        (
            ("sensitivity", "MODEL", "--data", "tfds:nix", "-o", "s.json", "--data-dir", "."),
            "tfds:",
        ),
    ],
)
def test_wrong_arguments(arguments, text, files, run, monkeypatch):
    monkeypatch.chdir(files)
    before = sorted(path.name for path in files.iterdir())
    code, out, err = run(*(str(files / "model.keras") if a == "MODEL" else a for a in arguments))
    assert (code, out) == (2, "")
    assert text in err
    assert sorted(path.name for path in files.iterdir()) == before


@contextlib.contextmanager
def small_files():
    """A limit on the size of files is what a full disk is to whoever writes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(files, run):
    before = sorted(files.iterdir())
    arguments = ("--importance", "random", "--ratio", "0.1", "-o", files / "small.keras")
    with small_files():
        code, _, err = run("prune", files / "model.keras", *arguments)
    assert code == 2
    assert "Error:" in err
    assert "Traceback" not in err
    with small_files():
        code, _, err = run("export", files / "model.keras", "--serving", files / "net")
    assert code == 2
    assert "Traceback" not in err
    assert [p for p in sorted(files.iterdir()) if p.name != "net"] == before
    assert not any((files / "net").iterdir())


def test_interrupted_commands_leave_no_half_file(files):
    data = files / "data.npz"
    arguments = ("sensitivity", files / "model.keras", "--data", data, "-o", files / "s.json")
    ratios = ",".join(str(i / 100) for i in range(1, 99))
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--ratios", ratios],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        limit = time.monotonic() + 120
        while not (files / "s.json").exists() and time.monotonic() < limit:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()  # does nothing to one that has ended
    assert process.returncode == 130
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert json.loads((files / "s.json").read_text())["results"]["baseline"] >= 0
    assert sorted(os.listdir(files)) == ["data.npz", "model.keras", "s.json"]
