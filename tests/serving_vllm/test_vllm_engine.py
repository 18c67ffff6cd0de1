"""The plugin in vLLM's engine against our own engine; scripts/test_vllm.sh runs it, skipped where there is no vLLM."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import tiny_text_config, tiny_tokenizer, tiny_vision_config
from transformers import LlavaConfig
from vllm_models import (
    BOXES,
    IMAGE,
    MASKS,
    NUM_TOKENS,
    QUESTION,
    own_tokens,
    save,
    tiny_chat,
    vllm_prompts,
    vllm_tokens,
)
from vllm_servers import message

from gpt4roi import RegionChat
from gpt4roi.errors import InputError
from gpt4roi.serving.vllm.items import RegionItem

pytest.importorskip("vllm")
QUICKSTART = Path(os.environ.get("GPT4ROI_QUICKSTART", "exp/quickstart"))


def open_llm(folder: str, **options):
    from vllm import LLM

    settings = {"tokenizer_mode": "gpt4roi", "dtype": "float32", "block_size": 32, "seed": 0, "enforce_eager": True}
    return LLM(folder, **{"max_model_len": 1024, **settings, **options})


@pytest.fixture
def opened(tmp_path):
    """Opens models, one engine at a time."""
    engines = []

    def start(chat: RegionChat, **options):
        engines.append(open_llm(save(chat, tmp_path), **options))
        return engines[-1]

    yield start
    engines.clear()
    gc.collect()


def test_tokens_of_the_papers_encoder_are_equal_and_the_image_is_cached_without_its_boxes(opened):
    chat = tiny_chat("clip")
    llm, prompts = opened(chat), vllm_prompts(chat, IMAGE, BOXES)
    expected = own_tokens(chat, IMAGE, BOXES)
    assert len({tuple(tokens) for tokens in expected}) == len(BOXES)
    found, cached = vllm_tokens(llm, prompts)
    assert found == expected
    assert cached[1:] == [64] * 4  # of 97: the image, and what stands before the region
    assert vllm_tokens(llm, prompts[:1])[1] == [96]


def test_tokens_of_the_light_encoder_are_equal_with_several_tokens_a_region(opened):
    chat = tiny_chat("pyramid", tokens_per_region=3)
    assert vllm_tokens(opened(chat), vllm_prompts(chat, IMAGE, BOXES))[0] == own_tokens(chat, IMAGE, BOXES)


@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_tokens_about_masks_are_equal_and_another_mask_of_the_same_box_is_another_region(opened, kind):
    from vllm import SamplingParams as VllmParams

    chat = tiny_chat(kind, tokens_per_region=2, region_shape="mask")
    llm, expected = opened(chat), own_tokens(chat, IMAGE, MASKS)
    assert len({tuple(tokens) for tokens in expected}) == len(MASKS)
    alone = [vllm_tokens(llm, vllm_prompts(chat, IMAGE, [mask]))[0][0] for mask in MASKS[:3]]
    assert alone == expected[:3]  # one after the other: left half, right half and all of a box
    found, cached = vllm_tokens(llm, vllm_prompts(chat, IMAGE, MASKS))
    assert found == expected
    assert min(cached[:3]) >= max(cached[3:]) > 0  # what was asked before, and the image alone
    greedy = VllmParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    asked = {"sampling_params": greedy, "use_tqdm": False}
    talks = [llm.chat([message(QUESTION)], **asked, chat_template_kwargs={"boxes": [mask]}) for mask in MASKS]
    assert [list(one[0].outputs[0].token_ids) for one in talks] == expected


def test_without_the_mask_in_its_digest_a_region_gets_the_answer_of_another(opened, monkeypatch):
    chat = tiny_chat("clip", region_shape="mask")
    llm, expected = opened(chat), own_tokens(chat, IMAGE, MASKS[:2])
    digest = RegionItem.digest.func
    boxed = property(lambda item: digest(RegionItem(item.image, {"boxes": item.fields["boxes"]})))
    monkeypatch.setattr(RegionItem, "digest", boxed)
    found = [vllm_tokens(llm, vllm_prompts(chat, IMAGE, [mask]))[0][0] for mask in MASKS[:2]]
    assert found == [expected[0], expected[0]] != expected


def test_without_the_box_in_its_digest_a_region_gets_the_answer_of_another(opened, monkeypatch):
    chat = tiny_chat("clip")
    llm, expected = opened(chat), own_tokens(chat, IMAGE, BOXES)
    monkeypatch.setattr(RegionItem, "digest", property(lambda item: item.image.digest))
    first = vllm_tokens(llm, vllm_prompts(chat, IMAGE, BOXES[:1]))[0]
    second = vllm_tokens(llm, vllm_prompts(chat, IMAGE, BOXES[1:2]))[0]
    assert first == [expected[0]] == second
    assert second != [expected[1]]


def test_tokens_are_equal_in_two_processes_of_tensor_parallelism(opened, monkeypatch):
    # By itself, vLLM wants a NUMA node for each process on a CPU.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    chat = tiny_chat("clip")
    llm = opened(chat, tensor_parallel_size=2)
    assert vllm_tokens(llm, vllm_prompts(chat, IMAGE, BOXES))[0] == own_tokens(chat, IMAGE, BOXES)


def test_tokens_with_a_lora_adapter_are_those_of_the_merged_model(opened, tmp_path):
    from vllm.lora.request import LoRARequest

    chat, draw = tiny_chat("clip"), torch.Generator().manual_seed(0)
    llm, prompts = opened(chat, enable_lora=True, max_lora_rank=8), vllm_prompts(chat, IMAGE, BOXES)
    tensors = {}
    for name, layer in chat.model.named_modules():
        if name.endswith(("q_proj", "down_proj")) and name.startswith("language_model"):
            first = 0.2 * torch.randn(4, layer.in_features, generator=draw)
            second = 0.2 * torch.randn(layer.out_features, 4, generator=draw)
            tensors |= {
                f"base_model.model.{name}.lora_A.weight": first,
                f"base_model.model.{name}.lora_B.weight": second,
            }
            layer.weight.data += 2 * second @ first
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    found, _ = vllm_tokens(llm, prompts, lora_request=LoRARequest("adapter", 1, str(adapter)))
    assert found == own_tokens(chat, IMAGE, BOXES)
    assert found != vllm_tokens(llm, prompts)[0]


def test_a_start_without_the_tokenizer_mode_says_which_one_is_needed(tmp_path, capfd):
    with pytest.raises(Exception, match=r"tokenizer|Engine core"):
        open_llm(save(tiny_chat("clip"), tmp_path), tokenizer_mode="auto")
    assert "its prompts are written by its own processor; add --tokenizer-mode gpt4roi" in "".join(capfd.readouterr())


def test_regions_on_another_base_are_refused_with_the_way_that_serves_them(tmp_path):
    config = LlavaConfig(vision_config=tiny_vision_config(), text_config=tiny_text_config())
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not on a base of model_type 'llava'; use gpt4roi serve"):
        open_llm(str(tmp_path))


@pytest.mark.skipif(not (QUICKSTART / "stage2/config.json").is_file(), reason=f"no model in {QUICKSTART}/stage2")
def test_tokens_of_the_quickstarts_model_are_equal():
    folder = QUICKSTART / "stage2"
    chat = RegionChat.from_pretrained(folder, device="cpu", dtype=torch.float32)
    lines = (QUICKSTART / "data/test.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    scenes = [json.loads(line) for line in lines]
    expected, prompts = [], []
    for scene in scenes:
        image = Image.open(QUICKSTART / "data" / scene["image"]).convert("RGB")
        expected += own_tokens(chat, image, scene["boxes"])
        prompts += vllm_prompts(chat, image, scene["boxes"])
    found, _ = vllm_tokens(open_llm(str(folder)), prompts)
    assert len(found) >= 8 and {len(tokens) for tokens in found} == {NUM_TOKENS}
    assert found == expected
