#!/usr/bin/env bash
# Asks a server of `gpt4roi serve` about boxes of an image, each by itself, with curl:
#     bash examples/describe_regions.sh photo.jpg http://127.0.0.1:8000/v1 '[[40,30,210,190],[220,35,400,260]]'
set -euo pipefail
photo=$1 server=$2 boxes=$3

body() { # body FIELDS: the request, with the photo inside
    printf '{"image": "%s", "boxes": %s, %s}' "$(base64 < "$photo" | tr -d '\n')" "$boxes" "$1"
}

# A line for each box, as its answer is ready.
body '"max_tokens": 64, "stream": true' | curl -sSN "$server/regions" -H "content-type: application/json" -d @-
# How likely each of three labels is.
body '"choices": ["a cat", "a dog", "something else"]' | curl -sS "$server/regions" -H "content-type: application/json" -d @-
echo
