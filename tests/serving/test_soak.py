"""A few seconds of benchmarks/serving_soak.py: honest, cancelled and hostile requests together."""

from __future__ import annotations

import importlib
import random
import time
from pathlib import Path

import pytest
from api_client import KEY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BOXES = [[5, 4, 40, 30], [20, 10, 55, 38], [0, 0, 25, 20]]


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("serving_soak")


@pytest.fixture
def known(soak, chat, picture, url):
    answers = chat.describe(picture, BOXES, soak.QUESTION, max_new_tokens=soak.MAX_TOKENS)
    return [soak.Known(url, box, answer) for box, answer in zip(BOXES, answers, strict=True)]


@pytest.mark.heavy
def test_every_hostile_request_is_refused_in_one_line(soak, api, known):
    service = soak.Api(f"{api.url}/v1", KEY)
    for path, body in soak.hostile(known[0]):
        if isinstance(body, dict) and "padding" in body:
            continue  # its connection may end before the answer is read
        connection, response = service.post(path, body)
        said = response.read().decode()
        connection.close()
        assert 400 <= response.status < 500, (path, str(body)[-200:], said)
        assert '"message"' in said and "\\n" not in said and len(said) < 600, said
    assert service.answer(known[0], "chat") == known[0].answer


@pytest.mark.heavy
def test_nobody_gets_another_s_answer_while_some_go_away_and_some_are_hostile(soak, api, known, monkeypatch):
    monkeypatch.setattr(soak, "HOSTILE", 0.2)
    seen, threads = soak.crowd(soak.Api(f"{api.url}/v1", KEY), known, 6, time.monotonic() + 2)
    for thread in threads:
        thread.join(60)
    assert seen.wrong == [] and not any(thread.is_alive() for thread in threads)
    assert {"chat", "stream", "regions", "cancelled"} <= set(seen.counts)
    for _ in range(100):
        if not api.worker.num_running + api.worker.num_waiting:
            break
        time.sleep(0.05)
    assert api.worker.num_running == api.worker.num_waiting == 0, "who went away left the batch"
    assert soak.insult(soak.Api(f"{api.url}/v1", KEY), known[0], random.Random(1))
