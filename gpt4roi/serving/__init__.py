"""Serving: an OpenAI-compatible HTTP API in which a box is a box, over one worker that batches across users."""
