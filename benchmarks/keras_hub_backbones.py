"""The image backbones of keras-hub with random weights, at input sizes for a CPU.

    >>> BACKBONES["resnet_18_imagenet"]()  # doctest: +SKIP

Names and hyperparameters are those of the published presets; nothing is downloaded. A name that
ends in `_cut` is a preset that would take gigabytes: all kinds of its blocks at their published
widths, but fewer of them.

    python benchmarks/keras_hub_backbones.py [--models resnet_18_imagenet]

builds them and says what they weigh.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
from keras_hub import models as hub

# The only place within keras-hub that knows the hyperparameters of these presets.
from keras_hub.src.utils.timm import (
    convert_cspnet,
    convert_densenet,
    convert_efficientnet,
    convert_hgnetv2,
    convert_mobilenet,
    convert_mobilenetv5,
    convert_resnet,
    convert_vgg,
)

# Presets whose hyperparameters keras-hub converts: name of the preset to name in timm.
TIMM = {
    convert_cspnet: {
        "csp_darknet_53_ra_imagenet": "cspdarknet53",
        "csp_resnet_50_ra_imagenet": "cspresnet50",
        "csp_resnext_50_ra_imagenet": "cspresnext50",
        "darknet_53_imagenet": "darknet53",
    },
    convert_densenet: {
        "densenet_121_imagenet": "densenet121",
        "densenet_169_imagenet": "densenet169",
        "densenet_201_imagenet": "densenet201",
    },
    convert_efficientnet: {
        "efficientnet_b0_ra_imagenet": "efficientnet_b0",
        "efficientnet_b2_ra_imagenet": "efficientnet_b2",
        "efficientnet_b4_ra2_imagenet": "efficientnet_b4",
        "efficientnet_lite0_ra_imagenet": "efficientnet_lite0",
        "efficientnet_es_ra_imagenet": "efficientnet_es",
        "efficientnet_el_ra_imagenet": "efficientnet_el",
        "efficientnet2_rw_t_ra2_imagenet": "efficientnetv2_rw_t",
        "efficientnet2_rw_s_ra2_imagenet": "efficientnetv2_rw_s",
    },
    convert_mobilenet: {
        "mobilenet_v3_small_050_imagenet": "mobilenetv3_small_050",
        "mobilenet_v3_small_100_imagenet": "mobilenetv3_small_100",
        "mobilenet_v3_large_100_imagenet": "mobilenetv3_large_100",
    },
    convert_resnet: {
        "resnet_18_imagenet": "resnet18",
        "resnet_34": "resnet34",  # no preset of its own, but the encoder of BASNet
        "resnet_50_imagenet": "resnet50",
        "resnet_101_imagenet": "resnet101",
        "resnet_v2_50_imagenet": "resnetv2_50",
    },
    convert_vgg: {
        "vgg_11_imagenet": "vgg11",
        "vgg_16_imagenet": "vgg16",
        "vgg_19_imagenet": "vgg19",
    },
}

# Whether HGNetV2 scales and shifts after each activation follows from how it was trained.
HGNETV2 = {
    "hgnetv2_b4_ssld_stage2_ft_in1k": ("hgnetv2_b4", "ssld_stage2_ft_in1k"),
    "hgnetv2_b5_ssld_stage2_ft_in1k": ("hgnetv2_b5", "ssld_stage2_ft_in1k"),
    "hgnetv2_b0_affine": ("hgnetv2_b0", ""),  # as in D-FINE
}

RESNET_VD_COMMON = dict(
    input_conv_filters=[32, 32, 64],
    input_conv_kernel_sizes=[3, 3, 3],
    stackwise_num_filters=[64, 128, 256, 512],
    stackwise_num_strides=[1, 2, 2, 2],
)
RESNET_VD = {
    "resnet_vd_18_imagenet": dict(stackwise_num_blocks=[2, 2, 2, 2], block_type="basic_block_vd"),
    "resnet_vd_34_imagenet": dict(stackwise_num_blocks=[3, 4, 6, 3], block_type="basic_block_vd"),
    "resnet_vd_50_imagenet": dict(
        stackwise_num_blocks=[3, 4, 6, 3], block_type="bottleneck_block_vd"
    ),
}

XCEPTION = {
    "xception_41_imagenet": dict(
        stackwise_conv_filters=[[32, 64], [128, 128], [256, 256], [728, 728]]
        + 8 * [[728, 728, 728]]
        + [[728, 1024], [1536, 2048]],
        stackwise_pooling=[False, True, True, True] + 8 * [False] + [True, False],
    ),
}

# Transformers: width, heads and width of the MLP.
TINY = dict(hidden_dim=192, num_heads=3, intermediate_dim=768)
SMALL = dict(hidden_dim=384, num_heads=6, intermediate_dim=1536)
BASE = dict(hidden_dim=768, num_heads=12, intermediate_dim=3072)
VIT_BASE = dict(num_layers=12, hidden_dim=768, num_heads=12, mlp_dim=3072)

DEIT = {
    "deit_tiny_distilled_patch16_224_imagenet": dict(**TINY, patch_size=16, num_layers=12),
    "deit_small_distilled_patch16_224_imagenet": dict(**SMALL, patch_size=16, num_layers=12),
    "deit_base_distilled_patch16_224_imagenet": dict(**BASE, patch_size=16, num_layers=12),
}

VIT = {
    "vit_base_patch16_224_imagenet": dict(**VIT_BASE, patch_size=(16, 16)),
    "vit_base_patch32_384_imagenet": dict(**VIT_BASE, patch_size=(32, 32)),
}

# The window must fit into the last stage, so that smaller images than 224 are out.
SWIN = {
    "swin_tiny_patch4_window7_224": dict(
        embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7
    ),
    "swin_small_patch4_window7_224": dict(
        embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), window_size=7
    ),
}

MIT_COMMON = dict(
    num_layers=4,
    layerwise_num_heads=[1, 2, 5, 8],
    layerwise_sr_ratios=[8, 4, 2, 1],
    layerwise_patch_sizes=[7, 3, 3, 3],
    layerwise_strides=[4, 2, 2, 2],
    max_drop_path_rate=0.1,
)
MIT_WIDE = dict(hidden_dims=[64, 128, 320, 512])
MIT = {
    "mit_b0_ade20k_512": dict(hidden_dims=[32, 64, 160, 256], layerwise_depths=[2, 2, 2, 2]),
    "mit_b1_ade20k_512": dict(**MIT_WIDE, layerwise_depths=[2, 2, 2, 2]),
    "mit_b2_ade20k_512": dict(**MIT_WIDE, layerwise_depths=[3, 4, 6, 3]),
}

DINOV2_COMMON = dict(patch_size=14, position_embedding_shape=(518, 518))
DINOV2 = {
    "dinov2_small": dict(**SMALL, num_layers=12),
    "dinov2_base": dict(**BASE, num_layers=12),
    "dinov2_with_registers_small": dict(
        **SMALL, num_layers=12, num_register_tokens=4, antialias_in_interpolation=True
    ),
    # 40 layers; the only one with SwiGLU.
    "dinov2_giant_cut": dict(
        hidden_dim=1536, num_heads=24, intermediate_dim=6144, num_layers=2, use_swiglu_ffn=True
    ),
}

DINOV3_COMMON = dict(patch_size=16, num_register_tokens=4, use_key_bias=False)
DINOV3 = {
    "dinov3_vit_small_lvd1689m": dict(**SMALL, num_layers=12),
    "dinov3_vit_small_plus_lvd1689m": dict(
        **SMALL, num_layers=12, use_gated_mlp=True, hidden_activation="silu"
    ),
}

VIT_DET = {
    "sam_base_sa1b": dict(
        hidden_size=768,
        num_layers=12,
        intermediate_dim=3072,
        num_heads=12,
        global_attention_layer_indices=[2, 5, 8, 11],
        patch_size=16,
        window_size=14,
    ),
}

# The image halves of models for images and texts.
SIGLIP = {
    "siglip_base_patch16_224": dict(**BASE, patch_size=16, num_layers=12),
}
CLIP = {
    "clip_vit_base_patch16": dict(**BASE, patch_size=16, num_layers=12),
    "clip_vit_b_32_laion2b_s34b_b79k": dict(
        **BASE, patch_size=32, num_layers=12, intermediate_activation="gelu"
    ),
}
METACLIP_2 = {
    # 32 layers.
    "metaclip_2_vit_huge_patch14_224_cut": dict(
        hidden_dim=1280,
        num_heads=16,
        intermediate_dim=5120,
        patch_size=14,
        num_layers=2,
    ),
}


def build(backbone: type, size: int | None, config: dict) -> keras.Model:
    """A backbone for square images."""
    # The one backbone that has another name for it.
    name = "input_shape" if backbone is hub.EfficientNetBackbone else "image_shape"
    return backbone(**{name: (size, size, 3)}, **config)


def hgnet_v2(architecture: str, tag: str) -> dict:
    """Hyperparameters of HGNetV2."""
    config = {"architecture": architecture, "pretrained_cfg": {"tag": tag}}
    return convert_hgnetv2.convert_backbone_config(config)


def mobilenet_v5(blocks: list[list[int]]) -> keras.Model:
    """MobileNetV5 with some of the blocks of each stage."""
    config = convert_mobilenetv5.convert_backbone_config({"architecture": "mobilenetv5_300m"})
    stages = {
        name: [[stage[i] for i in kept] for stage, kept in zip(stages, blocks, strict=True)]
        for name, stages in config.items()
        if name.startswith("stackwise_") and name != "stackwise_num_blocks"
    }
    config |= stages
    config["stackwise_num_blocks"] = [len(stage) for stage in stages["stackwise_block_types"]]
    # The stage before the last has 4 pixels a side, which the adapter halves.
    return build(hub.MobileNetV5Backbone, 64, config | {"msfa_output_resolution": 2})


# Models around a backbone, of which they use the outputs of several stages.


def resnet(architecture: str) -> keras.Model:
    """An encoder for images of any size, which is what BASNet insists on."""
    config = convert_resnet.convert_backbone_config({"architecture": architecture})
    return build(hub.ResNetBackbone, None, config)


def segformer(encoder: str, filters: int) -> keras.Model:
    return hub.SegFormerBackbone(image_encoder=BACKBONES[encoder](), projection_filters=filters)


def deeplab_v3() -> keras.Model:
    return hub.DeepLabV3Backbone(
        image_encoder=resnet("resnet50"),
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P5",
        projection_filters=48,
        upsampling_size=8,
        dilation_rates=[6, 12, 18],
        image_shape=(64, 64, 3),
    )


def retinanet(use_p5: bool) -> keras.Model:
    return hub.RetinaNetBackbone(
        image_encoder=resnet("resnet50"),
        min_level=3,
        max_level=7,
        use_p5=use_p5,
        image_shape=(64, 64, 3),
    )


def basnet() -> keras.Model:
    return hub.BASNetBackbone(
        image_encoder=resnet("resnet34"), num_classes=1, image_shape=(64, 64, 3)
    )


def depth_anything() -> keras.Model:
    config = DINOV2["dinov2_small"] | DINOV2_COMMON | {"apply_layernorm": True}
    return hub.DepthAnythingBackbone(
        image_encoder=build(hub.DINOV2Backbone, 84, config),  # the neck takes no 5 patches a side
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_dims=[48, 96, 192, 384],
        fusion_hidden_dim=64,
        head_hidden_dim=32,
        head_in_index=-1,
        feature_keys=["stage3", "stage6", "stage9", "stage12"],
    )


# Class, image size, what all presets share, the presets. Sizes are odd where that is allowed.
FAMILIES = [
    (hub.ResNetBackbone, 65, RESNET_VD_COMMON, RESNET_VD),
    (hub.XceptionBackbone, 71, {}, XCEPTION),
    (hub.DeiTBackbone, 64, {"layer_norm_epsilon": 1e-12}, DEIT),
    (hub.ViTBackbone, 64, {}, VIT),
    (hub.SwinTransformerBackbone, 224, {}, SWIN),
    (hub.MiTBackbone, 64, MIT_COMMON, MIT),
    (hub.DINOV2Backbone, 70, DINOV2_COMMON, DINOV2),
    (hub.DINOV3Backbone, 64, DINOV3_COMMON, DINOV3),
    (hub.ViTDetBackbone, 96, {}, VIT_DET),
    (hub.SigLIPVisionEncoder, 64, {}, SIGLIP),
    (hub.CLIPVisionEncoder, 64, {}, CLIP),
    (hub.MetaCLIP2VisionEncoder, 70, {}, METACLIP_2),
]

BACKBONES: dict[str, Callable[[], keras.Model]] = {
    **{
        name: partial(
            build, convert.backbone_cls, 65, convert.convert_backbone_config({"architecture": timm})
        )
        for convert, presets in TIMM.items()
        for name, timm in presets.items()
    },
    **{
        name: partial(build, hub.HGNetV2Backbone, 65, hgnet_v2(architecture, tag))
        for name, (architecture, tag) in HGNETV2.items()
    },
    **{
        name: partial(build, backbone, size, common | config)
        for backbone, size, common, presets in FAMILIES
        for name, config in presets.items()
    },
    # Of 84 blocks each kind in each stage.
    "mobilenetv5_300m_enc_gemma3n_cut": partial(
        mobilenet_v5, [[0, 1], [0, 1], [0, 1, 8, 9, 10], [0, 1, 2]]
    ),
    "segformer_b0_ade20k_512": partial(segformer, "mit_b0_ade20k_512", 256),
    "segformer_b2_ade20k_512": partial(segformer, "mit_b2_ade20k_512", 768),
    "deeplab_v3_plus_resnet50_pascalvoc": deeplab_v3,
    "retinanet_resnet50_fpn_coco": partial(retinanet, use_p5=False),
    "retinanet_resnet50_fpn_v2_coco": partial(retinanet, use_p5=True),
    "basnet_duts": basnet,
    "depth_anything_v2_small": depth_anything,
}


def example_inputs(model: keras.Model, count: int = 2):
    """Random images in the model's own structure."""
    rng = np.random.default_rng(0)
    return keras.tree.map_structure(
        lambda tensor: rng.normal(size=(count, *tensor.shape[1:])).astype("float32"), model.input
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(BACKBONES), metavar="NAME")
    args = parser.parse_args()
    for name in args.models:
        started = time.perf_counter()
        model = BACKBONES[name]()
        built = time.perf_counter()
        # Without `training=False`, a Resizing layer puts all layers behind it into training mode.
        model(example_inputs(model), training=False)
        called = time.perf_counter()
        size = keras.tree.flatten(model.input)[0].shape[1]
        print(
            f"{name}: {model.count_params():,} parameters, {size} pixels a side, "
            f"built in {built - started:.1f} s, called in {called - built:.1f} s",
            flush=True,
        )
        keras.backend.clear_session()


if __name__ == "__main__":
    main()
