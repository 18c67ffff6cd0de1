"""A model of regions and two tasks about them under lmms-eval's own harness (pip install lmms-eval "filelock<4").

python examples/lmms_eval_regions.py exp/quickstart/stage2 my/test.jsonl

The tasks read a held-out file in the unified format: region_captions (texts, exact match and word overlap) and
region_yes_no (accuracy). Another model under lmms-eval that takes boxes answers the same tasks: a document holds the
question, which mentions regions as <region1>, and their boxes in pixels of the upright image.
"""

import json
import sys
import tempfile
from pathlib import Path

import datasets
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.evaluator import simple_evaluate

from gpt4roi import RegionChat
from gpt4roi.evaluation.evaluate import read_items
from gpt4roi.evaluation.items import Source
from gpt4roi.evaluation.metrics import exact_match, word_overlap, words
from gpt4roi.processing.user_input import open_image

KINDS = {"region_captions": "text", "region_yes_no": "yes/no"}


class RegionModel(lmms):
    """A GPT4RoI model as lmms-eval calls one."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.chat = RegionChat.from_pretrained(folder)

    def generate_until(self, requests: list) -> list[str]:
        """Answers greedily; a request names its document, which holds the boxes."""
        answers = []
        for question, settings, to_visual, number, task, split in (request.args for request in requests):
            document = self.task_dict[task][split][number]
            self.chat.set_image(to_visual(document)[0])
            answers.append(self.chat.ask(question, document["boxes"], max_new_tokens=settings["max_new_tokens"]))
        return answers

    def loglikelihood(self, requests: list) -> list:
        """Is not asked for by these tasks; `gpt4roi evaluate` scores choices by likelihood."""
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list) -> list:
        """Is not asked for by these tasks."""
        raise NotImplementedError


def scored(document: dict, results: list[str]) -> dict[str, float]:
    """Scores one answer."""
    if document["kind"] == "yes/no":
        said = {word for word in words(results[0]) if word in ("yes", "no")}
        return {"right": float(said == set(words(document["answer"])))}
    return {
        "right": float(exact_match(results[0], document["answer"])),
        "word_overlap": word_overlap(results[0], document["answer"]),
    }


def task_of(name: str, file: Path) -> ConfigurableTask:
    """Returns a task: its documents, how each is asked, and its metrics."""
    metrics = ["right", "word_overlap"] if KINDS[name] == "text" else ["right"]
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": lambda document: document["question"],
        "doc_to_visual": lambda document: [open_image(document["image"])],
        "doc_to_target": "answer",
        "process_results": scored,
        "generation_kwargs": {"max_new_tokens": 32},
        "metric_list": [{"metric": one, "aggregation": "mean", "higher_is_better": True} for one in metrics],
    }
    return ConfigurableTask(config=config)


def main(model: str, data: str) -> dict[str, dict]:
    """Runs both tasks, as far as the file has questions of their kind, and returns their figures."""
    documents: dict[str, list[dict]] = {name: [] for name in KINDS}
    for item in read_items("unified", Source(Path(data))):
        for name, kind in KINDS.items():
            if item.metadata["kind"] == kind:
                query = item.query
                document = {"image": str(query.image), "question": query.question, "boxes": query.boxes_px.tolist()}
                documents[name].append(document | {"answer": item.references[0], "kind": kind})
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        tasks = []
        for name, found in documents.items():
            if found:
                file = Path(folder) / f"{name}.jsonl"
                file.write_text("".join(json.dumps(document) + "\n" for document in found))
                tasks.append(task_of(name, file))
        results = simple_evaluate(RegionModel(model), tasks=tasks, bootstrap_iters=200)
    return results["results"]


if __name__ == "__main__":
    for task, figures in main(*sys.argv[1:3]).items():
        sys.stdout.write(f"{task} {json.dumps(figures, default=str)}\n")
