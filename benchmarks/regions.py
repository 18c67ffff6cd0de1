"""Times answering one question about each of 1, 8 and 32 regions of an image, by the original's way and by ours.

    python benchmarks/regions.py [--quick] [--model exp/quickstart/stage2]

The last rows compare, for the second model, regions that are masks with regions that are boxes.

The original computes everything again for each region: the tower, the pyramid, the whole prompt. Here the same is done
with our own parts, one region after the other, so that only the sharing differs; both are greedy, in float32, and must
give the same tokens. Encoder is from the image's tensor to embeddings (tower, projector, region encoder), language
model from embeddings to tokens. Two models: the quickstart's, where it is there; and one built like the released model
(CLIP and the pyramid at 224 px, 256 image tokens, v0 prompt) at an eighth of its width, with weights drawn at random,
the faster RoIAlign (`auto`) for both ways, and answers of 8 tokens. Left out: opening images and writing prompts,
which both ways do alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, argument_parser, devices, difference, positive, report, rows, time_in_turn
from PIL import Image

from gpt4roi import GPT4RoIConfig, GPT4RoIForConditionalGeneration, GPT4RoIProcessor, RegionSample, Turn
from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.generation.encoded_image import PreparedImage, Prompt, encode_images, prepare_image
from gpt4roi.generation.engine import generate, stream
from gpt4roi.generation.sampling import SamplingParams, stopping_criterion
from gpt4roi.structures import MASK_SIZE

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny import tiny_text_config, tiny_tokenizer, token_ids

MODEL = Path("exp/quickstart/stage2")
QUESTION = "What is <region1>?"
WAYS = ("all again for each region", "once for the image")


def measure(quick: bool, model_folder: Path = MODEL, repeats: int = 3) -> Iterator[Row]:
    """Compares both ways on both models, on every device."""
    counts = (1, 8) if quick else (1, 8, 32)
    for device in devices():
        if (model_folder / "config.json").is_file() and not quick:
            model, processor = load_model(model_folder, dtype=torch.float32), load_processor(model_folder)
            yield from compare("quickstart", model.to(device).eval(), processor, counts, SamplingParams(24), repeats)
        width = 16 if quick else 128
        model, processor = small_original(width)
        name = f"original's build, width {width}"
        yield from compare(name, model.to(device).eval(), processor, counts, SamplingParams(8), 1 if quick else 2)
        yield from masks_and_boxes(name, width, device, counts[-1], 1 if quick else 9)


def masks_and_boxes(name: str, width: int, device: str, count: int, repeats: int) -> Iterator[Row]:
    """Times the pooling of boxes with full masks, and of the same boxes by a model without masks."""
    draw = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, 2, generator=draw).sort(dim=1).values * 0.8 + torch.tensor([[0, 0], [0.2, 0.2]])
    boxes, masks = [corners.flatten(1).to(device)], [torch.ones(count, MASK_SIZE, MASK_SIZE, device=device)]
    model, encoders = small_original(width)[0], {}
    maps = model.encode_image(torch.randn(1, 3, 224, 224, generator=draw))[1]
    for shape in ("box", "mask"):
        encoder = small_original(width, region_shape=shape)[0].region_encoder.to(device).eval()
        encoder.load_state_dict(model.region_encoder.state_dict(), strict=False)
        pyramid = encoder.pyramid([level.to(device) for level in maps])
        given = masks if shape == "mask" else None
        encoders[shape] = partial(torch.inference_mode()(encoder.embed_boxes), pyramid, boxes, given)
    equal = f"embeddings differ by {difference(encoders['mask'](), encoders['box']()):.0e} of the largest"
    ways = {"boxes": encoders["box"], "masks": encoders["mask"]}
    spent = time_in_turn(ways, repeats, warm_ups=1, device=device)
    yield from rows(f"{name}, {count} regions, pooling", spent, equal, device=device)


def small_original(width: int, **settings: Any) -> tuple[Any, GPT4RoIProcessor]:
    """Builds a model with the released one's grid, levels, rounds and prompt, but of another width."""
    tower = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 24,
        "num_attention_heads": max(width // 64, 1),
        "image_size": 224,
        "patch_size": 14,
    }
    text = tiny_text_config(
        hidden_size=4 * width,
        intermediate_size=11 * width,
        num_hidden_layers=8,
        num_attention_heads=max(width // 16, 1),
        num_key_value_heads=max(width // 16, 1),
        head_dim=64,
        initializer_range=0.05,
    )
    torch.manual_seed(0)
    config = GPT4RoIConfig(
        vision_config=tower,
        text_config=text,
        fusion_groups=min(64, width // 4),
        roi_align_backend="auto",
        **settings,
        **token_ids(tiny_tokenizer()),
    )
    model = GPT4RoIForConditionalGeneration(config)
    return model, GPT4RoIProcessor(tiny_tokenizer(), image_size=224, image_seq_length=256, prompt_format="v0")


def compare(
    name: str, model: Any, processor: GPT4RoIProcessor, counts: tuple[int, ...], params: SamplingParams, repeats: int
) -> Iterator[Row]:
    """Times encoder and language model for each number of regions, after checking that the tokens are equal."""
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((256, 256))
    prepared = prepare_image(processor, image)
    stopping = stopping_criterion(processor)
    for count in counts:
        corners = np.sort(draw.uniform(0, 248, (count, 2, 2)), axis=1) + np.array([[0, 0], [8, 8]])
        boxes_px = corners.reshape(count, 4)
        texts = [text_about(processor, box) for box in boxes_px]
        boxes = torch.cat([text["boxes"] for text in texts])
        encoders = {
            WAYS[0]: partial(encode_each, model, prepared, boxes),
            WAYS[1]: partial(encode, model, prepared, boxes),
        }
        again, once = (write(texts, *encoder()) for encoder in encoders.values())
        decoders = {
            WAYS[0]: lambda again=again: [list(stream(model, prompt, params, stopping)) for prompt in again],
            WAYS[1]: lambda once=once: generate(model, once, params, stopping, 32),
        }
        separate, together = (decode() for decode in decoders.values())
        assert separate == together, f"{name}: tokens of {count} regions differ"
        equal = f"{sum(map(len, together))} tokens of {count} answers equal"
        case = f"{name}, {count} region{'s' * (count > 1)}"
        for part, ways in (("encoder", encoders), ("language model", decoders)):
            spent = time_in_turn(ways, repeats, warm_ups=0, device=model.device.type)
            yield from rows(f"{case}, {part}", spent, equal, device=model.device.type)


def text_about(processor: GPT4RoIProcessor, box_px: np.ndarray) -> dict[str, Any]:
    """Writes the prompt about one box."""
    sample = RegionSample("an image", (Turn("user", QUESTION),), box_px[None])
    return processor.encode_text(sample, generation=True, image_size=(256, 256))


def encode(model: Any, image: PreparedImage, boxes: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Encodes the image once; returns the image's and the region's embeddings (a row a token) for each box."""
    (encoded,) = encode_images(model, [image])
    regions = encoded.region_features(boxes)
    return [encoded.image_features] * len(boxes), list(regions.unflatten(0, (len(boxes), -1)))


def encode_each(model: Any, image: PreparedImage, boxes: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Encodes the image again for each box."""
    pairs = [encode(model, image, box[None]) for box in boxes]
    return [images[0] for images, _ in pairs], [regions[0] for _, regions in pairs]


def write(texts: list[dict[str, Any]], images: list[torch.Tensor], regions: list[torch.Tensor]) -> list[Prompt]:
    """Makes the prompts of embeddings."""
    return [
        Prompt(text["input_ids"], 0, image, region) for text, image, region in zip(texts, images, regions, strict=True)
    ]


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="the quickstart's model (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=3)
    args = parser.parse_args()
    report(measure(args.quick, args.model, args.repeats), args)
