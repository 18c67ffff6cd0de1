"""Turns the fetched files into the two parts a training starts from: a language model's and a vision tower's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, TimmBackbone, TimmBackboneConfig
from transformers.image_utils import to_numpy_array

from gpt4roi.errors import InputError

TOWER_NAME = "tf_efficientnet_lite0"
TOWER_LEVELS = (1, 2, 3, 4)
"""Strides 4, 8, 16 and 32."""
TOWER_SIZE = 256
TOWER_MEAN, TOWER_STD = 127 / 255, 128 / 255
"""The weights expect (x − 127)/128 for x from 0 to 255."""
KNOWN_CLASSES = {"chelsea": 285, "coffee": 967}
"""ImageNet classes of two photographs: an Egyptian cat and an espresso. Wrongly mapped weights do not find them."""
KNOWN_ANSWER = ("What is the capital of France?", "Paris")


def convert_language_model(gguf: Path, target: Path) -> None:
    """Writes a GGUF file of the LLaMA family as an ordinary folder: bfloat16 weights, tokenizer, chat template.

    Raises:
        InputError: the package that reads such files is missing.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        opened: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except ImportError as error:
        raise InputError(
            f"{gguf.name} needs the package gguf ({error}); run `pip install gguf` and try again"
        ) from error
    # A model that came from a GGUF cannot be saved as it is: weights and sizes go into a fresh one.
    config = opened.config
    del config.quantization_config
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(opened.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = opened.generation_config
    # The precision in which the model was published; the quantisation is far coarser.
    model.bfloat16().save_pretrained(target)
    tokenizer.save_pretrained(target)


def check_language_model(folder: Path) -> str:
    """Asks the converted model one question and returns its answer.

    Raises:
        InputError: the answer is not the known one, so the weights or the tokenizer are not what they should be.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    question, known = KNOWN_ANSWER
    inputs: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    given = str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
    if known not in given:
        raise InputError(
            f"{folder} answers {given!r} to {question!r}, expected {known!r} in it: its conversion went wrong"
        )
    return given


def load_classifier(weights: Path, name: str = TOWER_NAME) -> torch.nn.Module:
    """Returns timm's classifier with the weights of a checkpoint that has the same tensors, in order, by other names.

    Raises:
        InputError: number or shapes of the tensors differ.
    """
    theirs = torch.load(weights, map_location="cpu", weights_only=True)
    classifier = timm.create_model(name, pretrained=False).eval()
    ours = classifier.state_dict()
    if len(theirs) != len(ours):
        raise InputError(f"{weights.name} has {len(theirs)} tensors, {name} has {len(ours)}: another model's weights")
    for (their_name, tensor), (our_name, place) in zip(theirs.items(), ours.items(), strict=True):
        if tensor.shape != place.shape:
            raise InputError(
                f"{their_name} in {weights.name} is {tuple(tensor.shape)}, expected {tuple(place.shape)} of {our_name}"
            )
    classifier.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    return classifier


def check_classes(classifier: torch.nn.Module, folder: Path, known: dict[str, int] | None = None) -> dict[str, int]:
    """Classifies photographs of folder and returns the class found for each.

    Raises:
        InputError: one of them is not the known class, so the weights are not where they belong.
    """
    known = KNOWN_CLASSES if known is None else known
    found = {name: classify(classifier, Image.open(folder / f"{name}.png").convert("RGB")) for name in known}
    if found != known:
        raise InputError(f"the vision tower finds the classes {found}, expected {known}: its conversion went wrong")
    return found


def classify(classifier: torch.nn.Module, image: Image.Image) -> int:
    """Returns the class of the middle square of an RGB image."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((TOWER_SIZE, TOWER_SIZE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(to_numpy_array(square).copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        return int(classifier((pixels - TOWER_MEAN) / TOWER_STD).argmax())


def save_vision_tower(classifier: torch.nn.Module, target: Path, name: str = TOWER_NAME) -> None:
    """Writes the feature pyramid of a timm classifier as a folder: config.json, model.safetensors, the preprocessing.

    The folder opens with `TimmBackbone(TimmBackboneConfig.from_pretrained(folder))` and its tensors.
    """
    settings: dict[str, Any] = {"out_indices": TOWER_LEVELS, "use_pretrained_backbone": False, "features_only": True}
    tower = TimmBackbone(TimmBackboneConfig(backbone=name, **settings)).eval()
    weights = classifier.state_dict()
    tower._backbone.load_state_dict({key: weights[key] for key in tower._backbone.state_dict()})
    tower.save_pretrained(target)
    preprocessing = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [TOWER_MEAN] * 3,
        "image_std": [TOWER_STD] * 3,
        "do_resize": True,
        "size": {"height": TOWER_SIZE, "width": TOWER_SIZE},
        "resample": int(Image.Resampling.BICUBIC),
    }
    (target / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")
