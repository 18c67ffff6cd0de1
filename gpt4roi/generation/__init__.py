"""Generation: one engine for chat, description, captioning, evaluation, watched regions and the API."""
