"""The picture of an evaluation's experts: for any number of layers, experts and groups."""

import numpy as np
import pytest

from llm.tracking.heatmap import draw_routing


def write(path, layers, experts, groups=("skill", "token"), **more):
    rng = np.random.default_rng(0)
    seen = {"step": 200, "title": "nano-topk-tinytown-0123", **more}
    for title in groups:
        seen[f"{title}_names"] = np.array(["copy", "fact", "arithmetic"])
        seen[f"{title}_LGE"] = rng.integers(0, 90, (layers, 3, experts))
    load_LE = rng.dirichlet(np.ones(experts), layers)
    np.savez(path, load_LE=load_LE, layers_max_violation=load_LE.max(1) * experts - 1, **seen)
    return load_LE


@pytest.fixture
def figures(monkeypatch):
    """Every figure that was saved, without the time that saving takes."""
    from matplotlib.figure import Figure

    seen = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: seen.append(self) or path.touch()
    )
    return seen


@pytest.mark.parametrize(
    ("layers", "experts", "groups"),
    [(1, 2, ()), (3, 4, ("skill", "token")), (12, 64, ("token",)), (48, 128, ("skill", "token"))],
)
def test_everything_lies_inside_the_picture(tmp_path, figures, layers, experts, groups):
    write(tmp_path / "step-00000200.npz", layers, experts, groups)
    draw_routing(tmp_path / "step-00000200.npz")
    (figure,) = figures
    assert figure.get_figwidth() < 20 and figure.get_figheight() < 16
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 1 + len(groups) * min(layers, 4)


def test_it_shows_the_load_and_the_names(tmp_path, figures):
    load_LE = write(tmp_path / "step-00000200.npz", 3, 4, layers_agreement=np.full(3, 0.93))
    draw_routing(tmp_path / "step-00000200.npz")
    (figure,) = figures
    texts = [text.get_text() for text in figure.texts]
    assert {"Experts at step 200", "nano-topk-tinytown-0123", "Layer 2", "93%"} <= set(texts)
    load = figure.axes[0]
    assert np.allclose(load.images[0].get_array(), load_LE * 4), "as a multiple of an even load"
    assert [t.get_text() for t in load.texts] == [f"{100 * v:.0f}" for v in load_LE.ravel()]
    labels = [t.get_text() for axes in figure.axes for t in axes.get_yticklabels()]
    assert any(label.startswith("arithmetic") for label in labels)


def test_the_file_is_replaced_as_a_whole_and_styles_are_left_alone(tmp_path, monkeypatch):
    import matplotlib
    from matplotlib.figure import Figure

    before = dict(matplotlib.rcParams)
    write(tmp_path / "step-00000200.npz", 2, 4)
    path = draw_routing(tmp_path / "step-00000200.npz")
    whole = path.read_bytes()
    assert whole.startswith(b"\x89PNG") and dict(matplotlib.rcParams) == before

    def tear(self, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", tear)
    with pytest.raises(OSError):
        draw_routing(tmp_path / "step-00000200.npz")
    assert path.read_bytes() == whole
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".npz", ".png"]
