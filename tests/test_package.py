"""The package from outside: import cost, environment, public names."""

import configparser
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_nisp as kn
from keras_nisp.plans.budget import BudgetKeywords
from keras_nisp_cli import loading


def test_import_adds_nothing_slow():
    """What `import keras_nisp` loads beyond `import keras` is itself and SciPy's graphs."""
    code = """
import sys, keras
before = set(sys.modules)
import keras_nisp
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
heavy = ("scipy.stats", "scipy.linalg", "sklearn", "matplotlib", "rich.table",
         "tensorflow_datasets", "tensorflow_model_optimization")
print(*[name for name in heavy if name in sys.modules and name not in before])
"""
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    packages, heavy = output.splitlines()[-2:]
    assert heavy == ""
    assert set(packages.split()) - set(sys.stdlib_module_names) <= {"keras_nisp", "scipy"}


def test_other_backends_are_refused(monkeypatch):
    from keras_nisp._environment import check_environment

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="'jax': set KERAS_BACKEND=tensorflow"):
        check_environment()


def test_old_keras_is_refused(monkeypatch):
    from keras_nisp._environment import check_environment

    monkeypatch.setattr(keras, "__version__", "3.11.3")
    with pytest.raises(ImportError, match=r"Keras 3\.12 or newer"):
        check_environment()


def test_models_of_keras_2_are_refused(monkeypatch):
    """TFMOT switches a process to Keras 2 when it is imported."""
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    with pytest.raises(TypeError, match="TF_USE_LEGACY_KERAS is set"):
        kn.profile(object())


def _network() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(6), keras.layers.Dense(2)])


WITHOUT = {
    "onnx": ("tf2onnx", lambda path: kn.export_onnx(_network(), path / "net.onnx")),
    "serving": (
        "tensorflow_serving",
        lambda path: kn.export_serving(_network(), path / "net", warmup=np.ones((2, 4))),
    ),
    "tfmot": ("tensorflow_model_optimization", lambda path: kn.import_tfmot()),
    "tfmot, converting": ("tf_keras", lambda path: kn.to_tf_keras(_network())),
    "examples": (
        "matplotlib",
        lambda path: kn.sensitivity(
            _network(), kn.Magnitude(), calibration=np.eye(4), ratios=[0.5], verbose=0
        ).plot(path / "net.png"),
    ),
    "examples, data": (
        "tensorflow_datasets",
        lambda path: loading._from_tfds("tfds:mnist", None, 1),
    ),
}


@pytest.mark.filterwarnings("ignore:Calibration data")
@pytest.mark.parametrize("case", WITHOUT)
def test_an_extra_that_is_missing_is_named(case, tmp_path, monkeypatch):
    """In one sentence. (Without `litert` TensorFlow's interpreter runs: test_benchmarking.py.)"""
    package, use = WITHOUT[case]
    for name in [package, *(n for n in sys.modules if n.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    extra = case.partition(",")[0]
    with pytest.raises(ImportError, match=rf"\w+ needs? packages .*{package}.*") as raised:
        use(tmp_path)
    assert str(raised.value).endswith(f': `pip install "keras-nisp[{extra}]"`.')
    assert not list(tmp_path.iterdir())


def test_public_names():
    assert len(kn.__all__) == len(set(kn.__all__))
    assert set(dir(kn)) == {*kn.__all__, "__version__"}


def _functions(thing):
    """A public function, or the constructor, methods and properties of a class."""
    if not isinstance(thing, type):
        yield thing
        return
    for cls in thing.__mro__:
        if cls.__module__.partition(".")[0] != "keras_nisp":
            continue
        for name, value in vars(cls).items():
            if name.startswith("_") and name not in ("__init__", "__call__"):
                continue
            parts = [getattr(value, key, None) for key in ("fget", "fset", "func", "__func__")]
            yield from filter(inspect.isfunction, [value, *parts])


@pytest.mark.parametrize("public", kn.__all__)
def test_public_signatures_say_all_types(public):
    """`py.typed` promises them to type checkers."""
    untyped = []
    for function in _functions(getattr(kn, public)):
        signature = inspect.signature(function)
        known = {name: p.annotation for name, p in signature.parameters.items()}
        known["return"] = signature.return_annotation
        for name, annotation in known.items():
            if annotation is signature.empty and name not in ("self", "cls"):
                untyped.append((function.__qualname__, name))
    assert not untyped


@pytest.mark.parametrize("public", kn.__all__)
def test_public_docstrings_are_complete(public):
    """What it is, each argument, what comes back, and an example, which doctests run."""
    thing = getattr(kn, public)
    text = inspect.getdoc(thing)
    assert len(text.split("\n\n")[0].split()) > 2
    if isinstance(thing, type) and issubclass(thing, Exception):
        return
    said = re.search(r"(?ms)^(?:Args|Attributes):\n(.*?)(?:\n\n|\Z)", text)
    said = re.findall(r"(?m)^    (\S[^:]*):", said[1]) if said else []
    said = {name.lstrip("*") for names in said for name in names.split(", ")}
    signature = inspect.signature(thing)
    given = "\nAttributes:\n" in text and "\nArgs:\n" not in text  # others make it
    taken = set() if given else set(signature.parameters)
    if "keywords" in said:  # of a budget, which its own docstring explains
        taken -= BudgetKeywords.__annotations__.keys()
    assert taken - said <= {"kwargs", "name"}  # as everywhere in Keras
    if not isinstance(thing, type) and signature.return_annotation is not None:
        assert "\nReturns:\n" in text
    assert "\n>>> " in text or "Example: see" in text


@pytest.mark.parametrize("package", ["keras_nisp", "keras_nisp_cli"])
def test_types_are_shipped(package):
    root = Path(kn.__file__).parents[1]
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    assert (root / package / "py.typed").is_file()
    assert "py.typed" in setup["options.package_data"][package]


def test_no_public_name_is_that_of_a_module():
    modules = {module.name for module in pkgutil.iter_modules(kn.__path__)}
    assert not modules & set(kn.__all__)


def test_one_room_alone_touches_internals_of_keras():
    package = Path(kn.__file__).parent
    touching = {
        path.parent.name
        for path in package.rglob("*.py")
        if re.search(r"(from|import) keras\.src", path.read_text(encoding="utf-8"))
    }
    assert touching == {"keras_graph"}


@pytest.fixture(scope="module")
def halved():
    model = _network()
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    return kn.rebuild(model, plan), model, plan


def test_old_names_of_arguments(halved):
    (small, model, plan), x = halved, np.ones((3, 4))
    with pytest.warns(DeprecationWarning, match=r"`data` of `verify` is now called `calibration`"):
        assert kn.verify(small, model, plan, data=x).ok
    with pytest.warns(DeprecationWarning, match=r"`model` of `verify` is now called `original`"):
        assert kn.verify(model=model, small=small, plan=plan).ok
    with pytest.warns(DeprecationWarning, match=r"`model` of `recalibrate` .* called `small`"):
        assert kn.recalibrate(model=small, calibration=x) is small
    with pytest.warns(DeprecationWarning, match="`representative_data` of `benchmark`"):
        kn.benchmark(small, quantization="int8", representative_data=np.ones((3, 4)), rounds=1)
    with pytest.raises(TypeError, match="Expected `calibration` alone"):
        kn.verify(small, model, plan, calibration=x, data=x)
    with pytest.raises(TypeError, match="nonsense"):
        kn.verify(small, model, plan, nonsense=x)


def test_models_in_the_wrong_order(halved):
    small, model, plan = halved
    with pytest.raises(kn.PlanMismatchError):
        kn.verify(model, small, plan)
    with pytest.warns(UserWarning, match=r"trains 'sequential.*which has more weights than its"):
        assert kn.distiller(model, small).student is model  # it may be a wider student


def test_models_come_in_one_order():
    orders = [list(inspect.signature(f).parameters) for f in (kn.verify, kn.distiller)]
    assert all(order[:2] == ["small", "original"] for order in orders)
    assert list(inspect.signature(kn.recalibrate).parameters)[:4] == [
        "small",
        "calibration",
        "original",
        "plan",
    ]
