"""The graph's edges: drawn on faces, and as matrices (figure 5).

Edge `e_ij` is how much landmark i listens to landmark j; over j the edges sum to 1.
"""

import cv2
import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from lcgcn_jax.landmarks import LandmarkScheme

Edges = Float[np.ndarray, "n k k"]

_COLUMNS = 4
_FACE_EDGES = 8  # the default threshold leaves a face at least so many edges
_SAME = 0.01  # edges that differ by less from their mean, in parts of 1 / k, count as the same
_EDGE_TOP = 95.0  # percentile of the needles where color, width and opacity end
_MATRIX_TOP = 99.5  # percentile of the edges between landmarks where a matrix's colors end
_EDGE_WIDTH = (
    0.006,
    0.024,
)  # a needle's wide end, weakest to strongest, in parts of the crop's side
_OPACITY = (0.6, 0.95)
_FADING = 0.6  # part of white over a face that edges are drawn on
_INK = "0.2"

_WEIGHTS = matplotlib.colormaps["Greens"]
_DIFFERENCES = matplotlib.colormaps["RdBu_r"]


def _without(cmap: matplotlib.colors.Colormap, low: float, high: float) -> LinearSegmentedColormap:
    """A color map without a part of it: pale colors would be lost on a face."""
    kept = [x for x in np.linspace(0, 1, 256) if not low < x < high]
    return LinearSegmentedColormap.from_list(f"{cmap.name}_strong", cmap(kept))


_WEIGHT_COLORS = _without(_WEIGHTS, -1.0, 0.45)
_DIFFERENCE_COLORS = _without(_DIFFERENCES, 0.25, 0.75)


def edge_threshold(edges: Edges, target_nodes: tuple[int, ...]) -> float:
    """The weight that only the strongest edges into some landmarks exceed.

    On average over the faces these are as many a face as there are listeners, but at least eight.
    Edges of landmarks to themselves do not count.
    """
    falling = np.sort(_between(edges, target_nodes).ravel())[::-1]
    count = len(edges) * max(_FACE_EDGES, len(target_nodes))
    return float(falling[min(count, len(falling) - 1)])


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
    """Edges above a threshold on each face; below, how they differ from their mean (figure 5).

    An edge is a needle from the landmark that is listened to (its wide end) to the one that listens
    (its tip): the stronger, the wider, darker and less transparent. Edges of landmarks to themselves
    are left out; of a single listener its title tells. The differences are left out where they are
    next to nothing, or there is one face only.

    Args:
      crops: RGB.
      landmarks: the graph's nodes, that is the heatmap stage's landmarks, in crop pixels.
      edges: of the same faces, row i being those into landmark i.
      scheme: what the landmarks mean.
      titles: one a face.
      target_nodes: landmarks whose edges are drawn; None: all of them.
      threshold: weight above which an edge is drawn; None: `edge_threshold`. Of the differences the
        strongest are drawn by the rule of `edge_threshold`.
    """
    if target_nodes is None:
        target_nodes = tuple(range(scheme.num_landmarks))
    if threshold is None:
        threshold = edge_threshold(edges, target_nodes)
    layers = [(edges, threshold, "edges", "weight $e_{ij}$")]
    changes = _changes(edges)
    if changes is not None:
        least = edge_threshold(np.abs(changes), target_nodes)
        label = f"difference from mean,\nabove {least:.2g} either way"
        layers.append((changes, least, label, "difference of $e_{ij}$"))
    heading = (
        f"Edges into {_name(target_nodes, scheme)} above {threshold:.3g} "
        f"({threshold * scheme.num_landmarks:.2f} times uniform)\n"
        "A needle points at the landmark that listens; edges of landmarks to themselves are left out"
    )
    figure, grids = _grids(len(crops), len(layers), heading + _sameness(edges, changes))
    for grid, (values, least, row_label, bar_label) in zip(grids, layers, strict=True):
        signed = values is changes
        mappable = _edge_colors(_between(values, target_nodes), least, signed=signed)
        for axes, crop, points, face, title in zip(
            grid, crops, landmarks, values, titles, strict=True
        ):
            _draw_face(axes, crop, points, target_nodes)
            count = _draw_edges(axes, points, face, target_nodes, least, mappable, len(crop))
            text = f"{title}: {count} edge{'' if count == 1 else 's'}"
            if len(target_nodes) == 1 and not signed:
                text += f", itself {face[target_nodes[0], target_nodes[0]]:.2g}"
            axes.set_title(text, fontsize=10)
        _finish(figure, grid, mappable, row_label, bar_label, _between(values, target_nodes))
    return figure


def plot_edge_matrices(edges: Edges, scheme: LandmarkScheme, titles: list[str]) -> Figure:
    """The edges of each face as a matrix; below, how they differ from their mean (figure 5).

    Row i are the edges into landmark i. Landmarks stand in the order of the scheme's parts, with
    lines between these. The differences are left out where they are next to nothing, or there is one
    face only.

    Args:
      edges: of some faces.
      scheme: what the landmarks mean.
      titles: one a face.
    """
    order = [i for part in scheme.parts.values() for i in part]
    edges = edges[:, order][:, :, order]
    layers = [(edges, "edges", "weight $e_{ij}$")]
    changes = _changes(edges)
    if changes is not None:
        layers.append((changes, "difference from mean", "difference of $e_{ij}$"))
    heading = "How much landmark i (row) listens to landmark j (column)"
    figure, grids = _grids(len(edges), len(layers), heading + _sameness(edges, changes))
    for grid, (values, row_label, bar_label) in zip(grids, layers, strict=True):
        # A strong diagonal would leave the rest pale; where there is nothing else, it sets the colors.
        others = np.abs(_between(values, tuple(range(scheme.num_landmarks))))
        top = float(np.percentile(others, _MATRIX_TOP) or np.abs(values).max())
        if values is changes:
            mappable = ScalarMappable(Normalize(-top, top), _DIFFERENCES)
        else:
            mappable = ScalarMappable(Normalize(0, top), _WEIGHTS)
        for cell, (axes, face, title) in enumerate(zip(grid, values, titles, strict=True)):
            axes.imshow(face, norm=mappable.norm, cmap=mappable.cmap, interpolation="nearest")
            axes.set_title(title, fontsize=10)
            lowest = values is layers[-1][0] and cell + _COLUMNS >= len(grid)
            _label_parts(axes, scheme, rows=cell % _COLUMNS == 0, columns=lowest)
        _finish(figure, grid, mappable, row_label, bar_label, values)
    return figure


def _between(edges: Edges, target_nodes: tuple[int, ...]) -> Float[np.ndarray, "n m"]:
    """The edges into some landmarks from all others."""
    rows = list(target_nodes)
    others = ~np.eye(edges.shape[-1], dtype=bool)[rows]
    return edges[:, rows][:, others]


def _changes(edges: Edges) -> Edges | None:
    """Differences from the mean over the faces; None where they are too small to speak of."""
    changes = edges - edges.mean(axis=0, keepdims=True)
    return changes if np.abs(changes).max() > _SAME / edges.shape[-1] else None


def _sameness(edges: Edges, changes: Edges | None) -> str:
    if len(edges) == 1 or changes is not None:
        return ""
    most = float(np.ptp(edges, axis=0).max())
    if most == 0:
        return "\nThe edges are the same on every face"
    return f"\nFrom face to face no edge changes by more than {most:.1g}"


def _name(target_nodes: tuple[int, ...], scheme: LandmarkScheme) -> str:
    """What people call some landmarks."""
    if len(target_nodes) == scheme.num_landmarks:
        return f"all {len(target_nodes)} landmarks"
    if len(target_nodes) == 1:
        return f"landmark {target_nodes[0]} ({scheme.names[target_nodes[0]].replace('_', ' ')})"
    part = next((name for name, own in scheme.parts.items() if own == target_nodes), None)
    return f"{len(target_nodes)} landmarks" if part is None else f"the {part.replace('_', ' ')}"


def _grids(num_faces: int, num_grids: int, heading: str) -> tuple[Figure, list[np.ndarray]]:
    """A figure of grids with a cell a face, one grid above the other."""
    columns = min(num_faces, _COLUMNS)
    rows = -(-num_faces // columns)
    cell = min(4.0, 10 / columns)
    size = (columns * cell + 2, num_grids * rows * (cell + 0.3) + 1.5)
    figure = Figure(figsize=size, layout="compressed")
    figure.suptitle(heading, fontsize=11)
    cells = figure.subplots(num_grids * rows, columns, squeeze=False).reshape(num_grids, -1)
    for axes in cells[:, num_faces:].ravel():
        axes.set_axis_off()
    return figure, list(cells[:, :num_faces])


def _finish(
    figure: Figure,
    grid: np.ndarray,
    mappable: ScalarMappable,
    row_label: str,
    bar_label: str,
    values: np.ndarray,
) -> None:
    """The labels of a grid's rows and its color bar, with an arrow where `values` go beyond it."""
    for axes in grid[::_COLUMNS]:
        axes.set_ylabel(row_label, fontsize=11)
    above = values.max() > mappable.norm.vmax
    below = values.min() < mappable.norm.vmin and mappable.norm.vmin < 0
    extend = {(True, True): "both", (True, False): "max", (False, True): "min"}
    bar = figure.colorbar(mappable, ax=list(grid), extend=extend.get((above, below), "neither"))
    bar.set_label(bar_label, fontsize=11)


def _edge_colors(values: Float[np.ndarray, "n m"], least: float, *, signed: bool) -> ScalarMappable:
    """Colors for the edges above a threshold."""
    drawn = np.abs(values)[np.abs(values) > least]
    # Where nothing is above the threshold the colors still need a range.
    top = float(np.percentile(drawn, _EDGE_TOP)) if len(drawn) else 2 * least or 1.0
    if signed:
        return ScalarMappable(Normalize(-top, top), _DIFFERENCE_COLORS)
    return ScalarMappable(Normalize(least, top), _WEIGHT_COLORS)


def _draw_face(
    axes: Axes,
    crop: UInt8[np.ndarray, "s s 3"],
    landmarks: Float[np.ndarray, "k 2"],
    target_nodes: tuple[int, ...],
) -> None:
    """A pale gray face with its landmarks; the listeners are marked where they are not all."""
    gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) / 255
    axes.imshow(_FADING + (1 - _FADING) * gray, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, len(crop) - 0.5), ylim=(len(crop) - 0.5, -0.5))
    axes.scatter(*landmarks.T, s=3, color=_INK, linewidths=0, zorder=3)
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
    least: float,
    mappable: ScalarMappable,
    side: int,
) -> int:
    """Draws the edges above a threshold from other landmarks; returns how many."""
    shown = np.zeros(weights.shape, bool)
    shown[list(target_nodes)] = np.abs(weights[list(target_nodes)]) > least
    np.fill_diagonal(shown, False)
    i, j = _weakest_first(weights, shown)
    if not len(i):
        return 0
    strength = np.clip((np.abs(weights[i, j]) - least) / (mappable.norm.vmax - least), 0, 1)
    colors = mappable.to_rgba(weights[i, j])
    colors[:, 3] = np.interp(strength, (0, 1), _OPACITY)
    width = side * np.interp(strength, (0, 1), _EDGE_WIDTH)[:, None]
    along = landmarks[i] - landmarks[j]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    # Landmarks may fall on one point; their needle then has no area.
    across = across * width / 2 / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    edge_lines = np.stack([landmarks[j] + across, landmarks[j] - across, landmarks[i]], axis=1)
    axes.add_collection(PolyCollection(edge_lines, facecolors=colors, linewidths=0, zorder=2.5))
    return len(i)


def _weakest_first(
    weights: Float[np.ndarray, "k k"], shown: Bool[np.ndarray, "k k"]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the edges to draw, the strongest last and so on top."""
    i, j = np.nonzero(shown)
    order = np.argsort(np.abs(weights[i, j]), kind="stable")
    return i[order], j[order]


def _label_parts(axes: Axes, scheme: LandmarkScheme, *, rows: bool, columns: bool) -> None:
    """Lines between the parts, and their names at their middles: of the rows, of the columns."""
    sizes = np.array([len(part) for part in scheme.parts.values()])
    ends = np.cumsum(sizes)
    for line in ends[:-1] - 0.5:
        axes.axhline(line, color=_INK, linewidth=0.4, alpha=0.5)
        axes.axvline(line, color=_INK, linewidth=0.4, alpha=0.5)
    names = [name.replace("_", " ") for name in scheme.parts]
    middles, none = ends - sizes / 2 - 0.5, [""] * len(names)
    axes.set_xticks(middles, names if columns else none, rotation=90, fontsize=8)
    axes.set_yticks(middles, names if rows else none, fontsize=8)
    axes.tick_params(length=2)
