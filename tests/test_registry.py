"""Registries: folder discovery, the nearest name in a miss, no name twice."""

import sys

import pytest

from audiation.registry import Registry, UnknownNameError


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A package `zoo` on disk with two modules that register, and the registry over it."""
    package = tmp_path / "zoo"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from audiation.registry import Registry\nANIMALS = Registry('animal', 'zoo')\n"
    )
    (package / "cats.py").write_text("from zoo import ANIMALS\nANIMALS.add('lion', 'roars')\n")
    (package / "birds.py").write_text(
        "from zoo import ANIMALS\n@ANIMALS.register('nightingale')\ndef sings():\n    return 'la'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import zoo

    yield zoo.ANIMALS
    for name in [n for n in sys.modules if n == "zoo" or n.startswith("zoo.")]:
        del sys.modules[name]


def test_modules_of_the_package_are_found_when_first_asked_for(zoo):
    assert "zoo.cats" not in sys.modules
    assert zoo.names() == ["lion", "nightingale"] == list(zoo)
    assert "zoo.cats" in sys.modules
    assert len(zoo) == 2 and "lion" in zoo and "tiger" not in zoo
    assert zoo["lion"] == "roars" and zoo["nightingale"]() == "la"


@pytest.mark.parametrize("wrong", ["nightingail", "Nightingale", "nightigale"])
def test_a_miss_suggests_the_nearest_name_and_lists_all(zoo, wrong):
    with pytest.raises(UnknownNameError) as caught:
        zoo[wrong]
    assert str(caught.value) == (
        f"unknown animal '{wrong}'. Did you mean 'nightingale'? Known: lion, nightingale."
    )
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, ValueError)


def test_a_name_like_nothing_gets_no_suggestion(zoo):
    with pytest.raises(UnknownNameError, match=r"^unknown animal 'xyz'\. Known: lion, nightingale\.$"):
        zoo["xyz"]


def test_an_empty_registry_says_so(tmp_path, monkeypatch):
    (tmp_path / "emptyzoo").mkdir()
    (tmp_path / "emptyzoo" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownNameError, match="Known: none yet"):
        Registry("animal", "emptyzoo")["lion"]
    del sys.modules["emptyzoo"]


def test_a_name_cannot_be_registered_twice(zoo):
    assert zoo["lion"] == "roars"
    with pytest.raises(ValueError, match="animal 'lion' is registered twice"):
        zoo.add("lion", "sleeps")
    assert zoo["lion"] == "roars"
