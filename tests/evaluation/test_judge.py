"""The judge: cached, resumed, asked again, never mixed, read strictly."""

from __future__ import annotations

import json
import os
import signal
from functools import partial

import pytest
from official import objects, visual_genome
from stub_judge import StubJudge, text_of

from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.evaluation import captions
from gpt4roi.evaluation.judge import Judge, JudgePrompt, json_number, only_number, read_key
from gpt4roi.evaluation.scoring import CLAIR
from gpt4roi.io.journal import Journal

PROMPT = JudgePrompt("Rate {answer} from 0 to 10.", partial(only_number, low=0, high=10), system="You are strict.")
REQUESTS = [{"answer": f"answer {number}"} for number in range(6)]


@pytest.fixture
def stub():
    """A judge that says how long the last word is."""
    pytest.importorskip("openai")
    served = StubJudge(lambda body: body["messages"][-1]["content"].split()[2])
    yield served
    served.close()


@pytest.fixture
def judge(stub, tmp_path):
    return Judge(stub.url, "stub", tmp_path / "judge", api_key="sk-1")


def test_a_verdict_for_each_request_in_order_at_temperature_0_with_a_seed_and_the_key(stub, judge):
    verdicts = judge.ask(PROMPT, REQUESTS)

    assert verdicts.values == [0, 1, 2, 3, 4, 5]
    assert sorted(stub.texts()) == [f"Rate answer {number} from 0 to 10." for number in range(6)]
    for body in stub.bodies:
        assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("stub", 0, 0, 300)
        assert body["messages"][0] == {"role": "system", "content": "You are strict."}
    assert set(stub.keys) == {"Bearer sk-1"}
    assert verdicts.label == f"judge stub, prompt {PROMPT.digest}" and len(PROMPT.digest) == 8
    assert verdicts.details["answered_by"] == ["stub-2026"] and verdicts.details["prompt"] == PROMPT.digest
    assert "sk-1" not in repr(judge) + (judge.folder / "0.jsonl").read_text() + json.dumps(verdicts.details)


def test_a_repeated_run_asks_nothing_and_another_judge_prompt_or_text_asks_anew(stub, judge, tmp_path):
    first = judge.ask(PROMPT, REQUESTS)
    again = Judge(stub.url, "stub", tmp_path / "judge").ask(PROMPT, REQUESTS)
    assert again == first and len(stub.bodies) == 6

    Judge(stub.url, "another", tmp_path / "judge").ask(PROMPT, REQUESTS[:1])
    judge.ask(JudgePrompt("Now rate {answer} please.", PROMPT.parse), REQUESTS[:1])
    judge.ask(PROMPT, [{"answer": "answer 7"}])
    assert len(stub.bodies) == 9
    elsewhere = Judge(stub.url, "stub", tmp_path / "elsewhere", also_cached=(judge.folder,))
    assert elsewhere.ask(PROMPT, REQUESTS) == first and not elsewhere.folder.exists() and len(stub.bodies) == 9


def test_a_killed_run_resumes_with_what_it_had(stub, tmp_path):
    child = os.fork()
    if child == 0:
        append = Journal.append

        def append_and_die(self, records):
            append(self, records)
            if len(self.path.read_text().splitlines()) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.append = append_and_die
        Judge(stub.url, "stub", tmp_path / "judge", concurrency=1).ask(PROMPT, REQUESTS)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = len(stub.bodies)
    with (tmp_path / "judge" / "0.jsonl").open("a") as file:
        file.write('{"key": "torn')

    assert Judge(stub.url, "stub", tmp_path / "judge").ask(PROMPT, REQUESTS).values == [0, 1, 2, 3, 4, 5]
    assert len(stub.bodies) - before == 4


@pytest.mark.parametrize("failure", [(429, {"Retry-After-Ms": "20"}), (503, {"Retry-After-Ms": "20"})])
def test_an_endpoint_that_is_busy_is_asked_again_when_it_says(stub, judge, failure):
    answer, failed = stub.reply, set()

    def reply(body):
        text = body["messages"][-1]["content"]
        if text not in failed:
            failed.add(text)
            return failure
        return answer(body)

    stub.reply = reply
    assert judge.ask(PROMPT, REQUESTS[:2]).values == [0, 1]
    assert len(stub.bodies) == 4


def test_a_reply_of_another_form_is_counted_and_never_guessed(stub, judge):
    answer = stub.reply
    stub.reply = lambda body: "About 7, I think." if "answer 3" in body["messages"][-1]["content"] else answer(body)

    verdicts = judge.ask(PROMPT, REQUESTS)

    assert verdicts.values == [0, 1, 2, None, 4, 5]
    assert (verdicts.details["unreadable"], verdicts.details["verdicts"]) == (1, 6)
    assert verdicts.notes == ["1 of 6 verdicts could not be read and count as the worst: 'About 7, I think.'"]


def test_a_request_that_is_refused_is_counted_and_asked_again_by_another_run(stub, judge):
    answer = stub.reply
    stub.reply = lambda body: (400, {}) if "answer 3" in body["messages"][-1]["content"] else answer(body)
    verdicts = judge.ask(PROMPT, REQUESTS)
    assert verdicts.values[3] is None and verdicts.details["refused"] == 1 and "400: " in verdicts.notes[0]

    stub.reply = answer
    assert judge.ask(PROMPT, REQUESTS).values == [0, 1, 2, 3, 4, 5] and len(stub.bodies) == 7


def test_an_endpoint_that_refuses_everything_or_the_key_ends_the_run(stub, judge):
    stub.reply = lambda body: (400, {})
    with pytest.raises(InputError, match=f"--judge {stub.url}: refused all 6 requests: 400: "):
        judge.ask(PROMPT, REQUESTS)
    stub.reply = lambda body: (401, {})
    with pytest.raises(InputError, match=r"401: .*verdicts so far are kept: run it again"):
        judge.ask(PROMPT, REQUESTS)
    stub.reply = lambda body: ["no", "completion"]
    with pytest.raises(InputError, match="its reply is no chat completion"):
        judge.ask(PROMPT, REQUESTS)


def test_verdicts_of_two_models_under_one_name_are_never_mixed(stub, judge):
    judge.ask(PROMPT, REQUESTS[:3])
    stub.served_as = "stub-2027"

    with pytest.raises(InputError, match="replies come from stub-2026 and stub-2027, and verdicts of two models"):
        judge.ask(PROMPT, REQUESTS)


def test_offline_takes_cached_verdicts_alone(stub, judge, tmp_path):
    first = judge.ask(PROMPT, REQUESTS[:3])
    offline = Judge(stub.url, "stub", tmp_path / "judge", offline=True)

    assert offline.ask(PROMPT, REQUESTS[:3]).values == first.values
    with pytest.raises(InputError, match=r"3 verdicts are not in .*judge; run that evaluation again"):
        offline.ask(PROMPT, REQUESTS)


def test_a_prompt_of_ones_own_takes_the_place_of_the_benchmarks_and_has_another_digest(stub, tmp_path):
    own = Judge(stub.url, "stub", tmp_path / "judge", template='{"how good": "x", is {answer}?}')
    verdicts = own.ask(PROMPT, REQUESTS[:1])
    assert stub.texts() == ['{"how good": "x", is answer 0?}'] and PROMPT.digest not in verdicts.label
    lacking = Judge(stub.url, "stub", tmp_path / "judge", template="How good?")
    with pytest.raises(InputError, match=r"--judge-prompt: has no \{answer\}"):
        lacking.ask(PROMPT, REQUESTS[:1])


def test_an_image_is_sent_and_its_digest_kept(stub, judge):
    stub.reply = lambda body: "3"
    judge.ask(PROMPT, REQUESTS[:1], ["data:image/jpeg;base64,/9hqcGVn"])

    image = stub.bodies[0]["messages"][-1]["content"][1]
    assert image == {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9hqcGVn"}}
    kept = json.loads((judge.folder / "0.jsonl").read_text())
    assert kept["request"][-1]["content"][1].keys() == {"type", "sha256"}
    judge.ask(PROMPT, REQUESTS[:1], ["data:image/jpeg;base64,/9hv"])
    assert len(stub.bodies) == 2


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("7", 7),
        (" 7.5\n", 7.5),
        ("10.", 10),
        ("11", None),
        ("7/10", None),
        ("Score: 7", None),
        ("", None),
        ("-1", None),
    ],
)
def test_a_number_alone_is_read_and_nothing_else(reply, value):
    assert only_number(reply, 0, 10) == value


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"score": 80, "reason": "x"}', 80),
        ('```json\n{"score": 0.5}\n```', 0.5),
        ('{"score": "80"}', None),
        ('{"score": true}', None),
        ('{"score": 101}', None),
        ('{"points": 5}', None),
        ('{"score": 5', None),
        ("80", None),
        ("[80]", None),
    ],
)
def test_a_number_of_a_json_object_is_read_and_nothing_else(reply, value):
    assert json_number(reply, "score", 0, 100) == value


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "https://host/v1?key=1", ""])
def test_what_is_no_endpoint_is_refused(url, tmp_path):
    with pytest.raises(InputError, match="--judge must be an endpoint such as http://localhost:8000/v1"):
        Judge(url, "m", tmp_path)


def test_a_password_in_the_address_is_refused_and_not_repeated(tmp_path):
    with pytest.raises(InputError, match="--judge: the address holds a password") as error:
        Judge("https://me:secret@host/v1", "m", tmp_path)
    assert "secret" not in str(error.value)


def test_the_key_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-2")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never")
    assert read_key(None) == "sk-2"
    monkeypatch.delenv("JUDGE_API_KEY")
    assert read_key(None) == ""
    (tmp_path / "key").write_text("sk-3\n")
    assert read_key(tmp_path / "key") == "sk-3"
    (tmp_path / "key").write_text("two words\n")
    with pytest.raises(InputError, match="expected one key and nothing else"):
        read_key(tmp_path / "key")
    with pytest.raises(InputError, match=r"--judge-key-file .*nowhere: cannot be read: No such file"):
        read_key(tmp_path / "nowhere")


def judged(stub, tmp_path, *words, answer="two small dogs sleep"):
    """Evaluates vg by the command, with CLAIR."""
    data = visual_genome(tmp_path / "data")
    (tmp_path / "model.py").write_text(f"def answer(queries):\n    return [{answer!r}] * len(queries)\n")
    words = ("--data", str(data), "--model", str(tmp_path / "model.py"), "--out", str(tmp_path / "out"), *words)
    code = main(["evaluate", "--benchmark", "vg", "--judge", stub.url, "--judge-model", "stub", *words])
    return code, json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_captions_get_clair_by_the_command_with_judge_and_prompt_in_its_name(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "has_java", lambda: False)
    monkeypatch.setenv("JUDGE_API_KEY", "sk-9")
    stub.reply = lambda body: (
        '{"score": 75, "reason": "dogs"}' if "- two small dogs sleep on" in text_of(body) else "{}"
    )

    code, metrics = judged(stub, tmp_path)

    (name,) = (name for name in metrics["summary"] if name.startswith("CLAIR"))
    assert name == f"CLAIR (judge stub, prompt {CLAIR.digest})" and metrics["summary"][name] == 0.75 / 4
    assert code == 1 and (metrics["judge"]["unreadable"], metrics["judge"]["verdicts"]) == (3, 4)
    assert "3 of 4 verdicts could not be read and count as the worst: '{}'" in metrics["notes"]
    assert set(stub.keys) == {"Bearer sk-9"} and "sk-9" not in json.dumps(metrics)
    assert f"--judge {stub.url} --judge-model stub" in metrics["command"]
    assert name.replace("(", "") in (tmp_path / "out" / "report.html").read_text().replace("(", "")
    asked = len(stub.bodies)
    code, again = judged(stub, tmp_path, "--max-bad-fraction", "1")
    assert code == 0 and again["summary"] == metrics["summary"] and len(stub.bodies) == asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge", "http://x/v1"], "a judge is named by --judge URL and --judge-model NAME; give both"),
        (["--judge-key-file", "key"], "a judge is named by --judge URL and --judge-model NAME; give both"),
        (["--judge", "x", "--judge-model", "m"], "--judge must be an endpoint such as http://localhost:8000/v1"),
        (["--judge", "http://x/v1", "--judge-model", "m"], "--judge: lvis asks no judge; leave it out"),
        (["--judge", "http://x/v1", "--judge-model", "m", "--judge-prompt", "no"], "no: no such file; give --judge-pr"),
        (["--judge", "http://x/v1", "--judge-model", "m", "--judge-concurrency", "0"], "--judge-concurrency must be"),
    ],
)
def test_wrong_arguments_of_a_judge_are_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = objects(tmp_path / "data", "lvis")
    (tmp_path / "model.py").write_text("def answer(queries):\n    return ['x'] * len(queries)\n")

    words = ["--data", str(data), "--model", "model.py", "--out", "out", *words]
    assert main(["evaluate", "--benchmark", "lvis", *words]) == 2

    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
