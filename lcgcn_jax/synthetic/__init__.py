"""Procedural faces with exact landmarks, drawn from a seed, in the layouts of WFLW and 300W.

A face is a painted relief. Its features are curves in the frontal plane: they are painted on a flat
texture, a height map lifts the texture to the shape of a head, light falls on the relief, and a
rotation carries it into the picture. Landmarks are points of the same curves, lifted by the same
height map and carried by the same rotation, so each lies on a drawn structure at any pose.
"""

from lcgcn_jax.synthetic.drawing import SyntheticFace, draw_face
from lcgcn_jax.synthetic.traits import ATTRIBUTES
from lcgcn_jax.synthetic.writers import write_300w, write_wflw

__all__ = ["ATTRIBUTES", "SyntheticFace", "draw_face", "write_300w", "write_wflw"]
