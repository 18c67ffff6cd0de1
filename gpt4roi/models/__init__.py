"""The model: a frozen vision tower, a projector, a region encoder and a decoder language model.

Letters in the shapes of this package:
    B  samples of a batch                 T  tokens of a sequence
    K  images of a batch                P  image tokens of an image
    S  side of the model's input image  L  levels of feature maps
    C  channels of a map                  H, W  height and width of a map
    M  regions (boxes) of a batch         D  width of the language model
    V  rows of the vocabulary             g  side of a pooled grid
"""

from transformers import AutoConfig, AutoModelForImageTextToText

from gpt4roi.models.configuration import GPT4RoIConfig
from gpt4roi.models.modeling import GPT4RoIForConditionalGeneration, GPT4RoIOutput
from gpt4roi.models.region_encoder import RegionEncoder

SPILlavaMPTForCausalLM = GPT4RoIForConditionalGeneration
MLVLROIQueryModule = RegionEncoder
"""The names that code written for the original looks for."""

AutoConfig.register(GPT4RoIConfig.model_type, GPT4RoIConfig, exist_ok=True)
AutoModelForImageTextToText.register(GPT4RoIConfig, GPT4RoIForConditionalGeneration, exist_ok=True)

__all__ = [
    "GPT4RoIConfig",
    "GPT4RoIForConditionalGeneration",
    "GPT4RoIOutput",
    "MLVLROIQueryModule",
    "RegionEncoder",
    "SPILlavaMPTForCausalLM",
]
