"""Text generation: one engine for chat, describe, caption, evaluate, watched regions and the API."""
