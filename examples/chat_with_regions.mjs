// Asks a server of `gpt4roi serve` about a box of an image, in plain JavaScript (Node 18 or newer, no package).
//
//     node examples/chat_with_regions.mjs photo.jpg 40,30,210,190 http://127.0.0.1:8000/v1
import { readFile } from "node:fs/promises";

const [photo, box, server] = process.argv.slice(2);
const headers = { "content-type": "application/json", authorization: "Bearer any" };
const model = (await (await fetch(`${server}/models`, { headers })).json()).data[0].id;
const url = `data:image/jpeg;base64,${(await readFile(photo)).toString("base64")}`;

const response = await fetch(`${server}/chat/completions`, {
  method: "POST",
  headers,
  body: JSON.stringify({
    model,
    max_tokens: 64,
    stream: true,
    boxes: [box.split(",").map(Number)], // x1, y1, x2, y2 in pixels of the photo
    messages: [
      { role: "user", content: [{ type: "image_url", image_url: { url } }, { type: "text", text: "What is <region1>?" }] },
    ],
  }),
});
if (!response.ok) throw new Error((await response.json()).error.message);

let text = "";
for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
  text += chunk;
  for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
    const data = text.slice("data: ".length, end);
    if (data !== "[DONE]") process.stdout.write(JSON.parse(data).choices[0]?.delta.content ?? "");
  }
}
process.stdout.write("\n");
