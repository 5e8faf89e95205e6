"""Procedural faces with exact landmarks, generated from a seed, in the layouts of WFLW and 300W.

The facial features are curves in the frontal plane. They are painted on a flat texture, displaced by a
height map, lit, and projected into the image by a rotation and a scale (weak perspective). The landmarks
are points of the same curves under the same displacement and projection, so they are exact at any pose.
"""

from lcgcn_jax.synthetic.drawing import SyntheticFace, draw_face
from lcgcn_jax.synthetic.traits import ATTRIBUTES
from lcgcn_jax.synthetic.writers import write_300w, write_wflw

__all__ = ["ATTRIBUTES", "SyntheticFace", "draw_face", "write_300w", "write_wflw"]
