"""Preprocessing and augmentation that move or filter positions: channels pass.

Layers that mix colors are in `fixes.py`.
"""

from keras_nisp.channels.registry import named_layers, operations, register_rule
from keras_nisp.rules.moving import Spatial

register_rule(
    *named_layers("Resizing", "CenterCrop", "RandomCrop", "RandomFlip", "RandomRotation"),
    *named_layers("RandomTranslation", "RandomZoom", "RandomShear", "RandomPerspective"),
    *named_layers("RandomElasticTransform", "RandomErasing", "RandomGaussianBlur"),
    *named_layers("RandomSharpness"),
    *operations("image.resize", "image.crop_images", "image.pad_images", "image.affine_transform"),
    *operations("image.perspective_transform", "image.gaussian_blur", "image.elastic_transform"),
)(Spatial)
