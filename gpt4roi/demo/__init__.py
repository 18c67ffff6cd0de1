"""Demo: the Gradio page where boxes are drawn on an image and talked about."""
