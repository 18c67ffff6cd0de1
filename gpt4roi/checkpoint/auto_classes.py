"""Registers AutoConfig, AutoModelForImageTextToText and AutoProcessor of transformers for GPT4RoI folders.

`import gpt4roi.auto` is all; it imports torch and transformers, which `import gpt4roi` does not. Whoever uses a
public name of gpt4roi that needs torch has it already.
"""

from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration
from gpt4roi.processing.processor import GPT4RoIProcessor

__all__ = ["GPT4RoIConfig", "GPT4RoIForConditionalGeneration", "GPT4RoIProcessor"]
