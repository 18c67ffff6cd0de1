"""Tiny random models of many families of vision-language models, with processors built from nothing."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gpt4roi.models.vlm_base import add_regions
from gpt4roi.processing.vlm_processor import RegionProcessor

T: Any = transformers

DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
SQUARE = {"height": 56, "width": 56}
PINPOINTS = [[56, 112], [112, 56], [112, 112], [56, 168]]
SPARE_ROWS = 24
"""Rows of the table that no token has yet, as the tables of released models have them."""


def _tokenizer(tokens: list[str], named: dict[str, str] | None = None) -> Any:
    """One token for each byte, and special ones; the chat template follows when the processor is there."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = T.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left",
        extra_special_tokens=named or {},
    )  # fmt: skip
    tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer


def _text(tokenizer: Any, **extra: Any) -> dict[str, Any]:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    return DECODER | {"vocab_size": len(tokenizer) + SPARE_ROWS, "max_position_embeddings": 4096} | ids | extra


def _rope(section: list[int], **extra: Any) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": section, "rope_theta": 1e4, **extra}


def _clip_processor() -> Any:
    return T.LlavaImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE)


def _llava(tower: Any, image_processor: Any, cls: Any = "Llava", mark: str = "<image>", **config: Any) -> tuple:
    tokenizer = _tokenizer([mark, "[IMG_BREAK]", "[IMG_END]"])
    text = T.LlamaConfig(**_text(tokenizer))
    built = getattr(T, f"{cls}Config")(
        vision_config=tower, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(mark), **config
    )
    model = getattr(T, f"{cls}ForConditionalGeneration")(built)
    return model, tokenizer, image_processor


def llava(image_processor: Any = None) -> tuple:
    tower = T.CLIPVisionConfig(**TOWER, image_size=56, patch_size=14)
    model, tokenizer, images = _llava(tower, image_processor or _clip_processor())
    options = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return model, T.LlavaProcessor(images, tokenizer, patch_size=14, **options)


def llava_padded() -> tuple:
    return llava(T.LlavaImageProcessor(size=SQUARE, do_center_crop=False, do_pad=True))


def vipllava() -> tuple:
    tower = T.CLIPVisionConfig(**TOWER, image_size=56, patch_size=14)
    model, tokenizer, images = _llava(tower, _clip_processor(), "VipLlava", vision_feature_layers=[-2, -3])
    options = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return model, T.LlavaProcessor(images, tokenizer, patch_size=14, **options)


def _pixtral_parts() -> tuple:
    tower = T.PixtralVisionConfig(**TOWER, head_dim=8, image_size=112, patch_size=14)
    return tower, T.PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14})


def llava_pixtral() -> tuple:
    config = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    model, tokenizer, images = _llava(*_pixtral_parts(), mark="[IMG]", **config)
    return model, T.PixtralProcessor(images, tokenizer, patch_size=14)


def mistral3() -> tuple:
    model, tokenizer, images = _llava(*_pixtral_parts(), "Mistral3", mark="[IMG]", spatial_merge_size=2)
    return model, T.PixtralProcessor(images, tokenizer, patch_size=14, spatial_merge_size=2)


def llava_next() -> tuple:
    tower = T.CLIPVisionConfig(**TOWER, image_size=56, patch_size=14)
    images = T.LlavaNextImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS)
    model, tokenizer, images = _llava(tower, images, "LlavaNext", image_grid_pinpoints=PINPOINTS)
    options = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return model, T.LlavaNextProcessor(images, tokenizer, patch_size=14, **options)


def llava_onevision(side: int = 56) -> tuple:
    tokenizer = _tokenizer(["<image>", "<video>"])
    ids = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    pinpoints = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [side, 3 * side]]
    tower = T.SiglipVisionConfig(**TOWER, image_size=side, patch_size=14, vision_use_head=False)
    config = T.LlavaOnevisionConfig(
        vision_config=tower, text_config=T.Qwen2Config(**_text(tokenizer)), image_token_index=ids[0],
        video_token_index=ids[1], image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    images = T.LlavaOnevisionImageProcessor(size={"height": side, "width": side}, image_grid_pinpoints=pinpoints)
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    processor = T.LlavaOnevisionProcessor(images, tokenizer, T.LlavaOnevisionVideoProcessor(), **options)
    return T.LlavaOnevisionForConditionalGeneration(config), processor


def llava_onevision_odd() -> tuple:
    """A side that is no whole number of patches, as SigLIP's 384 / 14."""
    return llava_onevision(66)


QWEN_TOKENS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
QWEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def _qwen(kind: str, vision: dict[str, Any], patch: int = 14, processor: str | None = None, **text: Any) -> tuple:
    tokenizer = _tokenizer(QWEN_TOKENS)
    ids = dict(zip(QWEN_IDS, tokenizer.convert_tokens_to_ids(QWEN_TOKENS), strict=True))
    vision = {"depth": 4, "hidden_size": 32, "num_heads": 4} | vision
    config = getattr(T, f"{kind}Config")(text_config=_text(tokenizer, **text), vision_config=vision, **ids)
    area = (2 * patch) ** 2
    images = T.Qwen2VLImageProcessor(size={"shortest_edge": 4 * area, "longest_edge": 16 * area}, patch_size=patch)
    name = processor or kind
    video = T.Qwen3VLVideoProcessor() if name == "Qwen3VL" else T.Qwen2VLVideoProcessor()
    built = getattr(T, f"{name}Processor")(images, tokenizer, video)
    return getattr(T, f"{kind}ForConditionalGeneration")(config), built


def qwen2_vl() -> tuple:
    return _qwen("Qwen2VL", {"embed_dim": 32}, rope_parameters=_rope([1, 1, 2]))


def qwen2_5_vl() -> tuple:
    windows = {"fullatt_block_indexes": [1, 3], "window_size": 56, "out_hidden_size": 32, "intermediate_size": 48}
    return _qwen("Qwen2_5_VL", windows, rope_parameters=_rope([1, 1, 2]))


def qwen2_5_vl_wide() -> tuple:
    """The same with layers that 4-bit kernels take: their inputs are multiples of a block of 64."""
    widths = {"hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 64}
    windows = {"fullatt_block_indexes": [1, 3], "window_size": 56, **widths}
    decoder = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    return _qwen("Qwen2_5_VL", windows, rope_parameters=_rope([2, 3, 3]), **decoder)


QWEN3_VISION = {
    "out_hidden_size": 32, "intermediate_size": 48, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
}  # fmt: skip


def qwen3_vl() -> tuple:
    return _qwen("Qwen3VL", QWEN3_VISION, 16, rope_parameters=_rope([2, 1, 1], mrope_interleaved=True))


def qwen3_vl_moe() -> tuple:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    rope = _rope([2, 1, 1], mrope_interleaved=True)
    return _qwen("Qwen3VLMoe", QWEN3_VISION, 16, "Qwen3VL", rope_parameters=rope, **experts)


def glm4v() -> tuple:
    names = ["image", "video", "begin_of_image", "end_of_image", "begin_of_video", "end_of_video"]
    tokenizer = _tokenizer([f"<|{name}|>" for name in names])
    ids = tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])
    fields = ("image", "video", "image_start", "image_end", "video_start", "video_end")
    vision = {"depth": 4, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 4}
    config = T.Glm4vConfig(
        text_config=_text(tokenizer, rope_parameters=_rope([1, 1, 2], partial_rotary_factor=1.0)),
        vision_config=vision | {"image_size": 112, "patch_size": 14},
        **{f"{field}_token_id": number for field, number in zip(fields, ids, strict=True)},
    )
    images = T.Glm4vImageProcessor(size={"shortest_edge": 3136, "longest_edge": 16 * 784})
    return T.Glm4vForConditionalGeneration(config), T.Glm4vProcessor(images, tokenizer, T.Glm4vVideoProcessor())


IDEFICS_TOKENS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]


def _idefics3(kind: str, processor: Callable[[Any], Any]) -> tuple:
    tokenizer = _tokenizer([*IDEFICS_TOKENS, *[f"<row_{y}_col_{x}>" for y in range(1, 5) for x in range(1, 5)]])
    config = getattr(T, f"{kind}Config")(
        vision_config=TOWER | {"image_size": 56, "patch_size": 14}, text_config=T.LlamaConfig(**_text(tokenizer)),
        scale_factor=2, image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    sizes = {"size": {"longest_edge": 168}, "max_image_size": {"longest_edge": 56}}
    images = getattr(T, f"{kind}ImageProcessor")(**sizes)
    return getattr(T, f"{kind}ForConditionalGeneration")(config), processor((images, tokenizer))


def idefics3() -> tuple:
    return _idefics3("Idefics3", lambda parts: T.Idefics3Processor(*parts, image_seq_len=4))


def smolvlm() -> tuple:
    import transformers.models.smolvlm.processing_smolvlm as module

    module.num2words = module.num2words or str  # it is asked for videos only, and is no dependency of ours
    return _idefics3("SmolVLM", lambda parts: T.SmolVLMProcessor(*parts, T.SmolVLMVideoProcessor(), image_seq_len=4))


def smolvlm_whole() -> tuple:
    model, processor = smolvlm()
    processor.image_processor.do_image_splitting = False
    return model, processor


def idefics2() -> tuple:
    tokenizer = _tokenizer(IDEFICS_TOKENS)
    perceiver = {
        "hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4,
        "num_key_value_heads": 2, "resampler_head_dim": 8,
    }  # fmt: skip
    config = T.Idefics2Config(
        vision_config=TOWER | {"image_size": 112, "patch_size": 14}, perceiver_config=perceiver,
        text_config=T.MistralConfig(**_text(tokenizer)), image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = T.Idefics2ImageProcessor(size={"shortest_edge": 56, "longest_edge": 112}, do_image_splitting=False)
    return T.Idefics2ForConditionalGeneration(config), T.Idefics2Processor(images, tokenizer, image_seq_len=4)


def internvl() -> tuple:
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = _tokenizer([*named.values()], named)
    config = T.InternVLConfig(
        vision_config=TOWER | {"image_size": [56, 56], "patch_size": [14, 14]}, image_seq_length=4,
        text_config=T.Qwen2Config(**_text(tokenizer)), image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )  # fmt: skip
    images = T.GotOcr2ImageProcessor(size=SQUARE, max_patches=6)
    processor = T.InternVLProcessor(images, tokenizer, T.InternVLVideoProcessor(), image_seq_length=4)
    return T.InternVLForConditionalGeneration(config), processor


def _siglip(**extra: Any) -> dict[str, Any]:
    return TOWER | {"image_size": 56, "patch_size": 14, "vision_use_head": False} | extra


def gemma3() -> tuple:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer([*named.values()], named)
    text = {"query_pre_attn_scalar": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    config = T.Gemma3Config(
        text_config=_text(tokenizer, **text), vision_config=_siglip(), mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    processor = T.Gemma3Processor(T.Gemma3ImageProcessor(size=SQUARE), tokenizer, image_seq_length=4)
    return T.Gemma3ForConditionalGeneration(config), processor


def paligemma() -> tuple:
    tokenizer = _tokenizer(["<image>"], {"image_token": "<image>"})
    images = T.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 16
    processor = T.PaliGemmaProcessor(images, tokenizer)  # which adds a thousand tokens of places
    config = T.PaliGemmaConfig(
        vision_config=_siglip(model_type="siglip_vision_model", projection_dim=32), projection_dim=32, hidden_size=32,
        text_config=T.GemmaConfig(**_text(tokenizer)), image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    return T.PaliGemmaForConditionalGeneration(config), processor


COHERE_TOKENS = ["<image>", "<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"]


def aya_vision() -> tuple:
    tokenizer = _tokenizer([*COHERE_TOKENS, "TILE", "TILE_GLOBAL"])
    config = T.AyaVisionConfig(
        vision_config=T.SiglipVisionConfig(**_siglip()), text_config=T.Cohere2Config(**_text(tokenizer)),
        downsample_factor=2, image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )  # fmt: skip
    images = T.GotOcr2ImageProcessor(size=SQUARE, max_patches=6, crop_to_patches=True)
    processor = T.AyaVisionProcessor(images, tokenizer, patch_size=14, img_size=56, downsample_factor=2)
    return T.AyaVisionForConditionalGeneration(config), processor


def cohere2_vision() -> tuple:
    named = {
        "image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }  # fmt: skip
    tokenizer = _tokenizer(COHERE_TOKENS, named)
    config = T.Cohere2VisionConfig(
        vision_config=T.SiglipVisionConfig(**_siglip()), text_config=T.Cohere2Config(**_text(tokenizer)),
        downsample_factor=2, alignment_intermediate_size=64,
        image_token_id=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )  # fmt: skip
    images = T.Cohere2VisionImageProcessor(size=SQUARE, max_patches=6, patch_size=2)
    return T.Cohere2VisionForConditionalGeneration(config), T.Cohere2VisionProcessor(images, tokenizer)


BUILDERS: dict[str, Callable[[], tuple]] = {
    build.__name__: build
    for build in (
        llava, llava_padded, vipllava, llava_pixtral, mistral3, llava_next, llava_onevision, llava_onevision_odd,
        qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, glm4v, idefics2, idefics3, smolvlm, smolvlm_whole, internvl,
        gemma3, paligemma, aya_vision, cohere2_vision,
    )
}  # fmt: skip

COMMON = ("llava", "qwen2_5_vl", "smolvlm")
"""Crop, windows of merged patches with M-RoPE, and tiles: what the ordinary suite tries."""


def _chat_template(mark: str) -> str:
    part = f"{{% if part.type == 'image' %}}{mark}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
    return (
        "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
        + part
        + "{% endfor %}{{ '<eos>' }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )


@functools.cache
def _built(name: str) -> tuple:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base, processor = (BUILDERS | {"qwen2_5_vl_wide": qwen2_5_vl_wide})[name]()
        for parameter in base.parameters():
            if parameter.ndim > 1:  # large enough that differences show
                torch.nn.init.normal_(parameter, std=0.2)
        base.tie_weights()
        if name != "paligemma":  # whose released processors have no chat template
            processor.chat_template = _chat_template(processor.image_token)
        regions = RegionProcessor(processor)
        model = add_regions(copy.deepcopy(base), regions.region_token_id).eval()
    return base.eval(), model, regions


def tiny_vlm(name: str) -> SimpleNamespace:
    """Returns a family's base, the same with regions, and their processor; to be left as they are."""
    base, model, processor = _built(name)
    return SimpleNamespace(name=name, base=base, model=model, processor=processor)


def noise_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """Draws coloured blobs."""
    pixels = np.random.default_rng(seed).integers(0, 255, (max(height // 8, 2), max(width // 8, 2), 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
