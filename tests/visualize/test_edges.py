"""Tests of `visualize.edges`."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lcgcn_jax.landmarks import IBUG68, WFLW98, LandmarkScheme
from lcgcn_jax.visualize.edges import edge_threshold, plot_edge_matrices, plot_edges

SQUARE = LandmarkScheme.from_dict({"name": "square", "num_landmarks": 4})
CORNERS = np.array([[20.0, 20.0], [80.0, 20.0], [80.0, 80.0], [20.0, 80.0]])
TOP, BOTTOM, CENTER = (50.0, 20.0), (50.0, 80.0), (50.0, 50.0)


def draw(*faces, **options):
    """Plot faces with edges {(i, j): weight}, the others 0; returns the figure and its pixels."""
    edges = np.zeros((len(faces), 4, 4), np.float32)
    for face, weights in zip(edges, faces, strict=True):
        for pair, weight in weights.items():
            face[pair] = weight
    crops = np.full((len(faces), 100, 100, 3), 128, np.uint8)
    landmarks = np.tile(CORNERS, (len(faces), 1, 1))
    titles = [f"face {i}" for i in range(len(faces))]
    figure = plot_edges(crops, landmarks, edges, SQUARE, titles, **options)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure, np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def color_at(axes, image, point):
    """Color of the figure at a point of the crop, as the deviation from gray."""
    column, row = axes.transData.transform(point)
    pixel = image[round(len(image) - 1 - row), round(column)]
    return pixel - pixel.mean()


def is_drawn(axes, image, point):
    return np.abs(color_at(axes, image, point)).max() > 15


def faces_of(figure):
    return [axes for axes in figure.axes if axes.get_title()]


def test_edges_above_the_threshold_are_drawn_between_their_landmarks():
    weights = {(0, 1): 0.5, (2, 3): 0.2}
    figure, image = draw(weights, threshold=0.3)
    (axes,) = faces_of(figure)
    assert [is_drawn(axes, image, p) for p in (TOP, BOTTOM, CENTER)] == [True, False, False]
    figure, image = draw(weights, threshold=0.1)
    (axes,) = faces_of(figure)
    assert [is_drawn(axes, image, p) for p in (TOP, BOTTOM, CENTER)] == [True, True, False]
    assert axes.get_title() == "face 0: 2 edges"


def test_edges_taper_towards_the_target():
    figure, image = draw({(0, 1): 0.5}, threshold=0.3)
    (axes,) = faces_of(figure)

    def width(x):
        return sum(is_drawn(axes, image, (x, y)) for y in np.linspace(15, 25, 101))

    assert width(75) > 2 * width(35) > 0


def test_stronger_edges_are_wider():
    figure, image = draw({(0, 1): 0.8, (3, 2): 0.4}, threshold=0.3)
    (axes,) = faces_of(figure)
    wide, narrow = (
        sum(is_drawn(axes, image, (75, middle + y)) for y in np.linspace(-5, 5, 101))
        for middle in (20, 80)
    )
    assert wide > 1.5 * narrow > 0


def test_only_edges_into_target_nodes_are_drawn():
    figure, image = draw({(0, 1): 0.5, (0, 0): 0.4, (2, 3): 0.5}, threshold=0.3, target_nodes=(0,))
    (axes,) = faces_of(figure)
    assert [is_drawn(axes, image, p) for p in (TOP, BOTTOM)] == [True, False]
    assert axes.get_title() == "face 0: 1 edge, to itself 0.4"
    assert "landmark 0 (point 0)" in figure.get_suptitle()


def test_faces_share_a_threshold_and_differences_are_signed():
    figure, image = draw({(0, 1): 0.6}, {(0, 1): 0.2}, {(2, 3): 0.9}, threshold=0.3)
    weights, changes = faces_of(figure)[:3], faces_of(figure)[3:]
    assert [is_drawn(axes, image, TOP) for axes in weights] == [True, False, False]
    assert [is_drawn(axes, image, BOTTOM) for axes in weights] == [False, False, True]
    # The mean of the upper edge is 0.27: larger weights are red, smaller ones blue.
    red = [color_at(axes, image, TOP)[0] for axes in (changes[0], changes[2])]
    assert red[0] > 15 > -15 > red[1]
    labels = [axes.get_ylabel() for axes in faces_of(figure)]
    assert labels[0] == "edges"
    assert labels[3].startswith("difference from mean")


def test_negligible_differences_are_not_plotted():
    figure, _ = draw({(0, 1): 0.5}, {(0, 1): 0.5})
    assert len(faces_of(figure)) == 2
    assert "The edges are the same on every face" in figure.get_suptitle()
    figure, _ = draw({(0, 1): 0.5}, {(0, 1): 0.501})
    assert len(faces_of(figure)) == 2
    assert "No edge differs between faces by more than 0.001" in figure.get_suptitle()
    figure, _ = draw({(0, 1): 0.5})
    assert len(faces_of(figure)) == 1
    assert "the same" not in figure.get_suptitle()


def test_self_edges_are_not_drawn():
    figure, image = draw({(i, i): 1.0 for i in range(4)})
    (axes,) = faces_of(figure)
    assert axes.get_title() == "face 0: 0 edges"
    grid = np.stack(np.meshgrid(np.arange(100.0), np.arange(100.0)), -1).reshape(-1, 2)
    assert not any(is_drawn(axes, image, point) for point in grid)


@pytest.mark.parametrize(("target_nodes", "count"), [(tuple(range(68)), 68), ((30,), 8)])
def test_default_threshold_selects_the_strongest_edges(target_nodes, count):
    edges = np.random.default_rng(0).dirichlet(np.ones(68), (3, 68)).astype(np.float32)
    edges[:, range(68), range(68)] = 1.0
    threshold = edge_threshold(edges, target_nodes)
    others = ~np.eye(68, dtype=bool)
    above = (edges > threshold) & others
    assert above[:, list(target_nodes)].sum() == 3 * count


def test_no_uniform_edge_exceeds_the_default_threshold():
    edges = np.full((2, 68, 68), 1 / 68, np.float32)
    assert not (edges > edge_threshold(edges, tuple(range(68)))).any()


@pytest.mark.parametrize("scheme", [IBUG68, WFLW98], ids=lambda scheme: scheme.name)
def test_matrices_are_labeled_with_the_parts(scheme):
    k = scheme.num_landmarks
    edges = np.random.default_rng(0).dirichlet(np.ones(k), (6, k)).astype(np.float32)
    figure = plot_edge_matrices(edges, scheme, [f"face {i}" for i in range(6)])
    matrices = faces_of(figure)
    assert len(matrices) == 12
    np.testing.assert_array_equal(matrices[1].images[0].get_array(), edges[1])
    np.testing.assert_allclose(matrices[7].images[0].get_array(), edges[1] - edges.mean(axis=0))
    eye, names = scheme.parts["left_eye"], [part.replace("_", " ") for part in scheme.parts]
    for axis, labeled in (("x", {8, 9, 10, 11}), ("y", {0, 4, 6, 10})):
        for i, matrix in enumerate(matrices):
            labels = [text.get_text() for text in getattr(matrix, f"get_{axis}ticklabels")()]
            assert labels == (names if i in labeled else [""] * len(names)), (axis, i)
            ticks = getattr(matrix, f"get_{axis}ticks")()
            assert ticks[names.index("left eye")] == np.mean(eye)
    # Lines between the parts: half a row before the first landmark of the eye, and after its last.
    lines = {float(line.get_ydata()[0]) for line in matrices[0].lines if line.get_xdata()[0] == 0}
    assert {eye[0] - 0.5, eye[-1] + 0.5} <= lines
    assert len(lines) == len(names) - 1


def test_matrices_are_in_the_order_of_the_parts():
    contours = [{"name": "a", "indices": [3, 1]}, {"name": "b", "indices": [0]}]
    scheme = LandmarkScheme.from_dict({"name": "four", "num_landmarks": 4, "contours": contours})
    edges = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    (matrix,) = faces_of(plot_edge_matrices(edges, scheme, ["face 0"]))
    order = [3, 1, 0, 2]
    np.testing.assert_array_equal(matrix.images[0].get_array(), edges[0][order][:, order])
    assert [text.get_text() for text in matrix.get_yticklabels()] == ["a", "b", "other"]


def test_matrix_of_self_edges_only():
    (matrix,) = faces_of(plot_edge_matrices(np.eye(4)[None], SQUARE, ["face 0"]))
    assert matrix.images[0].norm.vmax == 1
