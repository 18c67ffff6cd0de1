"""Arguments by which generic tools call the model: names, embeddings, assistants, caches, tuples, attention."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_model, tiny_processor, tiny_text_config
from transformers import AutoModelForCausalLM, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from gpt4roi.errors import InputError
from gpt4roi.io import hub
from gpt4roi.models import GPT4RoIForConditionalGeneration as Model
from gpt4roi.models.compat import CACHE
from gpt4roi.structures import RegionSample, Turn

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def inputs(model):
    image = torch.arange(3072, dtype=torch.uint8).reshape(32, 32, 3).numpy()
    sample = RegionSample(image, (Turn("user", "What is <region1>?"),), [[2, 3, 20, 25]])
    return dict(tiny_processor(model.config)([sample], generation=True))


@torch.no_grad()
def logits(model, **inputs):
    return model(**inputs).logits


def without(inputs, *names):
    return {name: value for name, value in inputs.items() if name not in names}


@pytest.mark.heavy
def test_a_folder_is_opened_by_the_name_of_the_argument(model, tmp_path):
    model.save_pretrained(tmp_path)
    for name in ("pretrained_model_name_or_path", "path"):
        again = Model.from_pretrained(**{name: tmp_path})
        assert torch.equal(again.mm_projector.weight, model.mm_projector.weight)


def test_embeddings_of_a_prompt_take_the_images_that_are_given_beside_them(model, inputs):
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    expected = logits(model, **inputs)
    assert torch.equal(logits(model, inputs_embeds=embeddings, **without(inputs, "input_ids")), expected)
    prompts = torch.randn(1, 3, embeddings.shape[2])  # as prompt tuning puts them before
    longer = {
        "attention_mask": torch.ones(1, embeddings.shape[1] + 3),
        **without(inputs, "input_ids", "attention_mask"),
    }
    tuned = logits(model, inputs_embeds=torch.cat([prompts, embeddings], 1), **longer)
    other = {**longer, "boxes": [torch.tensor([[0.0, 0.0, 1.0, 1.0]])]}
    assert not torch.equal(tuned, logits(model, inputs_embeds=torch.cat([prompts, embeddings], 1), **other))
    with pytest.raises(InputError, match="1 <bbox> tokens but 0 boxes"):
        model(inputs_embeds=embeddings, **without(inputs, "input_ids") | {"boxes": [torch.zeros(0, 4)]})
    alike = copy.deepcopy(model)
    with torch.no_grad():
        alike.get_input_embeddings().weight[[model.config.image_token_id, model.config.region_token_id]] = 0.5
    with pytest.raises(InputError, match="cannot be found; give input_ids"):
        alike(inputs_embeds=embeddings, **without(inputs, "input_ids"))


def test_an_answer_to_embeddings_is_that_to_the_ids(model, inputs):
    expected = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        embeddings = model.embed(*(inputs[name] for name in ("input_ids", "pixel_values", "boxes")))[0]
    ours = model.generate(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], **GREEDY)
    assert torch.equal(ours, expected)
    plain = model.get_input_embeddings()(inputs["input_ids"])
    merged = model.generate(inputs_embeds=plain, **without(inputs, "input_ids"), **GREEDY)
    assert torch.equal(merged, expected)


@pytest.mark.parametrize("kind", ["itself", "a text-only decoder"])
def test_an_assistant_does_not_change_the_answer(model, inputs, kind):
    if kind == "itself":
        assistant = copy.deepcopy(model)
    else:
        assistant = AutoModelForCausalLM.from_config(tiny_text_config(num_hidden_layers=1)).eval()
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, assistant_model=assistant), expected)
    assert torch.equal(model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=2), expected)


def test_outputs_come_as_a_tuple_to_those_who_ask(model, inputs):
    whole = model(**inputs)
    parts = model(**inputs, return_dict=False)
    assert type(parts) is tuple and len(parts) == len(whole.to_tuple())
    assert torch.equal(parts[0], whole.logits) and torch.equal(parts[-1], whole.region_features)


def test_image_features_come_as_transformers_has_them_too(model, inputs):
    ours = model.get_image_features(inputs["pixel_values"])
    theirs = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
    assert isinstance(theirs, BaseModelOutputWithPooling) and torch.equal(theirs.pooler_output, ours)
    assert theirs.last_hidden_state.shape == (1, 16, 16)
    assert torch.equal(model.get_image_features(inputs["pixel_values"], return_dict=False)[1], ours)


def test_boxes_of_pixels_are_refused(model, inputs):
    wrong = inputs | {"boxes": [torch.tensor([[2.0, 3.0, 20.0, 25.0]])]}
    with pytest.raises(InputError, match=r"box 1 is \[2.0, 3.0, 20.0, 25.0\], which looks like pixels"):
        model(**wrong)
    model(**inputs | {"boxes": [torch.tensor([[-0.5, 0.0, 2.5, 1.5]])]})  # an annotation that reaches outside


@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_a_tower_that_is_unfrozen_learns(kind):
    model = tiny_model(kind)
    image = torch.arange(3072, dtype=torch.uint8).reshape(32, 32, 3).numpy()
    turns = (Turn("user", "What is <region1>?"), Turn("assistant", "a hen"))
    batch = tiny_processor(model.config)(RegionSample(image, turns, [[2, 3, 20, 25]]))
    model(**batch).loss.backward()
    assert all(one.grad is None for one in model.vision_tower.parameters())
    model.requires_grad_(False)
    model.vision_tower.requires_grad_(True)
    model(**batch, logits_at_targets_only=True).loss.backward()
    learnt = [one.grad is not None and bool(one.grad.any()) for one in model.vision_tower.parameters()]
    assert sum(learnt) > len(learnt) / 2


def test_the_attention_of_all_parts_is_set_at_once(inputs):
    model = tiny_model()
    expected = logits(model, **inputs)
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert model.language_model.config._attn_implementation == name
        assert model.vision_tower.backbone.config._attn_implementation == name
        torch.testing.assert_close(logits(model, **inputs), expected, atol=2e-5, rtol=0)
    pyramid = tiny_model("pyramid")
    pyramid.set_attn_implementation("eager")
    assert pyramid.language_model.config._attn_implementation == "eager"


@pytest.mark.heavy
def test_a_static_cache_gives_the_same_answer_and_its_decoding_is_one_graph(model, inputs):
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(
        model.generate(**inputs, **GREEDY, cache_implementation="static", disable_compile=True), expected
    )
    assert model._can_compile_fullgraph
    length = inputs["input_ids"].shape[1]
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=length + 2)
    with torch.no_grad():
        following = model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        step = torch.compile(model.forward, backend="eager", fullgraph=True)
        output = step(input_ids=following, position_ids=torch.tensor([[length]]), **{CACHE: cache})
    assert output.logits.argmax(-1).item() == expected[0, length + 1].item()


def test_a_hub_name_fetches_the_model_and_not_the_checkpoints_beside_it(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    names = ["config.json", "model.safetensors", "region_encoder/config.json", "region_encoder/model.safetensors"]
    names += ["checkpoint-5/model.safetensors", "checkpoint-5/config.json", "rest/config.json", "a/b.json"]
    fetched = []

    def snapshot_download(name, allow_patterns, ignore_patterns):
        fetched.extend(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        (tmp_path / "checkpoint-5").mkdir(exist_ok=True)
        for one in fetched:
            (tmp_path / one).parent.mkdir(exist_ok=True)
            (tmp_path / one).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.local_folder("owner/name") == tmp_path and fetched == names[:4]  # the second two of a base with regions
    fetched.clear()
    assert hub.local_folder("owner/name", subfolder="checkpoint-5") == tmp_path / "checkpoint-5"
    assert sorted(fetched) == sorted(names[4:6])


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
def test_tokens_that_peft_puts_before_the_prompt_see_the_image_and_are_trained(model, inputs, kind):
    peft = pytest.importorskip("peft")
    sizes = {"token_dim": 16, "num_attention_heads": 2} if kind == "PrefixTuningConfig" else {"token_dim": 32}
    settings = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=2, num_layers=2, **sizes)
    adapted = peft.get_peft_model(copy.deepcopy(model), settings)
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    trained = [parameter.grad.abs().max() for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trained) == 1 and float(trained[0]) > 0
    with torch.no_grad():
        seen, dark = (adapted(**inputs | {"pixel_values": inputs["pixel_values"] * by}).logits for by in (1, 0))
    assert float((seen - dark).abs().max()) > 1e-3
