import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lcgcn_jax import visualize
from lcgcn_jax.landmarks import IBUG68, WFLW98, LandmarkScheme

SQUARE = LandmarkScheme.from_dict({"name": "square", "num_landmarks": 4})
CORNERS = np.array([[20.0, 20.0], [80.0, 20.0], [80.0, 80.0], [20.0, 80.0]])
TOP, BOTTOM, CENTER = (50.0, 20.0), (50.0, 80.0), (50.0, 50.0)


def draw(*faces, **options):
    """The figure of faces whose edges are given as {(i, j): weight}, all others being 0."""
    edges = np.zeros((len(faces), 4, 4), np.float32)
    for face, weights in zip(edges, faces, strict=True):
        for pair, weight in weights.items():
            face[pair] = weight
    crops = np.full((len(faces), 100, 100, 3), 128, np.uint8)
    landmarks = np.tile(CORNERS, (len(faces), 1, 1))
    titles = [f"face {i}" for i in range(len(faces))]
    figure = visualize.plot_edges(crops, landmarks, edges, SQUARE, titles, **options)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure, np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def color_at(axes, picture, point):
    """The picture's color at a point of the crop, as its deviation from gray."""
    column, row = axes.transData.transform(point)
    pixel = picture[round(len(picture) - 1 - row), round(column)]
    return pixel - pixel.mean()


def is_drawn(axes, picture, point):
    return np.abs(color_at(axes, picture, point)).max() > 15


def faces_of(figure):
    return [axes for axes in figure.axes if axes.get_title()]


def test_only_an_edge_above_the_threshold_is_drawn_and_between_its_landmarks():
    weights = {(0, 1): 0.5, (2, 3): 0.2}
    figure, picture = draw(weights, threshold=0.3)
    (axes,) = faces_of(figure)
    assert [is_drawn(axes, picture, p) for p in (TOP, BOTTOM, CENTER)] == [True, False, False]
    figure, picture = draw(weights, threshold=0.1)
    (axes,) = faces_of(figure)
    assert [is_drawn(axes, picture, p) for p in (TOP, BOTTOM, CENTER)] == [True, True, False]
    assert axes.get_title() == "face 0: 2 edges"


def test_a_needle_points_at_the_landmark_that_listens():
    figure, picture = draw({(0, 1): 0.5}, threshold=0.3)
    (axes,) = faces_of(figure)

    def width(x):
        return sum(is_drawn(axes, picture, (x, y)) for y in np.linspace(15, 25, 101))

    assert width(75) > 2 * width(35) > 0


def test_the_stronger_edge_is_wider():
    figure, picture = draw({(0, 1): 0.8, (3, 2): 0.4}, threshold=0.3)
    (axes,) = faces_of(figure)
    wide, narrow = (
        sum(is_drawn(axes, picture, (75, middle + y)) for y in np.linspace(-5, 5, 101))
        for middle in (20, 80)
    )
    assert wide > 1.5 * narrow > 0


def test_edges_into_other_landmarks_are_left_out():
    figure, picture = draw(
        {(0, 1): 0.5, (0, 0): 0.4, (2, 3): 0.5}, threshold=0.3, target_nodes=(0,)
    )
    (axes,) = faces_of(figure)
    assert [is_drawn(axes, picture, p) for p in (TOP, BOTTOM)] == [True, False]
    assert axes.get_title() == "face 0: 1 edge, itself 0.4"
    assert "landmark 0 (point 0)" in figure.get_suptitle()


def test_faces_share_a_threshold_and_show_what_changes():
    figure, picture = draw({(0, 1): 0.6}, {(0, 1): 0.2}, {(2, 3): 0.9}, threshold=0.3)
    weights, changes = faces_of(figure)[:3], faces_of(figure)[3:]
    assert [is_drawn(axes, picture, TOP) for axes in weights] == [True, False, False]
    assert [is_drawn(axes, picture, BOTTOM) for axes in weights] == [False, False, True]
    # The mean of the upper edge is 0.27: more than that is red, less is blue.
    red = [color_at(axes, picture, TOP)[0] for axes in (changes[0], changes[2])]
    assert red[0] > 15 > -15 > red[1]
    left = [axes.get_ylabel() for axes in faces_of(figure)]
    assert left[0] == "edges"
    assert left[3].startswith("difference from mean")


def test_edges_that_never_change_have_no_differences():
    figure, _ = draw({(0, 1): 0.5}, {(0, 1): 0.5})
    assert len(faces_of(figure)) == 2
    assert "The edges are the same on every face" in figure.get_suptitle()
    figure, _ = draw({(0, 1): 0.5}, {(0, 1): 0.501})
    assert len(faces_of(figure)) == 2
    assert "no edge changes by more than 0.001" in figure.get_suptitle()
    figure, _ = draw({(0, 1): 0.5})
    assert len(faces_of(figure)) == 1
    assert "the same" not in figure.get_suptitle()


def test_edges_of_landmarks_to_themselves_are_not_drawn():
    figure, picture = draw({(i, i): 1.0 for i in range(4)})
    (axes,) = faces_of(figure)
    assert axes.get_title() == "face 0: 0 edges"
    everywhere = np.stack(np.meshgrid(np.arange(100.0), np.arange(100.0)), -1).reshape(-1, 2)
    assert not any(is_drawn(axes, picture, point) for point in everywhere)


@pytest.mark.parametrize(("target_nodes", "count"), [(tuple(range(68)), 68), ((30,), 8)])
def test_default_threshold_leaves_the_strongest_edges(target_nodes, count):
    edges = np.random.default_rng(0).dirichlet(np.ones(68), (3, 68)).astype(np.float32)
    edges[:, range(68), range(68)] = 1.0
    threshold = visualize.edge_threshold(edges, target_nodes)
    others = ~np.eye(68, dtype=bool)
    above = (edges > threshold) & others
    assert above[:, list(target_nodes)].sum() == 3 * count


def test_uniform_edges_leave_nothing_to_draw():
    edges = np.full((2, 68, 68), 1 / 68, np.float32)
    assert not (edges > visualize.edge_threshold(edges, tuple(range(68)))).any()


@pytest.mark.parametrize("scheme", [IBUG68, WFLW98], ids=lambda scheme: scheme.name)
def test_matrices_have_their_parts_labeled_on_both_axes(scheme):
    k = scheme.num_landmarks
    edges = np.random.default_rng(0).dirichlet(np.ones(k), (6, k)).astype(np.float32)
    figure = visualize.plot_edge_matrices(edges, scheme, [f"face {i}" for i in range(6)])
    cells = faces_of(figure)
    assert len(cells) == 12
    np.testing.assert_array_equal(cells[1].images[0].get_array(), edges[1])
    np.testing.assert_allclose(cells[7].images[0].get_array(), edges[1] - edges.mean(axis=0))
    eye, names = scheme.parts["left_eye"], [part.replace("_", " ") for part in scheme.parts]
    for axis, labeled in (("x", {8, 9, 10, 11}), ("y", {0, 4, 6, 10})):
        for i, cell in enumerate(cells):
            labels = [text.get_text() for text in getattr(cell, f"get_{axis}ticklabels")()]
            assert labels == (names if i in labeled else [""] * len(names)), (axis, i)
            ticks = getattr(cell, f"get_{axis}ticks")()
            assert ticks[names.index("left eye")] == np.mean(eye)
    # A line before and after the eye, half a cell from its first and last landmark.
    lines = {float(line.get_ydata()[0]) for line in cells[0].lines if line.get_xdata()[0] == 0}
    assert {eye[0] - 0.5, eye[-1] + 0.5} <= lines
    assert len(lines) == len(names) - 1


def test_matrices_follow_the_parts_and_not_the_indices():
    contours = [{"name": "a", "indices": [3, 1]}, {"name": "b", "indices": [0]}]
    scheme = LandmarkScheme.from_dict({"name": "own", "num_landmarks": 4, "contours": contours})
    edges = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    (cell,) = faces_of(visualize.plot_edge_matrices(edges, scheme, ["face 0"]))
    order = [3, 1, 0, 2]
    np.testing.assert_array_equal(cell.images[0].get_array(), edges[0][order][:, order])
    assert [text.get_text() for text in cell.get_yticklabels()] == ["a", "b", "other"]


def test_matrices_of_edges_to_themselves_alone():
    (cell,) = faces_of(visualize.plot_edge_matrices(np.eye(4)[None], SQUARE, ["face 0"]))
    assert cell.images[0].norm.vmax == 1
