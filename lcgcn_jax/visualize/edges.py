"""Plots of the graph's edges: on face crops, and as matrices (figure 5).

Edge `e_ij` is the weight of the message from landmark j (source) to landmark i (target). The edges into a
target sum to 1.
"""

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from lcgcn_jax.errors import count_of
from lcgcn_jax.landmarks import LandmarkScheme

Edges = Float[np.ndarray, "n k k"]

_COLUMNS = 4
_MIN_EDGES = 8  # per face, with the default threshold
_MIN_DIFFERENCE = 0.01  # smaller differences from the mean, in multiples of 1 / k, are not plotted
_EDGE_PERCENTILE = 95.0  # of the drawn edges: upper end of color, width and opacity
_MATRIX_PERCENTILE = 99.5  # of the edges between different landmarks: upper end of the colors
_EDGE_WIDTH = (0.006, 0.024)  # at the source, weakest and strongest, as fractions of the crop side
_OPACITY = (0.6, 0.95)  # weakest and strongest
_FADING = 0.6  # fraction of white that is blended into the face
_LINE_COLOR = "0.2"

_GREENS, _RED_BLUE = matplotlib.colormaps["Greens"], matplotlib.colormaps["RdBu_r"]
# On a face, without the pale colors.
_DARK_GREENS = ListedColormap(_GREENS(np.linspace(0.45, 1, 256)))
_DARK_RED_BLUE = ListedColormap(
    _RED_BLUE(np.r_[np.linspace(0, 0.25, 128), np.linspace(0.75, 1, 128)])
)


def edge_threshold(edges: Edges, target_nodes: tuple[int, ...]) -> float:
    """Compute the threshold that leaves the strongest edges into some landmarks.

    The number of edges above it, averaged over the faces, is the number of targets, and at least eight.
    Edges of landmarks to themselves are not counted.
    """
    weights = np.sort(_incoming(edges, target_nodes), axis=None)[::-1]
    count = len(edges) * max(_MIN_EDGES, len(target_nodes))
    return float(weights[min(count, len(weights) - 1)])


def plot_edges(
    crops: UInt8[np.ndarray, "n s s 3"],
    landmarks: Float[np.ndarray, "n k 2"],
    edges: Edges,
    scheme: LandmarkScheme,
    titles: list[str],
    *,
    target_nodes: tuple[int, ...] | None = None,
    threshold: float | None = None,
) -> Figure:
    """Plot the edges above a threshold on each face, and their differences from the mean (figure 5).

    An edge is a line that tapers from the source to the target; stronger edges are wider, darker and more
    opaque. Edges of landmarks to themselves are not drawn. The differences are omitted for one face, and
    where they are negligible.

    Args:
      crops: RGB face crops.
      landmarks: positions of the nodes (landmarks of the heatmap stage) in crop pixels.
      edges: edges of the same faces; row i holds the edges into landmark i.
      target_nodes: landmarks whose incoming edges are drawn; None: all.
      threshold: smallest weight that is drawn; None: `edge_threshold`. The differences always use
        `edge_threshold` of their absolute values.
    """
    if target_nodes is None:
        target_nodes = tuple(range(scheme.num_landmarks))
    if threshold is None:
        threshold = edge_threshold(edges, target_nodes)
    heading = (
        f"Edges into {_describe(target_nodes, scheme)} above {threshold:.3g} "
        f"({threshold * scheme.num_landmarks:.2f} times uniform)\n"
        "Edges taper from source to target; edges of landmarks to themselves are not drawn"
    )
    figure, grids = _make_grids(edges, heading)
    for grid, (values, row_label, bar_label) in zip(grids, _layers(edges), strict=True):
        is_difference = values is not edges
        if is_difference:
            threshold = edge_threshold(np.abs(values), target_nodes)
            row_label += f",\nabsolute value above {threshold:.2g}"
        weights = np.abs(_incoming(values, target_nodes))
        drawn = weights[weights > threshold]
        # Without drawn edges, the colors still need a range.
        top = float(np.percentile(drawn, _EDGE_PERCENTILE)) if drawn.size else 2 * threshold or 1.0
        low, cmap = (-top, _DARK_RED_BLUE) if is_difference else (threshold, _DARK_GREENS)
        mappable = ScalarMappable(Normalize(low, top), cmap)
        for axes, crop, points, face, title in zip(
            grid, crops, landmarks, values, titles, strict=True
        ):
            _draw_face(axes, crop, points, target_nodes)
            count = _draw_edges(axes, points, face, target_nodes, threshold, mappable, len(crop))
            title += f": {count_of(count, 'edge')}"
            if len(target_nodes) == 1 and not is_difference:
                title += f", to itself {face[target_nodes[0], target_nodes[0]]:.2g}"
            axes.set_title(title, fontsize=10)
        _label_grid(figure, grid, mappable, row_label, bar_label, _incoming(values, target_nodes))
    return figure


def plot_edge_matrices(edges: Edges, scheme: LandmarkScheme, titles: list[str]) -> Figure:
    """Plot the edges of each face as a matrix, and their differences from the mean (figure 5).

    Row i holds the edges into landmark i. Landmarks are in the order of the scheme's parts, with lines
    between the parts. The differences are omitted for one face, and where they are negligible.
    """
    order = [i for part in scheme.parts.values() for i in part]
    edges = edges[:, order][:, :, order]
    layers = _layers(edges)
    figure, grids = _make_grids(
        edges, "Weight of the message from landmark j (column) to landmark i (row)"
    )
    for grid, (values, row_label, bar_label) in zip(grids, layers, strict=True):
        # A strong diagonal would make the rest pale. It sets the colors only if all else is 0.
        others = np.abs(_incoming(values, tuple(range(scheme.num_landmarks))))
        top = float(np.percentile(others, _MATRIX_PERCENTILE) or np.abs(values).max())
        low, cmap = (0, _GREENS) if values is edges else (-top, _RED_BLUE)
        mappable = ScalarMappable(Normalize(low, top), cmap)
        for i, (axes, face, title) in enumerate(zip(grid, values, titles, strict=True)):
            axes.imshow(face, norm=mappable.norm, cmap=mappable.cmap, interpolation="nearest")
            axes.set_title(title, fontsize=10)
            is_lowest = values is layers[-1][0] and i + _COLUMNS >= len(grid)
            _label_parts(axes, scheme, rows=i % _COLUMNS == 0, columns=is_lowest)
        _label_grid(figure, grid, mappable, row_label, bar_label, values)
    return figure


def _incoming(edges: Edges, target_nodes: tuple[int, ...]) -> Float[np.ndarray, "n m"]:
    """Edges into some landmarks from all other landmarks."""
    rows = list(target_nodes)
    others = ~np.eye(edges.shape[-1], dtype=bool)[rows]
    return edges[:, rows][:, others]


def _layers(edges: Edges) -> list[tuple[Edges, str, str]]:
    """Values, row label and color bar label of the edges and, unless negligible, of their differences."""
    layers = [(edges, "edges", "weight $e_{ij}$")]
    differences = edges - edges.mean(axis=0, keepdims=True)
    if np.abs(differences).max() > _MIN_DIFFERENCE / edges.shape[-1]:
        layers.append((differences, "difference from mean", "difference of $e_{ij}$"))
    return layers


def _describe(target_nodes: tuple[int, ...], scheme: LandmarkScheme) -> str:
    """Name some landmarks: by their part, or by their number."""
    if len(target_nodes) == scheme.num_landmarks:
        return f"all {len(target_nodes)} landmarks"
    if len(target_nodes) == 1:
        return f"landmark {target_nodes[0]} ({scheme.names[target_nodes[0]].replace('_', ' ')})"
    part = next((name for name, nodes in scheme.parts.items() if nodes == target_nodes), None)
    return f"{len(target_nodes)} landmarks" if part is None else f"the {part.replace('_', ' ')}"


def _make_grids(edges: Edges, heading: str) -> tuple[Figure, list[np.ndarray]]:
    """Create a figure with one grid of axes per layer, and one cell per face in each grid."""
    num_faces, num_grids = len(edges), len(_layers(edges))
    if num_grids == 1 and num_faces > 1:
        largest = float(np.ptp(edges, axis=0).max())
        heading += (
            f"\nNo edge differs between faces by more than {largest:.1g}"
            if largest
            else "\nThe edges are the same on every face"
        )
    columns = min(num_faces, _COLUMNS)
    rows = -(-num_faces // columns)
    side = min(4.0, 10 / columns)
    size = (columns * side + 2, num_grids * rows * (side + 0.3) + 1.5)
    figure = Figure(figsize=size, layout="compressed")
    figure.suptitle(heading, fontsize=11)
    grids = figure.subplots(num_grids * rows, columns, squeeze=False).reshape(num_grids, -1)
    for axes in grids[:, num_faces:].ravel():
        axes.set_axis_off()
    return figure, list(grids[:, :num_faces])


def _label_grid(
    figure: Figure,
    grid: np.ndarray,
    mappable: ScalarMappable,
    row_label: str,
    bar_label: str,
    values: np.ndarray,
) -> None:
    """Add row labels and a color bar, with an arrow at an end that `values` exceed."""
    for axes in grid[::_COLUMNS]:
        axes.set_ylabel(row_label, fontsize=11)
    low, top = mappable.get_clim()
    above = values.max() > top
    below = values.min() < low < 0
    extend = {(True, True): "both", (True, False): "max", (False, True): "min"}
    bar = figure.colorbar(mappable, ax=list(grid), extend=extend.get((above, below), "neither"))
    bar.set_label(bar_label, fontsize=11)


def _draw_face(
    axes: Axes,
    crop: UInt8[np.ndarray, "s s 3"],
    landmarks: Float[np.ndarray, "k 2"],
    target_nodes: tuple[int, ...],
) -> None:
    """Draw a faded gray crop with its landmarks; targets are marked unless all landmarks are targets."""
    gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) / 255
    axes.imshow(_FADING + (1 - _FADING) * gray, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, len(crop) - 0.5), ylim=(len(crop) - 0.5, -0.5))
    axes.scatter(*landmarks.T, s=3, color=_LINE_COLOR, linewidths=0, zorder=3)
    if len(target_nodes) < len(landmarks):
        axes.scatter(
            *landmarks[list(target_nodes)].T,
            s=14, facecolors="white", edgecolors="black", linewidths=0.8, zorder=4,
        )  # fmt: skip


def _draw_edges(
    axes: Axes,
    landmarks: Float[np.ndarray, "k 2"],
    weights: Float[np.ndarray, "k k"],
    target_nodes: tuple[int, ...],
    threshold: float,
    mappable: ScalarMappable,
    side: int,
) -> int:
    """Draw the edges above a threshold as triangles from source to target; returns their number."""
    is_drawn = np.zeros(weights.shape, bool)
    is_drawn[list(target_nodes)] = np.abs(weights[list(target_nodes)]) > threshold
    np.fill_diagonal(is_drawn, False)
    i, j = np.nonzero(is_drawn)
    if not len(i):
        return 0
    order = np.argsort(np.abs(weights[i, j]), kind="stable")  # the strongest on top
    i, j = i[order], j[order]
    strength = (np.abs(weights[i, j]) - threshold) / (mappable.get_clim()[1] - threshold)
    colors = mappable.to_rgba(weights[i, j])
    colors[:, 3] = np.interp(strength, (0, 1), _OPACITY)
    width = side * np.interp(strength, (0, 1), _EDGE_WIDTH)[:, None]
    along = landmarks[i] - landmarks[j]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    # Landmarks may coincide; the triangle then has no area.
    across = across * width / 2 / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    triangles = np.stack([landmarks[j] + across, landmarks[j] - across, landmarks[i]], axis=1)
    axes.add_collection(
        PolyCollection(list(triangles), facecolors=colors, linewidths=0, zorder=2.5)
    )
    return len(i)


def _label_parts(axes: Axes, scheme: LandmarkScheme, *, rows: bool, columns: bool) -> None:
    """Draw lines between the parts, and label the rows or columns with the names of the parts."""
    sizes = np.array([len(part) for part in scheme.parts.values()])
    ends = np.cumsum(sizes)
    for line in ends[:-1] - 0.5:
        axes.axhline(line, color=_LINE_COLOR, linewidth=0.4, alpha=0.5)
        axes.axvline(line, color=_LINE_COLOR, linewidth=0.4, alpha=0.5)
    names = [name.replace("_", " ") for name in scheme.parts]
    middles, empty = ends - sizes / 2 - 0.5, [""] * len(names)
    axes.set_xticks(middles, names if columns else empty, rotation=90, fontsize=8)
    axes.set_yticks(middles, names if rows else empty, fontsize=8)
    axes.tick_params(length=2)
