"""LCGCN: a heatmap model, and a graph over its peaks that refines them (IEEE Access 2022)."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from lcgcn_jax import heatmaps
from lcgcn_jax.geometry import centered_offset, heatmap_to_input, input_to_heatmap
from lcgcn_jax.models import connectivity
from lcgcn_jax.models.cascade import CascadeConfig, MeanShapeCascade
from lcgcn_jax.models.gcn import GraphConv, OffsetVoting, PairVectors, ShapeRefiner
from lcgcn_jax.models.layers import MLP, NORMS
from lcgcn_jax.models.patch_refiner import PatchRefiner
from lcgcn_jax.models.visibility import VisibilityConfig, VisibilityHead
from lcgcn_jax.models.weights import AnyArray

MESSAGES = ("paper", "pair_vector", "offsets")
OUTPUTS = ("absolute", "residual")
SAMPLINGS = ("nearest", "bilinear")
POSITIONS = ("center", "corner")
SHAPE_FEATURES = ("all", "first_last")
ACTIVATIONS = ("relu", "none")
MLP_OUTPUTS = ("linear", "activated")

SELF_LOGIT = 4.0
"""Where the diagonal starts under the message `offsets`: of 68 landmarks, each gives itself 0.45."""

MEAN_SHAPES = (
    "graph.offset_voting.mean_shape",
    "graph.shape_refiner.mean_shape",
    "graph.mean_shape",
)
"""Names of the statistics that come from the data, before the first step, where a model has them."""

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class GraphConfig:
    """The graph head. Defaults are the paper's choices.

    Attributes:
      connectivity: `learned_per_image` (the paper), `learned_static` (Li et al. 2020), `uniform` or
        `self_only`.
      diagonal: a node's edge to itself, `learned` or `zero` (its logit is 0; the authors' code).
      message: what a landmark hears from its neighbors. `paper`: `h_j (+) q_ij`. `pair_vector`: a
        learned vector of the pair joins it (`gcn.PairVectors`). `offsets`: before the blocks, the
        neighbors' guesses of where it is replace the initial landmarks (`gcn.OffsetVoting`), and
        the blocks refine those; log confidences and how far the guess lies from the initial landmark
        join the nodes. Edges then see log confidences, and begin with about half of their weight on the
        diagonal.
      pair_width: length of the pair vectors.
      output: `absolute` coordinates (the paper) or `residual` to the initial landmarks.
      sampling: features read at the `nearest` cell or by `bilinear` interpolation. The paper's initial
        landmarks are cells, where both are the same.
      positions: how coordinates become parts of the crop's side s. `center`: a landmark at pixel x is
        (x + 0.5) / s, into the graph and out of it. `corner` (the authors' code): one at cell u of hw goes
        in as u / hw, and comes out as x / s.
      shape_features: q_ij joins the messages of `all` blocks (the paper) or of the `first_last` (the
        authors' code).
      activation: between the blocks, `relu` or `none` (the authors' code).
      norm: in the MLPs: `batch` (the authors' code), `layer` or `none`.
      mlp_output: the last layers of the embedding and of the edge MLP: `linear`, or `activated` (the
        authors' code): f_i after a ReLU, the edges' logits after ReLU and norm.
      embedding_widths: MLP from the visual feature to f_i.
      class_widths: MLP from a pair of classes to l_ij.
      edge_widths: hidden widths of the MLP from confidences and l_ij to an edge's logit.
      edge_inputs: scalars of the two landmarks that this MLP gets: `confidence` (the paper), the logits of
        their `visibility`, or `both`. `visibility` and `both` need `model.visibility` and the connectivity
        `learned_per_image`.
      gate: `none`, or `visibility`: messages are scaled by the visibility of their sender
        (`connectivity.VisibilityGate`), for edges of any kind. It needs `model.visibility`.
      visibility_gradient: whether the coordinate loss trains the visibility head through edges and gate.
      gcn_widths: node widths after each block; the last is 2.
      refinements: how many more turns move the landmarks by windows of the maps around them, each with
        weights of its own (`refinement.PatchRefiner`).
      shape_refiner: whether a last turn moves each landmark by how all the others lie (`gcn.ShapeRefiner`).
    """

    connectivity: str = "learned_per_image"
    diagonal: str = "learned"
    message: str = "paper"
    pair_width: int = 8
    output: str = "absolute"
    sampling: str = "nearest"
    positions: str = "center"
    shape_features: str = "all"
    activation: str = "relu"
    norm: str = "batch"
    mlp_output: str = "linear"
    embedding_widths: tuple[int, ...] = (512, 128, 32, 8)
    class_widths: tuple[int, ...] = (32, 1)
    edge_widths: tuple[int, ...] = (4,)
    edge_inputs: str = "confidence"
    gate: str = "none"
    visibility_gradient: bool = False
    gcn_widths: tuple[int, ...] = (64, 16, 2)
    refinements: int = 0
    shape_refiner: bool = False

    def __post_init__(self):
        choices = {
            "connectivity": connectivity.KINDS,
            "diagonal": connectivity.DIAGONALS,
            "message": MESSAGES,
            "output": OUTPUTS,
            "sampling": SAMPLINGS,
            "positions": POSITIONS,
            "shape_features": SHAPE_FEATURES,
            "activation": ACTIVATIONS,
            "norm": NORMS,
            "mlp_output": MLP_OUTPUTS,
            "edge_inputs": connectivity.EDGE_INPUTS,
            "gate": connectivity.GATES,
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"model.graph.{field}: {getattr(self, field)!r} is not available; use one of "
                    f"{', '.join(allowed)}"
                )
        if self.message == "offsets" and self.diagonal != "learned":
            raise ValueError("model.graph.diagonal: the message 'offsets' needs a learned one")
        if self.edge_inputs != "confidence" and self.connectivity != "learned_per_image":
            raise ValueError(
                f"model.graph.edge_inputs: {self.edge_inputs!r} needs the connectivity "
                f"'learned_per_image', not {self.connectivity!r}; model.graph.gate works with any"
            )
        if self.positions == "corner" and self.output == "residual":
            raise ValueError(
                "model.graph.positions: 'corner' is for absolute coordinates; what goes in and what "
                "comes out differ by more than the residual"
            )
        if self.gcn_widths[-1] != 2:
            raise ValueError("model.graph.gcn_widths: the last block gives coordinates: 2")

    def reads_visibility(self) -> bool:
        """Whether the graph depends on the visibility head."""
        return self.edge_inputs != "confidence" or self.gate != "none"


@typing.no_type_check  # as a pytree it also holds shapes, shardings and what JAX itself puts there
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LCGCNOutput:
    """What the model says of a batch of face crops.

    Attributes:
      heatmap_logits: heatmaps before the activation, a sigmoid unless the model is `linear`.
      heatmap_landmarks: the heatmap stage's landmarks, in crop pixels.
      confidence: probability at each heatmap's peak.
      edges: the graph's edges, row i being those into landmark i; None without a graph.
      landmarks: the graph stage's landmarks, in crop pixels; without a graph, the heatmap stage's.
      stages: a graph's landmarks after each of its turns, in crop pixels, the last being `landmarks`; None
        without a graph.
      heatmap_std: standard deviation of each heatmap about its peak (`heatmaps.heatmap_std`); None
        without heatmaps.
      visibility: probability that each landmark is visible; None without a visibility head.
      visibility_logits: logits of the visibility head (`visibility.VisibilityHead`), for the loss; None
        without one.
    """

    heatmap_logits: Float[AnyArray, "b hh hw k"]
    heatmap_landmarks: Float[AnyArray, "b k 2"]
    confidence: Float[AnyArray, "b k"]
    edges: Float[AnyArray, "b k k"] | None
    landmarks: Float[AnyArray, "b k 2"]
    stages: Float[AnyArray, "b t k 2"] | None = None
    heatmap_std: Float[AnyArray, "b k"] | None = None
    visibility: Float[AnyArray, "b k"] | None = None
    visibility_logits: Float[AnyArray, "b k 2"] | None = None


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GraphInputs:
    """What the graph sees of a batch of face crops.

    Attributes:
      landmarks: the heatmap stage's landmarks, in crop pixels.
      confidence: probability at each heatmap's peak.
      features: the visual features that the graph reads: at the landmarks `[b k c]`, or, for a
        graph that looks elsewhere, whole maps `[b hh hw n]`; None without a graph.
      heatmap_std: of each heatmap around its peak (`heatmaps.heatmap_std`); None without a visibility head.
    """

    landmarks: Float[AnyArray, "b k 2"]
    confidence: Float[AnyArray, "b k"]
    features: Float[AnyArray, "b ... n"] | None
    heatmap_std: Float[AnyArray, "b k"] | None = None


def normalize_images(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB bytes to the float32 that the models take: ImageNet's mean and deviation taken out."""
    mean = jnp.array(IMAGE_MEAN, jnp.float32)[None, None, None]
    std = jnp.array(IMAGE_STD, jnp.float32)[None, None, None]
    return (images.astype(jnp.float32) / 255 - mean) / std


class GraphHead(nnx.Module):
    """Initial landmarks, their confidences and visual features to refined landmarks and edges.

    Positions are (x, y) as a part of the crop's side, 0..1 (`GraphConfig.positions`).

    Args:
      config: its options.
      num_landmarks: k.
      feature_channels: c.
      bn_momentum: part of the running statistics kept a step.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        config: GraphConfig,
        num_landmarks: int,
        feature_channels: int,
        *,
        bn_momentum: float,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.positions = config.positions
        activated = config.mlp_output == "activated"
        guessing = config.message == "offsets"
        self.embedding = MLP(
            feature_channels,
            config.embedding_widths,
            norm=config.norm,
            end="relu" if activated else "linear",
            momentum=bn_momentum,
            dtype=jnp.float32,
            rngs=rngs,
        )
        if config.connectivity == "learned_per_image":
            self.connectivity = connectivity.PerImageEdges(
                num_landmarks,
                class_widths=config.class_widths,
                edge_widths=config.edge_widths,
                diagonal=config.diagonal,
                norm=config.norm,
                log_confidence=guessing,
                inputs=config.edge_inputs,
                self_logit=SELF_LOGIT if guessing else None,
                edge_end="relu_norm" if activated else "linear",
                bn_momentum=bn_momentum,
                rngs=rngs,
            )
        elif config.connectivity == "learned_static":
            self.connectivity = connectivity.StaticEdges(
                num_landmarks, SELF_LOGIT if guessing else 0.0
            )
        else:
            self.connectivity = connectivity.FixedEdges(num_landmarks, config.connectivity)
        self.gate = connectivity.VisibilityGate() if config.gate == "visibility" else None
        self.offset_voting = OffsetVoting(num_landmarks) if guessing else None
        self.pair_vectors = (
            PairVectors(num_landmarks, config.pair_width, rngs=rngs)
            if config.message == "pair_vector"
            else None
        )
        inputs = 2 + config.embedding_widths[-1] + (3 if guessing else 0)
        widths = (inputs, *config.gcn_widths)
        last = len(config.gcn_widths) - 1
        self.blocks = nnx.List(
            GraphConv(
                widths[i],
                widths[i + 1],
                shape_features=config.shape_features == "all" or i in (0, last),
                pair_width=0 if self.pair_vectors is None else config.pair_width,
                # A residual begins at 0: the graph stage starts as the initial landmarks themselves.
                zero_init=config.output == "residual" and i == last,
                rngs=rngs,
            )
            for i in range(last + 1)
        )
        self.refinements = nnx.List(
            PatchRefiner(num_landmarks, feature_channels, rngs=rngs)
            for _ in range(config.refinements)
        )
        self.shape_refiner = ShapeRefiner(num_landmarks) if config.shape_refiner else None

    def read(
        self,
        maps: Float[Array, "b hh hw c"],
        heat: Float[Array, "b hh hw k"],
        cells: Float[Array, "b k 2"],
    ) -> Float[Array, "b ... n"]:
        """What the head takes of the heatmap model: its features at its landmarks (cells) `[b k c]`.

        With refinements, which look around, all of it: features and heat `[b hh hw c+k]`.
        """
        if self.refinements:
            return jnp.concatenate([maps, heat.astype(maps.dtype)], axis=-1)
        return self._at(maps, cells)

    def _at(
        self, maps: Float[Array, "b hh hw c"], cells: Float[Array, "b k 2"]
    ) -> Float[Array, "b k c"]:
        return heatmaps.sample(maps, cells, bilinear=self.config.sampling == "bilinear")

    def __call__(
        self,
        positions: Float[Array, "b k 2"],
        confidence: Float[Array, "b k"],
        features: Float[Array, "b ... n"],
        visible_logit: Float[Array, "b k"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b t k 2"], Float[Array, "b k k"]]:
        """The landmarks after each turn, and the edges.

        Args:
          positions: of the initial landmarks.
          confidence: probability at each heatmap's peak.
          features: as `read` gives them.
          visible_logit: logit of the probability that a landmark is visible.
          train: whether BatchNorm uses, and updates, its statistics of this batch.
        """
        maps = features
        if self.refinements:
            k = positions.shape[1]
            maps, heat = features[..., :-k], features[..., -k:].astype(jnp.float32)
            features = self._at(maps, heatmaps.cells_at(positions, maps.shape[1:3]))
        if visible_logit is not None and not self.config.visibility_gradient:
            visible_logit = jax.lax.stop_gradient(visible_logit)
        edges = self.connectivity(confidence, visible_logit, train=train)
        if self.gate is not None:
            assert visible_logit is not None, "LCGCN refuses a gate without a visibility head"
            edges = self.gate(edges, visible_logit)
        embedded = self.embedding(features.astype(jnp.float32), train=train)
        log_confidence = connectivity.log_of(confidence)
        start, inputs = positions, [positions, embedded]
        if self.offset_voting is not None:
            start = self.offset_voting(positions, confidence, edges)
            inputs = [start, embedded, log_confidence[..., None], positions - start]
        pairs = None if self.pair_vectors is None else self.pair_vectors(edges)
        nodes = jnp.concatenate(inputs, axis=-1)
        for i, block in enumerate(self.blocks):
            if i > 0 and self.config.activation == "relu":
                nodes = jax.nn.relu(nodes)
            nodes = block(nodes, start, edges, pairs)
        stages = [start + nodes if self.config.output == "residual" else nodes]
        for refine in self.refinements:
            stages.append(refine(stages[-1], log_confidence, edges, maps, heat))
        if self.shape_refiner is not None:
            stages.append(self.shape_refiner(stages[-1], confidence))
        return jnp.stack(stages, axis=1), edges


class LCGCN(nnx.Module):
    """A heatmap model and, unless `graph` is None, a graph that refines its peaks.

    Args:
      heatmap_model: images to (logits, features); see `registry.register_heatmap_model`.
      num_landmarks: k.
      decode: how peaks become initial landmarks, one of `heatmaps.DECODERS`; the paper: `argmax`.
      graph: options of the graph head, or of the cascade in its place; None for a heatmap model alone.
      bn_momentum: part of the graph's running statistics kept a step.
      rngs: for the initial weights.
      heatmap_offset: input pixel, in x and in y, of the middle of heatmap cell (0, 0); None: the cells
        cover the input evenly (`geometry.centered_offset`).
      visibility: options of the visibility head, which needs a graph; None: no head.
    """

    def __init__(
        self,
        heatmap_model: nnx.Module,
        num_landmarks: int,
        *,
        decode: str,
        graph: GraphConfig | CascadeConfig | None,
        bn_momentum: float,
        rngs: nnx.Rngs,
        heatmap_offset: float | None = None,
        visibility: VisibilityConfig | None = None,
    ):
        if decode not in heatmaps.DECODERS:
            raise ValueError(
                f"model.decode: {decode!r} is not available; use one of {', '.join(heatmaps.DECODERS)}"
            )
        self.heatmap_model = heatmap_model
        self.activation = getattr(heatmap_model, "activation", "sigmoid")
        self.decode = decode
        self.heatmap_offset = (
            centered_offset(heatmap_model.stride) if heatmap_offset is None else heatmap_offset
        )
        channels = heatmap_model.feature_channels
        if graph is None:
            self.graph = None
        elif isinstance(graph, CascadeConfig):
            self.graph = MeanShapeCascade(graph, num_landmarks, channels, rngs=rngs)
        else:
            self.graph = GraphHead(
                graph, num_landmarks, channels, bn_momentum=bn_momentum, rngs=rngs
            )
        if visibility is not None and visibility.head == "none":
            visibility = None
        if visibility is not None and graph is None:
            raise ValueError(
                f"model.visibility.head: {visibility.head!r} needs a graph, and model.graph is None; set it "
                "to 'none'"
            )
        if isinstance(graph, GraphConfig) and graph.reads_visibility() and visibility is None:
            raise ValueError(
                f"model.graph: edge_inputs {graph.edge_inputs!r} with gate {graph.gate!r} needs a visibility "
                "head; set model.visibility.head to 'attention'"
            )
        # After the graph, so that its initial weights do not depend on the head.
        self.visibility = (
            None
            if visibility is None
            else VisibilityHead(visibility, num_landmarks, channels, rngs=rngs)
        )

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        *,
        train_heatmap: bool = False,
        train_graph: bool = False,
    ) -> LCGCNOutput:
        """Runs both stages.

        Args:
          images: square normalized crops (`normalize_images`).
          train_heatmap: the heatmap model's BatchNorm uses, and updates, its statistics of this batch.
            Otherwise, where the graph trains, no gradient goes back into the heatmap model.
          train_graph: the same for the graph.
        """
        logits, graph_inputs = self.detect(images, train=train_heatmap)
        if train_graph and not train_heatmap:
            logits, graph_inputs = jax.lax.stop_gradient((logits, graph_inputs))
        output = self.refine(graph_inputs, images.shape[2], train=train_graph)
        heatmap_std = graph_inputs.heatmap_std
        if heatmap_std is None:
            heatmap_std = heatmaps.heatmap_std(logits, activation=self.activation)
        return dataclasses.replace(output, heatmap_logits=logits, heatmap_std=heatmap_std)

    def detect(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> tuple[Float[Array, "b hh hw k"], GraphInputs]:
        """The heatmap stage: logits, and what the graph sees."""
        logits, maps = self.heatmap_model(images, train=train)
        logits = logits.astype(jnp.float32)
        return logits, self.read_peaks(logits, maps)

    def read_peaks(
        self, logits: Float[Array, "b hh hw k"], maps: Float[Array, "b hh hw c"]
    ) -> GraphInputs:
        """What the graph sees of a heatmap model's logits and features."""
        cells, confidence = heatmaps.decode(logits, self.decode, activation=self.activation)
        features = None
        if self.graph is not None:
            features = self.graph.read(maps, heatmaps.activate(logits, self.activation), cells)
        landmarks = heatmap_to_input(cells, self.heatmap_model.stride, self.heatmap_offset)
        heatmap_std = None
        if self.visibility is not None:
            heatmap_std = heatmaps.heatmap_std(logits, activation=self.activation)
        return GraphInputs(landmarks, confidence, features, heatmap_std)

    def refine(self, graph_inputs: GraphInputs, size: int, *, train: bool = False) -> LCGCNOutput:
        """The graph stage on crops of `size` pixels.

        Its output lacks `heatmap_logits`, and without a visibility head `heatmap_std`.
        """
        initial, confidence = graph_inputs.landmarks, graph_inputs.confidence
        if self.graph is None:
            return LCGCNOutput(None, initial, confidence, None, initial)
        shift_in, shift_out = 0.5, 0.5
        if self.graph.positions == "corner":
            shift_in, shift_out = -self.heatmap_offset, 0.0
        logits = visible_logit = visibility = None
        if self.visibility is not None:
            logits = self._visibility_logits(graph_inputs, size)
            visible_logit = logits[..., 0]
            visibility = jax.nn.sigmoid(visible_logit)
        positions, edges = self.graph(
            (initial + shift_in) / size,
            confidence,
            graph_inputs.features,
            visible_logit,
            train=train,
        )
        stages = positions * size - shift_out
        return LCGCNOutput(
            None,
            initial,
            confidence,
            edges,
            stages[:, -1],
            stages,
            graph_inputs.heatmap_std,
            visibility,
            logits,
        )

    def _visibility_logits(self, graph_inputs: GraphInputs, size: int) -> Float[Array, "b k 2"]:
        features = graph_inputs.features
        if features.ndim == 4:  # whole maps, whose first channels are the visual features
            maps = features[..., : self.heatmap_model.feature_channels]
            cells = input_to_heatmap(
                graph_inputs.landmarks, self.heatmap_model.stride, self.heatmap_offset
            )
            features = heatmaps.sample(maps, cells, bilinear=True)
        positions = (graph_inputs.landmarks + 0.5) / size
        return self.visibility(
            positions, graph_inputs.confidence, graph_inputs.heatmap_std, features
        )
