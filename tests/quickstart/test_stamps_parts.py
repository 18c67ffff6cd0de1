"""The model parts come out as ordinary folders with exactly the weights that went in."""

import json

import gguf
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TimmBackbone, TimmBackboneConfig

from gpt4roi.errors import InputError
from quickstart import parts

WIDTH, HEADS, KV_HEADS, INNER, LAYERS = 64, 4, 2, 96, 2
TOY = "test_efficientnet"
"""timm's smallest efficientnet: the same feature pyramid with 0.36 M parameters."""


def toy_vocabulary():
    """Returns the tokens and merges of a byte-level tokenizer with three control tokens and one merged word."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "ca", "cat"]
    return tokens, ["c a", "ca t"]


def rope_rows_of_gguf(weight, heads):
    """Interleaves the two halves of every head's rows, as the file format stores queries and keys."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def write_toy_gguf(path):
    """Writes a two-layer LLaMA and returns its weights as an ordinary folder must hold them."""
    rng = np.random.default_rng(0)
    tokens, merges = toy_vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    expected = {}

    def add(theirs, ours, shape, heads=0, quantised=False):
        weight = rng.normal(size=shape).astype(np.float32)
        stored = rope_rows_of_gguf(weight, heads) if heads else weight
        if quantised:
            blocks = gguf.quantize(stored, gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(theirs, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
            weight = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(theirs, stored)
        expected[ours] = torch.from_numpy(weight.copy())

    add("token_embd.weight", "model.embed_tokens.weight", (len(tokens), WIDTH), quantised=True)
    add("output_norm.weight", "model.norm.weight", (WIDTH,))
    for layer in range(LAYERS):
        b, m = f"blk.{layer}", f"model.layers.{layer}"
        kv = WIDTH // HEADS * KV_HEADS
        add(f"{b}.attn_norm.weight", f"{m}.input_layernorm.weight", (WIDTH,))
        add(f"{b}.ffn_norm.weight", f"{m}.post_attention_layernorm.weight", (WIDTH,))
        add(f"{b}.attn_q.weight", f"{m}.self_attn.q_proj.weight", (WIDTH, WIDTH), heads=HEADS)
        add(f"{b}.attn_k.weight", f"{m}.self_attn.k_proj.weight", (kv, WIDTH), heads=KV_HEADS)
        add(f"{b}.attn_v.weight", f"{m}.self_attn.v_proj.weight", (kv, WIDTH), quantised=True)
        add(f"{b}.attn_output.weight", f"{m}.self_attn.o_proj.weight", (WIDTH, WIDTH), quantised=True)
        add(f"{b}.ffn_gate.weight", f"{m}.mlp.gate_proj.weight", (INNER, WIDTH))
        add(f"{b}.ffn_up.weight", f"{m}.mlp.up_proj.weight", (INNER, WIDTH))
        add(f"{b}.ffn_down.weight", f"{m}.mlp.down_proj.weight", (WIDTH, INNER))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language_model")
    expected = write_toy_gguf(folder / "toy.gguf")
    parts.convert_language_model(folder / "toy.gguf", folder / "out")
    return folder / "out", expected


def test_every_weight_of_the_language_model_is_the_files_own_bit_for_bit(converted):
    folder, expected = converted
    written = load_file(folder / "model.safetensors")
    assert set(written) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(written[name], weight.to(torch.bfloat16)), name


def test_the_language_model_opens_as_an_ordinary_folder_without_quantisation(converted):
    folder, _ = converted
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.dtype == torch.bfloat16 and getattr(model.config, "quantization_config", None) is None
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_the_tokenizer_is_saved_with_its_control_tokens_and_chat_template(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "cat"}], return_dict=True)["input_ids"]
    assert ids[0] == 1 and ids[-2] == 2
    assert tokenizer.convert_ids_to_tokens(ids)[-3] == "cat"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)


def test_a_language_model_that_answers_nonsense_is_refused(converted):
    with pytest.raises(InputError, match=r"expected 'Paris' in it: its conversion went wrong"):
        parts.check_language_model(converted[0])


@pytest.fixture(scope="module")
def foreign_weights(tmp_path_factory):
    """A checkpoint with the classifier's tensors, in order, under other names."""
    torch.manual_seed(0)
    state = timm.create_model(TOY, pretrained=False).state_dict()
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save({f"_their.{i}": tensor for i, tensor in enumerate(state.values())}, path)
    return path


def test_weights_are_mapped_by_order_and_shape(foreign_weights):
    theirs = torch.load(foreign_weights, weights_only=True)
    ours = parts.load_classifier(foreign_weights, TOY).state_dict()
    assert all(torch.equal(a, b) for a, b in zip(theirs.values(), ours.values(), strict=True))


def test_weights_of_another_model_are_refused_by_number_and_by_shape(foreign_weights, tmp_path):
    theirs = torch.load(foreign_weights, weights_only=True)
    first, *rest = theirs.items()
    torch.save(dict(rest), tmp_path / "few.pth")
    with pytest.raises(InputError, match=r"few\.pth has 87 tensors, test_efficientnet has 88"):
        parts.load_classifier(tmp_path / "few.pth", TOY)
    torch.save({first[0]: first[1][:1], **dict(rest)}, tmp_path / "shape.pth")
    with pytest.raises(InputError, match=r"_their\.0 in shape\.pth is \(1, 3, 3, 3\), expected"):
        parts.load_classifier(tmp_path / "shape.pth", TOY)


def test_the_vision_tower_opens_as_a_backbone_and_gives_the_classifiers_own_maps(foreign_weights, tmp_path):
    classifier = parts.load_classifier(foreign_weights, TOY)
    parts.save_vision_tower(classifier, tmp_path, TOY)
    tower = TimmBackbone(TimmBackboneConfig.from_pretrained(tmp_path)).eval()
    tower.load_state_dict(load_file(tmp_path / "model.safetensors"))
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = tower(pixels).feature_maps
        _, expected = classifier.forward_intermediates(pixels)
    assert [tuple(m.shape[-2:]) for m in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    for found, known in zip(maps, expected[1:], strict=True):
        assert torch.equal(found, known)


def test_the_preprocessing_is_exactly_x_minus_127_over_128(foreign_weights, tmp_path):
    parts.save_vision_tower(parts.load_classifier(foreign_weights, TOY), tmp_path, TOY)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    values = np.arange(256)
    scaled = (values * saved["rescale_factor"] - saved["image_mean"][0]) / saved["image_std"][0]
    assert np.allclose(scaled, (values - 127) / 128, atol=1e-12)
    assert saved["size"] == {"height": 256, "width": 256}


def test_a_tower_that_does_not_know_the_known_classes_is_refused(foreign_weights, tmp_path):
    Image.effect_noise((60, 40), 50).save(tmp_path / "cat.png")
    classifier = parts.load_classifier(foreign_weights, TOY)
    found = parts.classify(classifier, Image.open(tmp_path / "cat.png").convert("RGB"))
    assert parts.check_classes(classifier, tmp_path, {"cat": found}) == {"cat": found}
    with pytest.raises(InputError, match=r"expected \{'cat': \d+\}: its conversion went wrong"):
        parts.check_classes(classifier, tmp_path, {"cat": (found + 1) % 1000})
