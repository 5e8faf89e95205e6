from lcgcn_jax.app.notebook import notebook_image as notebook_image
from lcgcn_jax.app.server import App as App
from lcgcn_jax.app.server import launch_app as launch_app
from lcgcn_jax.errors import InputError as InputError
from lcgcn_jax.evaluation.evaluator import evaluate as evaluate
from lcgcn_jax.evaluation.report import EvaluationResult as EvaluationResult
from lcgcn_jax.inference.face import Face as Face
from lcgcn_jax.inference.model import LandmarkModel as LandmarkModel
from lcgcn_jax.inference.model import list_models as list_models
from lcgcn_jax.inference.model import load as load
from lcgcn_jax.inference.model import load_model as load_model
from lcgcn_jax.inference.tracking import FaceTracker as FaceTracker
from lcgcn_jax.inference.tracking import TrackedFrame as TrackedFrame
from lcgcn_jax.interop.serving import export_model as export_model
from lcgcn_jax.landmarks import IBUG68 as IBUG68
from lcgcn_jax.landmarks import WFLW98 as WFLW98
from lcgcn_jax.landmarks import LandmarkScheme as LandmarkScheme
from lcgcn_jax.landmarks import get_scheme as get_scheme
from lcgcn_jax.models.lcgcn import LCGCNOutput as LCGCNOutput
from lcgcn_jax.models.lcgcn import normalize_images as normalize_images
from lcgcn_jax.models.registry import register_heatmap_model as register_heatmap_model
from lcgcn_jax.training.api import create_model as create_model
from lcgcn_jax.training.api import train as train
from lcgcn_jax.training.config import load_config as load_config
from lcgcn_jax.training.sharding import describe_devices as describe_devices
from lcgcn_jax.visualize.overlays import draw as draw

__version__: str
