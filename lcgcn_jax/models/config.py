"""Typed configurations of the models.

Each class holds the options of one part of a model. A choice among names is a `Literal` type.
`registry.model_config` parses plain mappings and checks the range of every field.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from lcgcn_jax.fields import number, numbers
from lcgcn_jax.heatmaps import Activation, Decoder

HRNetArch = Literal["w18", "w32", "w48", "w18-small-v1", "w18-small-v2", "tiny"]
Features = Literal["concat", "head"]
Connectivity = Literal["learned_per_image", "learned_static", "uniform", "self_only"]
Diagonal = Literal["learned", "zero"]
EdgeInputs = Literal["confidence", "visibility", "both"]
Gate = Literal["none", "visibility"]
Message = Literal["paper", "pair_vector", "offset_votes"]
GraphOutput = Literal["absolute", "residual"]
Sampling = Literal["nearest", "bilinear"]
Norm = Literal["batch", "layer", "none"]
VisibilityMethod = Literal["none", "local", "attention"]

MAX_WIDTH = 65_536
"""Largest number of channels of a layer."""


@dataclasses.dataclass(frozen=True)
class HRNetConfig:
    """Options of `hrnet.HRNet`.

    Attributes:
      arch: a key of `hrnet.ARCHS`.
      features: output features, `concat`: the four branches at stride 4 (270 channels for w18), or `head`:
        the same after the 1x1 convolution, BatchNorm and ReLU of the head.
      activation: activation that the logits are trained for.
    """

    arch: HRNetArch
    features: Features = "concat"
    activation: Activation = "sigmoid"


@dataclasses.dataclass(frozen=True)
class HourglassConfig:
    """Options of `hourglass.StackedHourglass`.

    Attributes:
      stacks: number of hourglasses; 8 in the paper.
      width: number of channels, an even number; 256 in the paper.
      activation: activation that the logits are trained for.
    """

    stacks: int = number(2, 1, 64)
    width: int = number(128, 2, MAX_WIDTH, multiple=2)
    activation: Activation = "sigmoid"


@dataclasses.dataclass(frozen=True)
class GraphConfig:
    """Options of the graph head. The defaults are the choices of the paper.

    Attributes:
      connectivity: source of the edge weights: `learned_per_image` (the paper), `learned_static` (Li et
        al. 2020), `uniform` or `self_only`.
      diagonal: weight of the edge from a node to itself: `learned`, or `zero`, whose logit is 0 (the
        authors' code).
      message: content of the messages. `paper`: `h_j (+) q_ij`. `pair_vector`: also a learned vector for
        each pair of landmarks (`gcn.PairVectors`). `offset_votes`: `gcn.OffsetVoting` replaces the initial
        landmarks before the first block; the log confidences and the displacements by the votes become
        node features, the edges are predicted from log confidences, and each landmark starts with about
        half of its edge weight on itself.
      pair_width: length of the pair vectors.
      output: `absolute` coordinates (the paper), or `residual` to the initial landmarks.
      sampling: `nearest` or `bilinear` sampling of the features. The initial landmarks of the paper are
        heatmap pixels, where both are equal.
      norm: normalization in the MLPs: `batch` (the authors' code), `layer` or `none`.
      authors_conventions: differences between the authors' code and the paper, for importing their
        weights. Coordinates: a landmark at heatmap pixel u of hw enters as u / hw and leaves as x / s,
        where s is the side of the crop; otherwise a landmark at crop pixel x is (x + 0.5) / s in both
        directions. Only the first and the last block receive q_ij. There is no ReLU between the blocks.
        f_i is taken after a ReLU, and the edge logits after a ReLU and a norm.
      embedding_widths: widths of the MLP from the visual feature to f_i.
      class_widths: widths of the MLP from a pair of classes to l_ij.
      edge_widths: hidden widths of the MLP from confidences and l_ij to the logit of an edge.
      edge_inputs: inputs of that MLP for the two landmarks: `confidence` (the paper), the logits of
        `visibility`, or `both`. The last two need a visibility head and the connectivity
        `learned_per_image`.
      gate: `none`, or `visibility`, which scales each message by the visibility of its source
        (`connectivity.VisibilityGate`), for every connectivity. It needs a visibility head.
      visibility_gradient: whether the coordinate loss trains the visibility head through edges and gate.
      gcn_widths: node width after each block; the last is 2.
      refinements: number of patch refinement stages after the graph (`patch_refiner.PatchRefiner`).
      shape_refiner: whether a linear shape refinement is the last stage (`shape_refiner.ShapeRefiner`).
      pose_terms: whether the shape refinement also has terms that depend on the yaw of the face. They stay
        0 until `lcgcn research fit-shape --pose-terms` fits them.
    """

    connectivity: Connectivity = "learned_per_image"
    diagonal: Diagonal = "learned"
    message: Message = "paper"
    pair_width: int = number(8, 1, MAX_WIDTH)
    output: GraphOutput = "absolute"
    sampling: Sampling = "nearest"
    norm: Norm = "batch"
    authors_conventions: bool = False
    embedding_widths: tuple[int, ...] = numbers((512, 128, 32, 8), 1, MAX_WIDTH, shortest=1)
    class_widths: tuple[int, ...] = numbers((32, 1), 1, MAX_WIDTH, shortest=1)
    edge_widths: tuple[int, ...] = numbers((4,), 1, MAX_WIDTH)
    edge_inputs: EdgeInputs = "confidence"
    gate: Gate = "none"
    visibility_gradient: bool = False
    gcn_widths: tuple[int, ...] = numbers((64, 16, 2), 1, MAX_WIDTH, shortest=1, last=2)
    refinements: int = number(0, 0, 64)
    shape_refiner: bool = False
    pose_terms: bool = False

    @classmethod
    def authors(cls) -> "GraphConfig":
        """The graph head in the code of the paper's authors."""
        return cls(diagonal="zero", authors_conventions=True)

    @classmethod
    def best(cls) -> "GraphConfig":
        """The graph head with the lowest error on 300W (docs/research/results.md)."""
        return cls(message="offset_votes", output="residual", sampling="bilinear", refinements=2)

    def __post_init__(self):
        if self.message == "offset_votes" and self.diagonal != "learned":
            raise ValueError(
                "model.graph.diagonal: the message 'offset_votes' needs a learned diagonal; set it to "
                "'learned'"
            )
        if self.edge_inputs != "confidence" and self.connectivity != "learned_per_image":
            raise ValueError(
                f"model.graph.edge_inputs: {self.edge_inputs!r} needs the connectivity "
                f"'learned_per_image', not {self.connectivity!r}; model.graph.gate works with any"
            )
        if self.authors_conventions and self.output == "residual":
            raise ValueError(
                "model.graph.authors_conventions: needs absolute coordinates, because input and output "
                "coordinates are defined differently; set model.graph.output to 'absolute'"
            )
        if self.pose_terms and not self.shape_refiner:
            raise ValueError(
                "model.graph.pose_terms: needs the shape refinement; set model.graph.shape_refiner to True"
            )
        if self.gcn_widths[-1] != 2:
            raise ValueError(
                "model.graph.gcn_widths: the last block outputs coordinates; set the last width to 2"
            )

    @property
    def uses_offset_votes(self) -> bool:
        """Whether `gcn.OffsetVoting` replaces the initial landmarks."""
        return self.message == "offset_votes"

    @property
    def reads_visibility(self) -> bool:
        """Whether the graph depends on the visibility head."""
        return self.edge_inputs != "confidence" or self.gate != "none"


@dataclasses.dataclass(frozen=True)
class CascadeConfig:
    """Options of `cascade.MeanShapeCascade`.

    Attributes:
      width: number of node channels.
      blocks: number of residual graph convolutions in each of the two stages.
      fine_steps: number of times the fine stage is applied, with shared weights.
    """

    width: int = number(128, 1, MAX_WIDTH)
    blocks: int = number(3, 1, 64)
    fine_steps: int = number(3, 1, 64)


@dataclasses.dataclass(frozen=True)
class VisibilityConfig:
    """Options of `visibility.VisibilityHead`.

    Attributes:
      head: `none`: no head; `local`: each landmark is classified from its features; `attention`: also
        from the features of all other landmarks.
      width: number of node channels.
    """

    head: VisibilityMethod = "none"
    width: int = number(64, 1, MAX_WIDTH)


HEATMAP_CONFIGS = {"hrnet": HRNetConfig, "hourglass": HourglassConfig}
"""`model.heatmap.name` -> options, for the heatmap models of this package."""

GRAPHS = {"lcgcn": GraphConfig, "dag": CascadeConfig}
"""`model.graph.name` -> options: the graph head of the paper, or the cascade of Li et al."""


def _default_heatmap_model() -> dict[str, Any]:
    return {"name": "hrnet", **dataclasses.asdict(HRNetConfig("w18"))}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Heatmap model and graph. `registry.model_config` creates it from plain types.

    Attributes:
      heatmap: `name` and options of a heatmap model.
      heatmap_offset: input pixel, in x and in y, of the center of heatmap pixel (0, 0), for weights of code
        bases that place it elsewhere (see `interop.torch_layouts`); null: heatmap pixels cover the input
        evenly (`geometry.centered_offset`).
      decode: landmark decoding (`heatmaps.decode`), one of `heatmaps.DECODERS`; `argmax` in the paper.
      graph: `name` and options of a graph, `lcgcn` or `dag`; null: heatmap model only.
      visibility: options of the head that predicts which landmarks are visible; `head` `none`: no head. It
        needs a graph and trains with it, on faces with visibility labels, such as those of MERL-RAV.
      bn_momentum: fraction of the running statistics of BatchNorm that is kept per step.
    """

    heatmap: Mapping[str, Any] = dataclasses.field(default_factory=_default_heatmap_model)
    heatmap_offset: float | None = number(None, -64, 64)
    decode: Decoder = "argmax"
    graph: GraphConfig | CascadeConfig | None = GraphConfig()
    visibility: VisibilityConfig = VisibilityConfig()
    bn_momentum: float = number(0.99, 0, 1, below=True)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types; `registry.model_config` is the inverse."""
        fields = dataclasses.asdict(self)
        if self.graph is not None:
            name = next(name for name, kind in GRAPHS.items() if kind is type(self.graph))
            fields["graph"] = {"name": name, **fields["graph"]}
        return fields

    def __post_init__(self):
        head = self.visibility.head
        if head != "none" and self.graph is None:
            raise ValueError(
                f"model.visibility.head: {head!r} needs a graph, and model.graph is null; set it to 'none'"
            )
        if isinstance(self.graph, GraphConfig) and self.graph.reads_visibility and head == "none":
            raise ValueError(
                f"model.graph: edge_inputs {self.graph.edge_inputs!r} with gate {self.graph.gate!r} needs a "
                "visibility head; set model.visibility.head to 'attention'"
            )
