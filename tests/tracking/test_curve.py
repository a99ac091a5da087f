"""curve.png: drawn from whatever a log has, replaced as a whole."""

import math

import pytest

from llm.tracking.curve import draw_curve
from llm.tracking.log import MetricLog


def size(path):
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def write(folder, *, steps=200, floor=False, experts=False):
    log = MetricLog(folder)
    for step in range(steps):
        metrics = {"train/loss": 1.6 + 4 * math.exp(-step / 30) + 0.05 * math.sin(7 * step)}
        if step % 20 == 0:
            metrics["val/loss"] = 1.6 + 4 * math.exp(-step / 30)
            if floor:
                metrics |= {"val/floor": 1.5, "val/excess/copy": 0.08, "val/excess/fact": 0.02}
            if experts:
                metrics["moe/load"] = [[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]
        log.append(step, 1000 * step, metrics)
    log.close()


def test_a_panel_for_each_thing_that_is_known(tmp_path):
    widths = []
    for name, known in {
        "plain": {},
        "experts": {"experts": True},
        "all": {"floor": True, "experts": True},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder, **known)
        assert draw_curve(folder) == folder / "curve.png"
        widths.append(size(folder / "curve.png")[0])
        assert sorted(p.name for p in folder.iterdir()) == ["curve.png", "metrics.jsonl"]
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_runs_have_a_picture(tmp_path, steps):
    write(tmp_path, steps=steps, floor=True, experts=True)
    assert draw_curve(tmp_path, title="", floor=1.0) is not None


def test_a_loss_that_was_not_finite_leaves_a_gap_in_the_log_not_an_error(tmp_path):
    write(tmp_path, steps=30)
    MetricLog(tmp_path).append(30, 30000, {"train/loss": float("nan"), "val/loss": float("inf")})
    assert draw_curve(tmp_path) is not None


def test_nothing_to_draw(tmp_path):
    MetricLog(tmp_path).append(0, 0, {"data/epoch": 0.0})
    assert draw_curve(tmp_path) is None
    assert not (tmp_path / "curve.png").exists()


def test_the_old_picture_survives_a_failure(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    write(tmp_path, steps=30)
    draw_curve(tmp_path)
    before = (tmp_path / "curve.png").read_bytes()

    def tear(self, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", tear)
    with pytest.raises(OSError):
        draw_curve(tmp_path)
    assert (tmp_path / "curve.png").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.png", "metrics.jsonl"]


def test_a_style_of_the_users_own_is_left_as_it_was(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write(tmp_path, steps=5)
    draw_curve(tmp_path)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("loss", "marked"), [(2.3, False), (50.0, True)])
def test_a_late_spike_is_in_the_picture_or_marked_at_its_top(tmp_path, monkeypatch, loss, marked):
    from matplotlib.figure import Figure

    log = MetricLog(tmp_path)
    for step in range(400):
        log.append(step, step, {"train/loss": loss if step == 300 else 2 + 8 / (step + 1)})
    seen = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: seen.append(self) or path.touch()
    )
    draw_curve(tmp_path)
    (axes,) = seen[0].axes
    top = axes.get_ylim()[1]
    assert top < 10, "the first fall is what may leave the picture"
    assert [text.get_text() for text in axes.texts] == (["▲ 50"] if marked else [])
    assert marked or top > loss
