"""The package from outside: import cost, environment, public names."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_nisp as kn


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


def test_public_names():
    assert all(getattr(kn, name).__doc__ for name in kn.__all__)
    assert len(kn.__all__) == len(set(kn.__all__))
    assert set(dir(kn)) == {*kn.__all__, "__version__"}


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
