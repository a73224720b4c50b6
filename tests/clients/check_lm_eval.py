"""lm-evaluation-harness measures the service, and gets what its own `hf` backend gets from the same model.

Arguments: the service's URL up to /v1, its key, and the model's directory. Prints the figures of both.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

TASKS = ("support_choices", "support_perplexity")


def measure(backend: str, **arguments: Any) -> tuple[dict[str, float], list[float]]:
    """Returns the metrics of all tasks, by task and name, and the log-likelihood of each choice of each question."""
    found = lm_eval.simple_evaluate(
        model=backend,
        model_args=arguments,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(Path(__file__).parent / "lm_eval"), include_defaults=False),
        bootstrap_iters=0,
        batch_size=4,
    )
    metrics = {
        f"{task} {metric.removesuffix(',none')}": value
        for task in TASKS
        for metric, value in found["results"][task].items()
        if metric.endswith(",none") and isinstance(value, float) and "stderr" not in metric
    }
    questions = sorted(found["samples"][TASKS[0]], key=lambda question: question["doc_id"])
    return metrics, [float(logprob) for question in questions for logprob, _ in question["filtered_resps"]]


def main(url: str, key: str, model: str) -> None:
    os.environ["OPENAI_API_KEY"] = key
    os.chdir(Path(__file__).parent / "lm_eval")  # the tasks name their files
    served, likelihoods = measure(
        "local-completions", base_url=f"{url}/completions", model="base", tokenizer=model, max_length=1024
    )
    own, own_likelihoods = measure("hf", pretrained=model, device="cpu", dtype="float32", max_length=1024)
    print(json.dumps({"served": served, "own": own}, indent=1))
    assert served.keys() == own.keys()
    assert len(served) == 5
    for name, value in own.items():
        assert math.isclose(served[name], value, rel_tol=1e-3), name
    assert len(likelihoods) == 32
    for one, other in zip(likelihoods, own_likelihoods, strict=True):
        assert math.isclose(one, other, abs_tol=1e-2), (one, other)


if __name__ == "__main__":
    main(*sys.argv[1:])
