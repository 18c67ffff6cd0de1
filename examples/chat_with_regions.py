"""Asks a server of `gpt4roi serve` about boxes of an image, with OpenAI's own client (pip install openai).

python examples/chat_with_regions.py photo.jpg 40,30,210,190 http://127.0.0.1:8000/v1
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

photo, box, server = sys.argv[1:4]
client = OpenAI(base_url=server, api_key="any")  # the server's key, where it asks for one
model = client.models.list().data[0].id
url = f"data:image/jpeg;base64,{base64.b64encode(Path(photo).read_bytes()).decode()}"
boxes = [[float(number) for number in box.split(",")]]  # x1, y1, x2, y2 in pixels of the photo

image = {"type": "image_url", "image_url": {"url": url}}
messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is <region1>?"}]}]
first = client.chat.completions.create(model=model, messages=messages, max_tokens=64, extra_body={"boxes": boxes})
answer = first.choices[0].message.content
sys.stdout.write(f"{answer}\n")

messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "What is left of region1?"}]
for chunk in client.chat.completions.create(
    model=model, messages=messages, max_tokens=64, stream=True, extra_body={"boxes": boxes}
):
    sys.stdout.write(chunk.choices[0].delta.content or "")
sys.stdout.write("\n")
