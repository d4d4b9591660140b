"""Tables of what there is."""

import io

import pytest
from rich.console import Console

from audiation.backbones import BACKBONES
from audiation.backbones.base import BackboneSpec
from audiation.listing import gflop_text, methods_text, render


@pytest.fixture
def screen():
    return Console(file=io.StringIO(), width=400)


@pytest.fixture
def few(monkeypatch):
    """The registry with five of its entries: all of them take long."""
    names = ("chroma", "mert-v1-95m", "musicfm-mini", "musicfm-msd", "short-chunk-cnn")
    monkeypatch.setattr(BACKBONES.__class__, "__iter__", lambda self: iter(names))
    return names


def rows_of(screen):
    """Name -> cells, of the rows that begin with a name."""
    lines = [line.split("│")[1:-1] for line in screen.file.getvalue().split("\n") if line.startswith("│")]
    return {cells[0].strip(): [cell.strip() for cell in cells] for cells in lines if cells[0].strip()}


def test_a_backbone_has_its_size_its_cost_and_its_methods(few, screen):
    render("backbones", screen)
    rows = rows_of(screen)
    assert tuple(rows) == few
    assert rows["mert-v1-95m"][2:6] == ["94,371,712", "768", "740", "all"]
    assert rows["chroma"][2:6] == ["-", "72", "-", "probe"]
    assert rows["short-chunk-cnn"][3:6] == ["512", "44", "probe, finetune"]
    assert rows["musicfm-mini"][4] == "7.6"


def test_only_weights_that_may_be_used_commercially(few, screen):
    render("backbones", screen, commercial=True)
    rows = rows_of(screen)
    assert tuple(rows) == tuple(name for name in few if BACKBONES[name].commercial_use)
    assert "mert-v1-95m" not in rows and {cells[-1] for cells in rows.values()} == {"yes"}


def test_commercial_use_is_asked_of_backbones_only(screen):
    with pytest.raises(ValueError, match="only backbones are listed by commercial use"):
        render("tasks", screen, commercial=True)


@pytest.mark.parametrize("kind", ["tasks", "datasets", "methods", "protocols", "objectives"])
def test_other_kinds_have_a_table(kind, screen):
    render(kind, screen)
    assert kind in screen.file.getvalue()


def test_what_cannot_be_counted_is_not_known(monkeypatch):
    model = BACKBONES["musicfm-mini"].outline()
    model.forward = lambda waveform, **_: float(waveform.max())
    entry = BackboneSpec("odd", "", lambda: model, outline=lambda: model)
    monkeypatch.setattr(BACKBONES.__class__, "__getitem__", lambda self, name: entry)
    assert gflop_text("odd") == "not known"
    assert methods_text("odd") == "all"
