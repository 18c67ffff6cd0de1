"""vLLM plugin: `vllm serve FOLDER --tokenizer-mode gpt4roi` opens our folders and takes the API's request forms."""

import logging

MODE = "gpt4roi"
"""Name of the plugin, and of the tokenizer mode that chooses the renderer."""


def register() -> None:
    """Makes configuration, model, tokenizer mode and renderer known to vLLM; it calls this in every process."""
    from vllm import ModelRegistry
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from gpt4roi.checkpoint import auto_classes

    # vLLM's server lets errors through alone; a mask that is taken as its box is a warning of ours.
    logging.getLogger("gpt4roi").setLevel(logging.WARNING)
    architecture = auto_classes.GPT4RoIForConditionalGeneration.__name__
    if architecture not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(architecture, f"{__name__}.model:{architecture}")
        TokenizerRegistry.register(MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
        RENDERER_REGISTRY.register(MODE, f"{__name__}.renderer", "GPT4RoIRenderer")
