#!/usr/bin/env bash
# Finds the browser that the page is tested in, or installs it where that takes no question; else says how to.
# Without it the tests of the page are skipped, except where CI is set: there they fail.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then exit 0; fi
done
if [[ $(id -u) -eq 0 ]] && command -v apt-get > /dev/null; then
    echo "== installing Chromium, in which the page is tested"
    export DEBIAN_FRONTEND=noninteractive
    if apt-get update -qq && apt-get install -y -qq chromium fonts-dejavu-core > /dev/null; then exit 0; fi
fi
echo "no browser: the page is not tested in one; install it with: sudo apt install chromium" >&2
