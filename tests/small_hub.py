"""Small data sets of the published benchmarks, a copy of the hub: columns and quirks of the real ones."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet


def arc(question: str, texts: list[str], key: str, labels: str = "ABCDE", **more) -> dict:
    choices = {"text": texts, "label": list(labels[: len(texts)])}
    return {"id": question[:6], "question": question, "choices": choices, "answerKey": key, **more}


def arc_de(question: str, texts: list[str], key: str) -> dict:
    choices = {"text": texts, "label": list("ABCD")}
    return arc("en", texts, key, question_de=question, choices_de=choices)


def hellaswag(label: str, ctx_b: str, *endings: str) -> dict:
    ctx = {"ctx_a": "[header] How to bake [title] Mix it.", "ctx_b": ctx_b, "ctx": "unused"}
    return {"activity_label": "Baking bread", **ctx, "endings": list(endings), "label": label}


def hellaswag_de(label: str, endings_de: list[str]) -> dict:
    ctx = "Wie man backt [title] Teig ruhen lassen. Dann"
    labelled = {"activity_label_de": "Brot backen", "ctx_de": ctx, "label": label}
    return labelled | {"endings": ["a", "b", "c", "d"], "endings_de": endings_de}


def mmlu(subject: str, number: int) -> dict:
    choices = [f"{number + k} stars" for k in range(4)]
    question = f" How many in {subject} {number}? "
    return {"question": question, "subject": subject, "choices": choices, "answer": number % 4}


def mmlu_de(number: int, letters: bool = False) -> dict:
    choices = [f"{number + k} Sterne" for k in range(4)]
    answer = "ABCD"[number % 4] if letters else number % 4
    asked = {"question": "unused", "question_de": f"Wie viele {number}?"}
    return asked | {"choices_de": choices, "answer": answer}


def truthful(question: str, true: list[str], false: list[str], suffix: str = "") -> dict:
    mc1 = {"choices": [true[0], *false], "labels": [1] + [0] * len(false)}
    mc2 = {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)}
    return {f"question{suffix}": question, f"mc1_targets{suffix}": mc1, f"mc2_targets{suffix}": mc2}


def trivia(question: str, *aliases: str) -> dict:
    answer = {"aliases": list(aliases), "value": aliases[0]}
    return {"question": question, "question_id": "q", "answer": answer}


def winogrande(sentence: str, option1: str, option2: str, answer: str) -> dict:
    return {"sentence": sentence, "option1": option1, "option2": option2, "answer": answer}


SUBJECTS = ("anatomy", "high_school_european_history")
FOUR = ["a rock", "the warm sea", "old light", "rain"]
HUB = {
    "Rowan/hellaswag": {
        "data/validation-00000-of-00001.parquet": [
            hellaswag(
                "2", "she", "waits.", "[step] eats  it [title] now.", "kneads dough.", "runs away from it."
            ),
            hellaswag("0", "", "puts it in.", "sings.", "flies over the sea.", "sleeps."),
            *(
                hellaswag(f"{n % 4}", f"he {n}", "waits a very long time.", "reads.", "calls", "eats")
                for n in range(9)
            ),
        ]
    },
    "allenai/ai2_arc": {
        "ARC-Challenge/test-00000-of-00001.parquet": [
            arc("What is hot?", FOUR, "B"),
            arc("What is wet?", FOUR[:3], "2", "12345"),
            arc("Which is heavy?", [*FOUR, "air"], "E"),
        ],
        "ARC-Easy/test-00000-of-00001.parquet": [
            arc(question, FOUR, key) for question, key in (("What falls?", "D"), ("What shines?", "C"))
        ],
    },
    "aps/super_glue": {
        "boolq/validation-00000-of-00001.parquet": [
            {"passage": "Bread -- Bread is baked.", "question": "is bread baked", "idx": 0, "label": 1},
            {"passage": "Sea -- The sea is wet.", "question": "is the sea dry", "idx": 1, "label": 0},
        ]
    },
    "regisss/math_qa": {
        "data/test-00000-of-00001.parquet": [
            {
                "Problem": "what is 19 * 2 ?",
                "correct": "a",
                "options": "a ) 38 , b ) 27.675 , c ) rs . 1,200 , d ) 3 / 4 , e ) none of these",
            },
            {"Problem": "half of 9 ?", "options": "a ) 3 , b ) 4 , c ) 4.5 , d ) 5 , e ) 6", "correct": "c"},
        ]
    },
    "cais/mmlu": {
        "all/test-00000-of-00001.parquet": [mmlu(subject, n) for n in (1, 2) for subject in SUBJECTS],
        "all/dev-00000-of-00001.parquet": [mmlu(subject, 10 + n) for n in range(6) for subject in SUBJECTS],
    },
    "allenai/openbookqa": {
        "main/test-00000-of-00001.parquet": [
            arc("x", FOUR, " C", question_stem="Bread is made from"),
            arc("x", FOUR, "A", question_stem="Rain falls on"),
        ]
    },
    "baber/piqa": {
        "piqa_validation.parquet": [
            {"goal": "to bake", "sol1": "heat it", "sol2": "freeze it", "label": 0},
            {"goal": "to sleep", "sol1": "run", "sol2": "lie down", "label": 1},
        ],
        "piqa_train.parquet": [{"goal": "other", "sol1": "x", "sol2": "y", "label": 0}],
    },
    "allenai/winogrande": {
        "winogrande_xl/validation-00000-of-00001.parquet": [
            winogrande("The cup did not fit the box as _ was large.", "the cup", "the box", "1"),
            winogrande("Ann thanked Bea, so _ smiled at the old_house.", "Ann", "Bea", "2"),
            winogrande("Ann thanked Bea, so _ smiled at the old_house.", "Ann", "Bea", "1"),
        ]
    },
    "truthfulqa/truthful_qa": {
        "multiple_choice/validation-00000-of-00001.parquet": [
            truthful(
                "Is the sea dry?", ["No, it is wet", "It is not"], ["Yes", "Only at night", "Nobody knows"]
            ),
            truthful("Do stars sing?", ["They do not"], ["They do"]),
            truthful("Is old light heavy?", ["No", "It is not", "Light"], ["It is", "Old light is heavy"]),
        ]
    },
    "google-research-datasets/nq_open": {
        "nq_open/validation-00000-of-00001.parquet": [
            {"question": "who bakes bread", "answer": ["The Baker", "bakers"]},
            {"question": "where is the sea", "answer": ["here"]},
        ],
        "nq_open/train-00000-of-00001.parquet": [
            {"question": f"how many {n}", "answer": [f"{n}"]} for n in range(9)
        ],
    },
    "mandarjoshi/trivia_qa": {
        "rc.nocontext/validation-00000-of-00001.parquet": [
            trivia("Who sang?", "Ann", "Ann B."),
            trivia("Who?", "Bea"),
        ],
        "rc.nocontext/train-00000-of-00002.parquet": [trivia(f"Number {n}?", f"{n}", "x") for n in range(6)],
        "rc.nocontext/train-00001-of-00002.parquet": [
            trivia(f"Number {n}?", f"{n}", "x") for n in range(6, 9)
        ],
    },
    "LeoLM/ArcChallenge_de": {
        "data/test-00000-of-00001-a0c917350be4ccd9.parquet": [
            arc_de("Was ist heiß?", ["ein Stein", "das Meer", "Licht", "Regen"], "B"),
            arc_de("Was ist naß?", ["Öl", "das Meer", "Licht", "Regen"], "4"),
        ]
    },
    "LeoLM/HellaSwag_de": {
        "data/validation-00000-of-00001-14a85ccef5697e9c.parquet": [
            hellaswag_de("1", ["wartet er.", "bäckt er es [title] Fertig.", "singt er.", "läuft er."]),
            hellaswag_de("3", ["wartet er.", "bäckt er."]),  # not wholly translated
            hellaswag_de("0", ["schläft er.", "", "singt er.", "läuft er."]),  # nor this
            hellaswag_de("0", ["schläft er.", "liest er.", "singt er.", "läuft er."]),
        ]
    },
    "LeoLM/MMLU_de": {
        **{
            f"data/{subject}.parquet": [mmlu_de(n, subject == "anatomy") for n in (1, 2)]
            for subject in SUBJECTS
        },
        **{f"val/{subject}.parquet": [mmlu_de(10 + n) for n in range(7)] for subject in SUBJECTS},
    },
    "LeoLM/TruthfulQA_de": {
        "data/validation-00000-of-00001-d71b7168f282865a.parquet": [
            truthful("Ist das Meer naß?", ["Ja"], ["Nein", "Nur nachts"], "_de"),
            truthful("", ["Ja"], ["Nein"], "_de"),  # not translated
            truthful("Singen Sterne?", ["Sie singen nicht"], ["Sie singen"], "_de"),
        ]
    },
}


def write_hub(root: Path, files: dict = HUB) -> None:
    """A copy of the hub; files whose name says so are JSON lines."""
    for repository, there in files.items():
        for name, rows in there.items():
            path = root / "datasets" / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".parquet"):
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            else:
                path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
