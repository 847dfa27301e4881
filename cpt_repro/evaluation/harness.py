"""The one module that knows lm-eval: it scores models on a scale's suites (see `suites.py`), without a network."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# All data is local: no library may look for anything outside, not even for a newer version of it.
for _switch in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(_switch, "1")

import datasets  # noqa: E402
import lm_eval.api.task  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from lm_eval.evaluator import evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from safetensors import SafetensorError  # noqa: E402

from cpt_repro.data.tokenizer import verify_tokenizer  # noqa: E402
from cpt_repro.declarations.scale import Scale, read_yaml  # noqa: E402
from cpt_repro.errors import UserError  # noqa: E402
from cpt_repro.evaluation.suites import metric, suites_folder, verify_suites  # noqa: E402

#: Requests in one forward pass, and tokens in it at most (logits of a vocabulary of 50,000 take 200 kB a token). Fixed
#: for a scale, because padding and so the last bits of a likelihood depend on it.
BATCH_SIZE, BATCH_TOKENS = 64, 32_768

_MIXED_PRECISION = {"fp32": None, "amp_bf16": "bfloat16", "amp_fp16": "float16"}


def environment() -> dict[str, Any]:
    """Versions of what computes a score, and the intra-op threads: scores are bit-identical when these agree."""
    return {
        "lm_eval": lm_eval.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def mean_and_error(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Plain mean of a suite's tasks and its standard error, the tasks' errors being independent: sqrt(sum e^2) / n."""
    return math.fsum(values) / len(values), math.sqrt(math.fsum(e * e for e in errors)) / len(errors)


def load_model(folder: Path) -> transformers.PreTrainedModel:
    """Reads a model folder (`config.json`, `model.safetensors`) in float32, for inference."""
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"not a model folder: {name} is missing.", where=str(folder), do="Train the model first."
            )
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        fault = f"the model cannot be read ({' '.join(str(error).split())[:300]})."
        raise UserError(fault, where=str(folder), do="Train the model again.") from None
    return model.eval()


def load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """Reads a folder with a fast tokenizer."""
    if not (Path(folder) / "tokenizer.json").is_file():
        do = "Prepare the data of this scale first."
        raise UserError("not a tokenizer folder: tokenizer.json is missing.", where=str(folder), do=do)
    verify_tokenizer(Path(folder))
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _rows(file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """A task's items as lm-eval's test split, in memory: the json loader of `datasets` would cache by machine path."""
    with open(file, encoding="utf-8") as stream:
        return {"test": datasets.Dataset.from_list([json.loads(line) for line in stream])}


class _Model(HFLM):
    """lm-eval's model, silent, with tokenized pairs shared between models (they all use one tokenizer)."""

    def __init__(self, *, encoded: dict, **arguments: Any):
        super().__init__(**arguments)
        self.encoded = encoded

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        pair = (context, continuation)
        if pair not in self.encoded:
            self.encoded[pair] = super()._encode_pair(context, continuation)
        return self.encoded[pair]

    def loglikelihood(self, requests: list, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list, disable_tqdm: bool = True) -> list[str]:
        return super().generate_until(requests, disable_tqdm=True)


def _true_share(item: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """mc2 of one item: the share of the probability of all choices that its true ones have (Lin et al. 2022)."""
    likelihoods = torch.tensor([likelihood for likelihood, _ in results], dtype=torch.float64)
    share = float(torch.softmax(likelihoods, dim=0) @ torch.tensor(item["labels"], dtype=torch.float64))
    return {"mc2": min(share, 1.0)}  # rounding may lift a sum of all above 1


class Harness:
    """The suites of a scale, loaded once, to score any number of models in one process.

    `root` is the scale's data folder, with `suites/` (made by `build_suites`) and `tokenizer/`.
    """

    def __init__(self, scale: Scale, root: Path):
        self.scale = scale
        self.batch_size = max(1, min(BATCH_SIZE, BATCH_TOKENS // scale.sequence_length))
        self.device = "cuda" if scale.device == "gpu" else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                f"the scale '{scale.name}' needs a GPU, and there is none.", do="Choose a scale for CPUs."
            )
        folder = suites_folder(root)
        #: Hash of the task files; scores are comparable only where it agrees.
        self.fingerprint: str = verify_suites(root)
        self.tokenizer_dir = Path(root) / "tokenizer"
        self.tokenizer = load_tokenizer(self.tokenizer_dir)
        self._encoded: dict = {}
        self._prompts: dict[str, int] = {}
        _silence()
        configs = []
        for suite_name, suite in scale.suites.items():
            for task_name, task in suite.tasks.items():
                config = read_yaml(folder / suite_name / f"{task_name}.yaml")
                # The file names its items relative to itself, which lm-eval would take from the current folder.
                config["custom_dataset"] = _rows
                config["dataset_kwargs"] = {"file": str(folder / suite_name / f"{task_name}.jsonl")}
                if metric(task) == "mc2":
                    config["process_results"] = _true_share
                configs.append(config)
        # lm-eval's own index of some ten thousand tasks is not needed, and takes seconds to read.
        self._tasks = TaskManager(include_defaults=False).load(configs) if configs else None

    def evaluate(
        self, model: Path | str | transformers.PreTrainedModel, limit: int | None = None
    ) -> dict[str, Any]:
        """Scores a model (or the folder of one) on every task; with `limit`, on the first `limit` >= 2 items of each.

        Returns {suite: {"tasks": {task: score}, "average", "stderr"}}, where a score is {"metric", "value", "stderr",
        "documents", "truncated"}. Values are shares of right answers in [0, 1], errors one standard error over items;
        `average` is the plain mean of the tasks, as in the papers (Ibrahim 2024, Tables 5-7, 10, 11); `truncated`
        counts the items longer than the model's context (with their longest choice, or the longest answer that may be
        generated); they lose tokens at the left.
        """
        if limit is not None and limit < 2:
            raise UserError(f"'limit' is {limit}; a standard error needs 2 items or more.", do="Raise it.")
        if self._tasks is None:
            return {}
        if not isinstance(model, transformers.PreTrainedModel):
            model = load_model(Path(model))
        if len(self.tokenizer) > model.config.vocab_size:
            what = f"the tokenizer has {len(self.tokenizer)} entries, the model {model.config.vocab_size}."
            raise UserError(what, do="Evaluate the model with the data it was trained on.")
        if model.config.max_position_embeddings < self.scale.sequence_length:
            what = f"the model's context is {model.config.max_position_embeddings} tokens, the scale's sequences are "
            raise UserError(
                f"{what}{self.scale.sequence_length}.", do="Evaluate models trained at this scale."
            )
        was_training = model.training
        lm = _Model(
            pretrained=model.to(self.device),
            tokenizer=self.tokenizer,
            backend="causal",
            batch_size=self.batch_size,
            max_length=model.config.max_position_embeddings,
            mixed_precision_dtype=_MIXED_PRECISION[self.scale.precision],
            softmax_dtype="float32",
            encoded=self._encoded,
        )
        try:
            output = evaluate(lm=lm, task_dict=self._tasks, limit=limit, bootstrap_iters=1, log_samples=False)
        finally:
            model.train(was_training)
        results = {}
        for suite_name, suite in self.scale.suites.items():
            tasks = {}
            for task_name, task in suite.tasks.items():
                name, score = metric(task), output["results"][f"{suite_name}.{task_name}"]
                instances = self._tasks["tasks"][f"{suite_name}.{task_name}"].instances
                tasks[task_name] = {
                    "metric": name,
                    "value": float(score[f"{name},none"]),
                    "stderr": float(score[f"{name}_stderr,none"]),
                    "documents": len({instance.doc_id for instance in instances}),
                    "truncated": len(
                        {i.doc_id for i in instances if self._tokens(i.args) > lm.max_length + 1}
                    ),
                }
            average, stderr = mean_and_error(
                [task["value"] for task in tasks.values()], [task["stderr"] for task in tasks.values()]
            )
            results[suite_name] = {"tasks": tasks, "average": average, "stderr": stderr}
        return results

    def _tokens(self, asked: tuple[str, str | dict[str, Any]]) -> int:
        """Tokens of a prompt and a choice, or of a prompt and what is generated at most."""
        prompt, then = asked
        if isinstance(then, dict):
            if prompt not in self._prompts:
                self._prompts[prompt] = len(self.tokenizer(prompt).input_ids)
            # One more than a choice: the last token of a choice is not read.
            return self._prompts[prompt] + then["max_gen_toks"] + 1
        context, continuation = self._encoded[asked]
        return len(context) + len(continuation)


def _silence() -> None:
    """lm-eval, transformers and datasets report only errors, and draw no progress bars."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    # Building requests is the one step whose progress bar lm-eval offers no way to turn off.
    if not isinstance(lm_eval.api.task.tqdm, functools.partial):
        lm_eval.api.task.tqdm = functools.partial(lm_eval.api.task.tqdm, disable=True)
