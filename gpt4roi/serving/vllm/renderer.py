"""Renderer of vLLM's chat route: OpenAI's messages with regions become prompts by our own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers.base import BaseRenderer
from vllm.utils.async_utils import make_async

from gpt4roi.errors import InputError
from gpt4roi.models import GPT4RoIConfig
from gpt4roi.processing.uploads import Limits
from gpt4roi.serving.images import ImageFetcher, prepare_upload
from gpt4roi.serving.requests import ChatRequest, conversation_of, encode_conversation, validated
from gpt4roi.serving.vllm.items import image_item, tokens_prompt


class GPT4RoIRenderer(BaseRenderer):
    """Writes the prompts of `--tokenizer-mode gpt4roi`, with the request forms and the errors of `gpt4roi serve`.

    Regions are `boxes` in `chat_template_kwargs`, or `<box>x1,y1,x2,y2</box>` in the text. Images are data URLs, or at
    the hosts of `--allowed-media-domains`.
    """

    def __init__(self, config: Any, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        kind = self.model_config.hf_config.model_type
        if kind != GPT4RoIConfig.model_type:
            raise InputError(
                f"{self.model_config.model}: vLLM serves regions of GPT4RoI's own models, not on a base of model_type "
                f"{kind!r}; use gpt4roi serve"
            )
        self._fetcher = ImageFetcher(self.model_config.allowed_media_domains or (), option="--allowed-media-domains")
        self._render_async = make_async(self._render, executor=self._executor)

    def render_messages(self, messages: Sequence[Any], params: Any) -> tuple[list[Any], Any]:
        """Returns the turns and the prompt of a conversation."""
        return self._render(messages, params)

    async def render_messages_async(self, messages: Sequence[Any], params: Any) -> tuple[list[Any], Any]:
        """Does the same in a thread."""
        return await self._render_async(messages, params)

    def _render(self, messages: Sequence[Any], params: Any) -> tuple[list[Any], Any]:
        try:
            boxes = (params.chat_template_kwargs or {}).get("boxes")
            asked = validated({"messages": [_plain(message) for message in messages], "boxes": boxes}, ChatRequest)
            conversation = conversation_of(asked)
            processor = self.get_mm_processor().info.processor
            image = size = None
            if conversation.image_url is not None:
                data = self._fetcher.data_of(conversation.image_url)
                prepared = prepare_upload(processor, data, Limits())
                image, size = image_item(prepared), prepared.size
            prompt = tokens_prompt(encode_conversation(processor, conversation, size), image)
        except InputError as error:
            raise VLLMValidationError(str(error)) from error
        return [{"role": turn.role, "content": turn.text} for turn in conversation.turns], prompt


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a message as JSON has it; vLLM's own validation leaves iterators."""
    content = message.get("content")
    parts = content if content is None or isinstance(content, str) else [dict(part) for part in content]
    return {**message, "content": parts}
