"""The text, audio and multimodal backbones of keras-hub, tiny and random, pruned to a half.

    python benchmarks/keras_hub_language.py [--models gpt2 llama]

Two layers of width 32, four heads, a vocabulary of 100: kinds of layers are those of the presets,
sizes are not; nothing is downloaded. Each backbone gets a Dense head on its token outputs (or
embeddings), is converted by `as_functional` and pruned by `Magnitude` at `ratio=0.5`, which proves
the result, with random calibration data that give the sizes of open axes.
"""

import argparse
import collections
import contextlib
import io
import re
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
from keras_hub import models as hub
from results import Rows

import keras_nisp as kn

LENGTH, VOCABULARY, SAMPLES = 16, 100, 8
MOST_HELD = 2  # reasons that are kept
SIZE = dict(num_layers=2, hidden_dim=32, intermediate_dim=64)
TEXT = dict(**SIZE, vocabulary_size=VOCABULARY)
HEADS = dict(**TEXT, num_heads=4)
GROUPED = dict(**TEXT, num_query_heads=4, num_key_value_heads=2)
EXPERTS = dict(num_experts=4, top_k=2)
GEMMA = dict(**GROUPED, head_dim=8)
LINEAR = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
IMAGE = dict(image_shape=(32, 32, 3), patch_size=8)
T5_GEMMA = {
    f"{part}_{key}": value
    for part in ("encoder", "decoder")
    for key, value in dict(
        hidden_dim=32,
        intermediate_dim=64,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"],
    ).items()
}


def two_towers(family: str, **kwargs) -> keras.Model:
    """An encoder of images and one of texts."""
    text = dict(**HEADS, embedding_dim=32, max_sequence_length=LENGTH)
    return getattr(hub, f"{family}Backbone")(
        vision_encoder=getattr(hub, f"{family}VisionEncoder")(**SIZE, num_heads=4, **IMAGE),
        text_encoder=getattr(hub, f"{family}TextEncoder")(**text),
        **kwargs,
    )


def gemma3_with_images() -> keras.Model:
    from keras_hub.src.models.gemma3.gemma3_vision_encoder import Gemma3VisionEncoder

    encoder = Gemma3VisionEncoder(
        **SIZE, image_size=16, patch_size=4, num_heads=2, output_dim=32, pool_size=2
    )
    return hub.Gemma3Backbone(**GEMMA, image_size=16, vision_encoder=encoder)


def gemma4_with_images() -> keras.Model:
    from keras_hub.src.models.gemma4.gemma4_vision_encoder import Gemma4VisionEncoder

    encoder = Gemma4VisionEncoder(
        **SIZE, image_size=16, patch_size=4, num_heads=2, head_dim=16, output_dim=32, pool_size=2
    )
    return hub.Gemma4Backbone(**GEMMA, image_size=16, vision_encoder=encoder)


def gemma3n() -> keras.Model:
    return hub.Gemma3nBackbone(
        text_vocab_size=VOCABULARY,
        text_hidden_size=32,
        num_hidden_layers=2,
        pad_token_id=0,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=[64, 64],
        hidden_activation="gelu_approximate",
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=4,
        rope_theta=10000.0,
        max_position_embeddings=LENGTH,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        altup_num_inputs=2,
        laurel_rank=4,
    )


def parseq() -> keras.Model:
    encoder = hub.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=(8, 8),
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=64,
        use_class_token=False,
    )
    return hub.PARSeqBackbone(
        image_encoder=encoder,
        vocabulary_size=VOCABULARY,
        max_label_length=LENGTH,
        decoder_hidden_dim=32,
        num_decoder_layers=2,
        num_decoder_heads=4,
        decoder_mlp_dim=64,
    )


def smollm3() -> keras.Model:
    return hub.SmolLM3Backbone(
        **TEXT,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=False,
        attention_dropout=0.0,
        rope_layer_enabled_list=[True, False],
        layer_types=["attention"] * 2,
        mlp_bias=False,
        layer_norm_epsilon=1e-5,
        max_position_embeddings=LENGTH,
        rope_theta=10000.0,
        partial_rotary_factor=1.0,
    )


MOE = dict(**EXPERTS, moe_intermediate_dim=32)
ELECTRA = {k: v for k, v in HEADS.items() if k != "vocabulary_size"}

BACKBONES: dict[str, Callable[[], keras.Model]] = {
    # Decoders of texts.
    "gpt2": partial(hub.GPT2Backbone, **HEADS),
    "opt": partial(hub.OPTBackbone, **HEADS),
    "bloom": partial(hub.BloomBackbone, **HEADS),
    "gpt_neo_x": partial(hub.GPTNeoXBackbone, **HEADS),
    "falcon": partial(hub.FalconBackbone, **TEXT, num_attention_heads=4),
    "llama": partial(hub.LlamaBackbone, **GROUPED),
    "llama_tied": partial(hub.LlamaBackbone, **GROUPED, tie_word_embeddings=True),
    "llama3": partial(hub.Llama3Backbone, **GROUPED),
    "mistral": partial(hub.MistralBackbone, **GROUPED),
    "phi3": partial(hub.Phi3Backbone, **GROUPED),
    "smollm3": smollm3,
    "qwen": partial(hub.QwenBackbone, **GROUPED),
    "qwen3": partial(hub.Qwen3Backbone, **GEMMA),
    "qwen3_5": partial(hub.Qwen3_5Backbone, **GEMMA, **LINEAR),
    "gemma": partial(hub.GemmaBackbone, **GEMMA),
    "gemma2": partial(
        hub.GemmaBackbone,
        **GEMMA,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        attention_logit_soft_cap=50.0,
        final_logit_soft_cap=30.0,
        use_sliding_window_attention=True,
        sliding_window_size=8,
    ),
    "gemma3_text": partial(hub.Gemma3Backbone, **GEMMA, image_size=16),
    "gemma3n_text": gemma3n,
    "gemma4_text": partial(hub.Gemma4Backbone, **GEMMA, image_size=16),
    "rwkv7": partial(
        hub.RWKV7Backbone,
        hidden_size=32,
        head_size=8,
        num_layers=2,
        vocabulary_size=VOCABULARY,
        intermediate_dim=64,
        gate_lora=8,
        mv_lora=8,
        aaa_lora=8,
        decay_lora=8,
    ),
    # Mixtures of experts.
    "mixtral": partial(hub.MixtralBackbone, **GROUPED, **EXPERTS),
    "gpt_oss": partial(hub.GptOssBackbone, **GROUPED, **EXPERTS),
    "qwen_moe": partial(hub.QwenMoeBackbone, **GROUPED, **MOE, shared_expert_intermediate_dim=64),
    "qwen3_moe": partial(hub.Qwen3MoeBackbone, **GEMMA, **MOE),
    "qwen3_5_moe": partial(
        hub.Qwen3_5MoeBackbone,
        **{k: v for k, v in GEMMA.items() if k != "intermediate_dim"},
        **MOE,
        **LINEAR,
        shared_expert_intermediate_size=64,
    ),
    # Encoders of texts.
    "bert": partial(hub.BertBackbone, **HEADS),
    "roberta": partial(hub.RobertaBackbone, **HEADS),
    "xlm_roberta": partial(hub.XLMRobertaBackbone, **HEADS),
    "distil_bert": partial(hub.DistilBertBackbone, **HEADS),
    "albert": partial(hub.AlbertBackbone, **HEADS, embedding_dim=16),
    "electra": partial(hub.ElectraBackbone, **ELECTRA, embedding_dim=16, vocab_size=VOCABULARY),
    "deberta_v3": partial(hub.DebertaV3Backbone, **HEADS, bucket_size=8),
    "f_net": partial(hub.FNetBackbone, **TEXT),
    "roformer_v2": partial(hub.RoformerV2Backbone, **HEADS, head_size=8),
    "esm2": partial(hub.ESM2Backbone, **HEADS),
    "xlnet": partial(hub.XLNetBackbone, **HEADS),
    # Encoder and decoder of texts.
    "bart": partial(hub.BartBackbone, **HEADS),
    "t5": partial(hub.T5Backbone, **HEADS),
    "t5gemma": partial(
        hub.T5GemmaBackbone, **T5_GEMMA, vocabulary_size=VOCABULARY, sliding_window=8
    ),
    "t5gemma2": partial(
        hub.T5Gemma2Backbone, **T5_GEMMA, vocabulary_size=VOCABULARY, sliding_window=8
    ),
    "edrec": partial(
        hub.EdRecBackbone,
        vocab_size=VOCABULARY,
        num_layers_enc=2,
        num_layers_dec=2,
        hidden_dim=32,
        intermediate_dim=64,
        num_heads=4,
    ),
    # Audio.
    "whisper": partial(
        hub.WhisperBackbone,
        **HEADS,
        num_mels=8,
        max_encoder_sequence_length=2 * LENGTH,
        max_decoder_sequence_length=LENGTH,
    ),
    "moonshine": partial(
        hub.MoonshineBackbone,
        vocabulary_size=VOCABULARY,
        filter_dim=32,
        encoder_num_layers=2,
        decoder_num_layers=2,
        hidden_dim=32,
        intermediate_dim=64,
        encoder_num_heads=4,
        decoder_num_heads=4,
    ),
    # Images and texts.
    "clip": partial(two_towers, "CLIP", projection_dim=16),
    "siglip": partial(two_towers, "SigLIP"),
    "metaclip_2": partial(two_towers, "MetaCLIP2", projection_dim=16),
    "pali_gemma": partial(
        hub.PaliGemmaBackbone,
        **GEMMA,
        image_size=16,
        vit_patch_size=4,
        vit_num_heads=4,
        vit_hidden_dim=32,
        vit_num_layers=2,
        vit_intermediate_dim=64,
    ),
    "gemma3": gemma3_with_images,
    "gemma4": gemma4_with_images,
    "parseq": parseq,
    "video_prism": partial(
        hub.VideoPrismBackbone,
        num_frames=2,
        patch_size=8,
        hidden_dim=32,
        intermediate_dim=64,
        num_heads=4,
        num_spatial_layers=2,
        num_temporal_layers=2,
        num_auxiliary_layers=1,
        vocabulary_size=VOCABULARY,
        num_text_layers=2,
        image_shape=(16, 16, 3),
    ),
}

# Shapes of what is no row of tokens, where the model leaves them open, by the name of the input.
SHAPES = {
    "encoder_features": (2 * LENGTH, 8),
    "encoder_input_values": (1280, 1),
    "images": (1, 16, 16, 3),
    "pixel_values": (1, 16, 48),
    "pixel_position_ids": (1, 16, 2),
    "vision_indices": (4,),
}


def with_head(backbone: keras.Model, name: str) -> keras.Model:
    """A model with ten logits for each token, or with what the backbone gives for pairs."""
    outputs = backbone.output
    if isinstance(outputs, dict):
        given = [outputs.get(key) for key in ("decoder_sequence_output", "sequence_output")]
        outputs = next((x for x in given if x is not None), list(outputs.values()))
    if not isinstance(outputs, list):
        outputs = keras.layers.Dense(10, name="logits_of_tokens")(outputs)
    return keras.Model(backbone.input, outputs, name=name)


def samples(model: keras.Model) -> dict[str, np.ndarray]:
    """Random tokens, padding at the end of half the samples, images and sounds."""
    rng = np.random.default_rng(0)
    names = [tensor.name for tensor in keras.tree.flatten(model.input)]

    def drawn(tensor) -> np.ndarray:
        shape, name = tuple(tensor.shape[1:]), tensor.name
        if None in shape:
            shape = SHAPES.get(name, (LENGTH,) * len(shape))
        if name == "encoder_padding_mask" and "encoder_input_values" in names:
            shape = SHAPES["encoder_input_values"][:1]
        shape = (SAMPLES, *shape)
        if "mask" in name and "vision" not in name:
            values = np.ones(shape)
            values[: SAMPLES // 2, -LENGTH // 4 :] = 0
        elif any(part in name for part in ("position_ids", "indices", "segment", "mask")):
            values = np.zeros(shape)
        elif "token" in name:
            values = rng.integers(1, VOCABULARY, shape)
        else:
            values = rng.normal(size=shape)
        return values.astype(keras.backend.standardize_dtype(tensor.dtype))

    return keras.tree.map_structure(drawn, model.input)


def held(channel_map: kn.ChannelMap) -> list[str]:
    """What holds channels, besides that they are outputs: what holds the most of them first."""
    counts = collections.Counter(
        reason
        for creator in channel_map.creators
        for unit in creator.units.tolist()
        for reason in channel_map.reasons.get(unit, ())
        if not reason.startswith("model output")
    )
    return [reason for reason, _ in counts.most_common(MOST_HELD)]


def check(name: str, verbose: bool = False) -> dict:
    """Prunes one backbone; its errors are part of the result."""
    keras.utils.set_random_seed(0)
    row: dict = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.process_time()
        try:
            _prune(name, row, verbose)
        except Exception as error:  # a benchmark of what fails, too
            said = " ".join(str(error).split("Arguments received by")[0].split())[:300]
            row["error"] = f"{row['doing']}: {type(error).__name__}: {said}"
            if verbose:
                traceback.print_exc()
        row["cpu_seconds"] = round(time.process_time() - started, 1)
    del row["doing"]
    held = [str(w.message) for w in caught if issubclass(w.category, kn.UnknownLayerWarning)]
    row["without_rule"] = sorted({k for text in held for k in re.findall(r"' \((\w+)\)", text)})
    if verbose:
        print(*dict.fromkeys(str(w.message) for w in caught), sep="\n")
    keras.backend.clear_session()
    return row


def _prune(name: str, row: dict, verbose: bool) -> None:
    row["doing"] = "build"
    model = with_head(BACKBONES[name](), name)
    data = samples(model)
    model(data)
    row["doing"] = "as_functional"
    shapes = [tuple(x.shape[1:]) for x in keras.tree.flatten(data)]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        graph = kn.as_functional(model, input_shape=shapes if len(shapes) > 1 else shapes[0])
        row["kept"] = re.findall(r"^  ('.*)$", said.getvalue(), re.MULTILINE)
        row["held"] = held(kn.trace(graph, shapes if len(shapes) > 1 else shapes[0]))
        row["doing"] = "prune"
        small = kn.prune(graph, kn.Magnitude(), ratio=0.5, calibration=data, compensate=None)
    text = said.getvalue()
    if verbose:
        print(text)
    found = re.search(r"verified: outputs differ by (\S+)", text)
    row["difference"] = float(found.group(1)) if found else None
    row["parameters"] = [model.count_params(), small.count_params()]
    row["left"] = round(small.count_params() / model.count_params(), 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", metavar="NAME", help="without keeping the results")
    args = parser.parse_args()
    if args.models:
        for name in args.models:
            print({"model": name, **check(name, verbose=True)}, flush=True)
        return
    rows = Rows("keras_hub_language", args)
    for name in BACKBONES:
        rows.once({"model": name}, check, name)


if __name__ == "__main__":
    main()
