"""Augmentation that changes nothing: the crop of evaluation."""

from lcgcn_jax.data.augment import AugmentConfig

NO_AUGMENTATION = AugmentConfig(
    rotation=0.0,
    zoom=(1.0, 1.0),
    shift=0.0,
    mirror=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
)
