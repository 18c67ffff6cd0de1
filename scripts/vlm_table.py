"""Writes the table of vision-language families and what was tried with each, from the reports of tests/vlm.

    python -m pytest -m "slow or not slow" tests/vlm --junitxml=vlm.xml
    python scripts/vlm_table.py vlm.xml

Of several reports the last one counts. An entry is `yes`, `no` where a test fails, or empty where it was not run.
"""

from __future__ import annotations

import sys
from xml.etree import ElementTree

COLUMNS = {
    "without boxes, the base's to the bit": "without_boxes_logits_and_tokens_are_the_bases_to_the_bit",
    "its own prompt": "a_prompt_is_what_the_bases_own_processor_writes",
    "permutation": "permuted_boxes_permute_their_embeddings",
    "gradients": "gradients_reach_the_region_encoder_alone",
    "cache, beams": "tokens_with_a_cache_are_those_without",
    "mixed batch": "a_batch_of_sizes_and_numbers_of_boxes_is_as_each_sample_alone",
    "round trip": "a_saved_folder_is_the_bases_with_a_region_encoder_beside_it",
    "painted boxes": "what_changes_in_a_box_changes_most_in_its_own_cells",
    "ramp": "boxes_on_a_ramp_pool_the_coordinates_of_their_centers",
    "engine": "the_engine_answers_token_by_token_as_the_base_generates",
    "many boxes": "describe_answers_many_boxes_as_each_alone",
    "explain": "an_explanation_is_what_the_likelihood_loses",
    "stages 1 and 2, resumed to the bit": "each_stage_trains_its_modules_of_a_base",
    "loss falls": "the_loss_falls_in_stage_1",
    "LoRA step, `describe`": "adapters_on_a_base_are_trained_and_both_are_described",
}


def main(paths: list[str]) -> str:
    """Returns the table in Markdown."""
    found: dict[str, dict[str, set[str]]] = {}
    losses: dict[str, str] = {}
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            name, _, rest = case.get("name", "").removeprefix("test_").partition("[")
            column = next((title for title, test in COLUMNS.items() if name.startswith(test)), None)
            family = next((part for part in reversed(rest.rstrip("]").split("-")) if "size" not in part), "")
            if column is None or not family or case.find("skipped") is not None:
                continue
            failed = case.find("failure") is not None or case.find("error") is not None
            found.setdefault(family, {}).setdefault(column, set()).add("no" if failed else "yes")
            for value in case.iter("property"):
                losses[family] = str(value.get("value"))
    lines = [f"| set-up | {' | '.join([*COLUMNS, 'loss'])} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for family, row in found.items():
        cells = ["no" if "no" in row.get(title, ()) else "".join(row.get(title, ())) for title in COLUMNS]
        lines.append(f"| {family} | {' | '.join([*cells, losses.get(family, '')])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
