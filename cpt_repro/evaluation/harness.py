"""The one module that knows lm-eval: scores models on a scale's suites (`suites.py`), without a network."""

from __future__ import annotations

import functools
import logging
import os
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# All data is local: no library may look for anything outside, not even for a newer version of it.
for _switch in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(_switch, "1")

import datasets  # noqa: E402
import lm_eval  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from lm_eval.api import task as lm_eval_task  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.evaluator import evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from cpt_repro.data import tokenizer as trained_tokenizer  # noqa: E402
from cpt_repro.declarations.scale import Scale  # noqa: E402
from cpt_repro.errors import UserError  # noqa: E402
from cpt_repro.evaluation.items import kind_of  # noqa: E402
from cpt_repro.evaluation.suites import LoadedTask, read_suites, suites_record  # noqa: E402
from cpt_repro.files import file_digest  # noqa: E402
from cpt_repro.project import Project  # noqa: E402
from cpt_repro.records.receipts import Score, SuiteScores  # noqa: E402

#: Requests in one forward pass, and tokens in it at most (logits of a vocabulary of 50,000 take 200 kB a
#: token). Fixed for a scale, because padding and so the last bits of a likelihood depend on it.
BATCH_SIZE, BATCH_TOKENS = 64, 32_768
_MIXED_PRECISION = {"fp32": None, "amp_bf16": "bfloat16", "amp_fp16": "float16"}
# The progress bar of its requests cannot be turned off.
lm_eval_task.tqdm = functools.partial(lm_eval_task.tqdm, disable=True)


def load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerFast:
    """Reads the `tokenizer.json` that data was made with; one that is altered or unfit is a `UserError`.

    What else lies in the folder is not read: it could name code.
    """
    trained_tokenizer.verify_tokenizer(folder)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), trained_tokenizer.END_OF_TEXT)
    read = trained_tokenizer.load_tokenizer(folder)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=read, clean_up_tokenization_spaces=False, **special
    )


def _task(name: str, task: LoadedTask) -> ConfigurableTask:
    """lm-eval's task over items in memory: every key of its configuration names a field of them."""
    rows = [item.model_dump(mode="json", exclude_defaults=True) for item in task.items]
    scoring = task.scoring.model_dump(mode="json")
    metric = {"metric": scoring["metric"], "aggregation": "mean", "higher_is_better": True}
    config = {
        **{"task": name, "output_type": scoring["output_type"], **kind_of(task.scoring).KEYS},
        "metadata": {"declaration": task.declaration},
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "metric_list": [metric | scoring["metric_options"]],
        "num_fewshot": 0,  # the examples are in the items
    }
    if scoring["generation_kwargs"]:
        filters = [{"function": "remove_whitespace"}, {"function": "take_first"}]
        config["generation_kwargs"] = scoring["generation_kwargs"]
        config["filter_list"] = [{"name": "none", "filter": filters}]
    if scoring["metric"] == "mc2":
        config["process_results"] = _true_share
    made = ConfigurableTask(config=config)
    made.dataset["test"] = list(made.dataset["test"])  # it decodes a row anew whenever that is asked for
    return made


def _true_share(item: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """mc2 of one item: the share of all choices' probability that its true ones have (Lin et al. 2022)."""
    likelihoods = torch.tensor([likelihood for likelihood, _ in results], dtype=torch.float64)
    share = float(torch.softmax(likelihoods, dim=0) @ torch.tensor(item["labels"], dtype=torch.float64))
    return {"mc2": min(share, 1.0)}  # rounding may lift a sum of all above 1


class _Model(HFLM):
    """lm-eval's model, silent, all texts of a task tokenised at once, logits made where they are asked for.

    Those three took most of its time on small models.
    """

    generate_until = functools.partialmethod(HFLM.generate_until, disable_tqdm=True)
    #: Text -> its tokens: the harness's, for all models.
    known: dict[str, array[int]]

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        asked = [request.args for request in requests]
        texts = {context.rstrip() for context, _ in asked} | {context + choice for context, choice in asked}
        begin = self.tokenizer.decode(self.prefix_token_id)  # which lm-eval sees to
        if plain := sorted(text for text in texts - self.known.keys() if text and not text.startswith(begin)):
            tokens = self.tokenizer(plain).input_ids
            self.known |= {text: array("I", each) for text, each in zip(plain, tokens, strict=True)}
        return super().loglikelihood(requests, disable_tqdm=True)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        if add_special_tokens is None and not options and string in self.known:
            return self.known[string].tolist()
        return super().tok_encode(string, add_special_tokens, **options)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        pair = super()._encode_pair(context, continuation)
        if (length := len(pair[1])) > self.max_length:
            what = f"a choice has {length} tokens, and the model's context {self.max_length}."
            raise UserError(what, do="Evaluate a model with a longer context, or leave the task out.")
        return pair

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, in nats, and whether it is what the model would have said.

        A request is (anything, tokens of its context, tokens of its continuation). What several ask the model
        to read is read once; contexts that are too long lose tokens at the left.
        """
        asked: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, (_, context, continuation) in enumerate(requests):
            asked[tuple((context + continuation)[-self.max_length - 1 : -1])].append(place)
        texts = sorted(asked, key=lambda read: (-len(read), read))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for first in range(0, len(texts), self.batch_size):
            batch = texts[first : first + self.batch_size]
            places = [(row, place) for row, read in enumerate(batch) for place in asked[read]]
            wanted = [
                (row, len(batch[row]) - len(requests[place][2]) + k, token)
                for row, place in places
                for k, token in enumerate(requests[place][2])
            ]
            likelihoods, greedy = self._likelihoods(batch, wanted)
            end = 0
            for _, place in places:
                begin, end = end, end + len(requests[place][2])
                answers[place] = sum(likelihoods[begin:end]), all(greedy[begin:end])
        return answers

    def _likelihoods(
        self, batch: Sequence[Sequence[int]], wanted: Sequence[tuple[int, int, int]]
    ) -> tuple[list[float], list[bool]]:
        """Of (text, place, token): the log-likelihood of that token next, and whether it is the likeliest."""
        texts = [torch.tensor(text, dtype=torch.long) for text in batch]
        read = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(self.device)
        # Without a mask transformers builds one by tracing, in a third of the time; what is asked for comes
        # before the padding. A bare mixed precision is lm-eval's own.
        kind, half = self.device.type, self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(kind, dtype=half, enabled=half is not None):
            mask = torch.ones_like(read, dtype=torch.bool)
            hidden = self.model.base_model(read, attention_mask=mask, use_cache=False).last_hidden_state
            rows, places, targets = torch.tensor(wanted, device=self.device).unbind(dim=1)
            logits = self.model.get_output_embeddings()(hidden[rows, places])
        every = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        likelihoods = every.gather(1, targets[:, None]).squeeze(1)
        return likelihoods.tolist(), (likelihoods == every.amax(dim=-1)).tolist()

    def tokens(self, asked: tuple[str, str | dict[str, Any]]) -> int:
        """Tokens that it reads of a prompt and a choice, or of a prompt and what is generated at most."""
        prompt, then = asked
        if isinstance(then, dict):
            return len(self.tokenizer(prompt).input_ids) + then["max_gen_toks"]
        context, continuation = self._encode_pair(prompt, then)
        return len(context) + len(continuation) - 1  # the last is not read


class Harness:
    """The suites of a scale, loaded once, to score any number of models in one process.

    `data`: corpus -> digest of what decides its tokens (`Plan.data`), by which items are known to be current.
    """

    def __init__(self, project: Project, scale: Scale, data: Mapping[str, str]):
        self.scale = scale
        self.batch_size = max(1, min(BATCH_SIZE, BATCH_TOKENS // scale.sequence_length))
        self.device = "cuda" if scale.device == "gpu" else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            what = f"the scale '{scale.name}' needs a GPU, and there is none."
            raise UserError(what, do="Choose a scale for CPUs.")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        transformers.logging.set_verbosity_error()
        loaded = read_suites(project, scale, data)
        #: Hash of all items and what they were made from.
        self.fingerprint = file_digest(suites_record(project, scale))
        self.tokenizer = load_tokenizer(project.data / scale.name / "tokenizer")
        #: What computes a score: scores are bit-identical where this agrees.
        self.environment = {lib.__name__: lib.__version__ for lib in (lm_eval, transformers, torch)}
        self.environment |= {"threads": str(torch.get_num_threads()), "batch_size": str(self.batch_size)}
        self._known: dict[str, array[int]] = {}
        self._tasks = {
            suite: {name: _task(f"{suite}.{name}", task) for name, task in tasks.items()}
            for suite, tasks in loaded.items()
        }

    def evaluate(
        self, model: transformers.PreTrainedModel, known: Mapping[str, SuiteScores] | None = None
    ) -> dict[str, SuiteScores]:
        """Scores a model, moved to the scale's device, on all tasks, by suite.

        Scores in `known` are kept where their declaration is the task's; each task is scored by itself, so
        that no score depends on which others there are. Values are shares of right answers in [0, 1], errors
        one standard error over items. `truncated` counts the items longer than the model's context (with
        their longest choice, or the longest answer that may be generated); they lose tokens at the left.
        """
        lm, suites, known = self._model(model), {}, known or {}
        for suite, tasks in self._tasks.items():
            scores = dict(known[suite].tasks) if suite in known else {}
            for name, task in tasks.items():
                if name not in scores or scores[name].declaration != task.config.metadata["declaration"]:
                    scores[name] = self._score(lm, task)
            suites[suite] = SuiteScores(tasks={name: scores[name] for name in tasks})
        return suites

    def _model(self, model: transformers.PreTrainedModel) -> _Model:
        """A model as lm-eval takes it; one that does not fit the scale's data is a `UserError`."""
        context, entries = model.config.max_position_embeddings, model.config.vocab_size
        if len(self.tokenizer) > entries:
            what = f"the tokenizer has {len(self.tokenizer)} entries, the model {entries}."
            raise UserError(what, do="Evaluate the model with the data it was trained on.")
        if context < self.scale.sequence_length:
            what = f"the model's context is {context} tokens, the scale's {self.scale.sequence_length}."
            raise UserError(what, do="Evaluate models trained at this scale.")
        lm = _Model(
            pretrained=model.to(self.device),
            tokenizer=self.tokenizer,
            backend="causal",
            batch_size=self.batch_size,
            max_length=context,
            mixed_precision_dtype=_MIXED_PRECISION[self.scale.precision],
        )
        lm.known = self._known
        return lm

    def _score(self, lm: _Model, task: ConfigurableTask) -> Score:
        name, metric = task.config.task, task.config.metric_list[0]["metric"]
        output = evaluate(lm=lm, task_dict={"tasks": {name: task}}, bootstrap_iters=1)
        result = output["results"][name]
        too_long = {one.doc_id for one in task.instances if lm.tokens(one.args) > lm.max_length}
        return Score(
            metric=metric,
            value=float(result[f"{metric},none"]),
            stderr=float(result[f"{metric}_stderr,none"]),
            documents=len(task.eval_docs),
            truncated=len(too_long),
            right=Score.packed([answer[metric] for answer in output["samples"][name]]),
            declaration=task.config.metadata["declaration"],
        )
