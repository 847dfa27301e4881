"""Manifests: those that are committed, and what is refused with file and key."""

import math

import pytest
import yaml

from cpt_repro.declarations.manifests import Files, load_manifest
from cpt_repro.declarations.runs import Paper
from cpt_repro.declarations.scale import Scale
from cpt_repro.declarations.strict import parse, read_yaml
from cpt_repro.errors import UserError


def refused(action):
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


def test_all_that_are_committed(repository):
    values = {path.stem: read_yaml(path) for path in repository.manifests.glob("*.yaml")}
    manifests = {name: load_manifest(repository, name) for name, value in values.items() if "kind" in value}
    assert len(manifests) >= 11
    for manifest in manifests.values():
        shares = [share for share in manifest.domains.values() if share is not None]
        assert not shares or math.isclose(sum(shares), 1, abs_tol=1e-3)
        if isinstance(manifest, Files):
            assert all(sum(split.domains.values()) == split.documents for split in manifest.splits.values())
            plain = read_yaml(repository.manifests / f"{manifest.name}.yaml")
            for split in plain["splits"].values():
                split.pop("domain_bytes", None)
            assert parse(Files, plain, "a test").digest == manifest.digest  # it decides no text
    slim, german, pile = (manifests[name] for name in ("slimpajama", "german_cc", "pile"))
    assert list(manifests["smoke_weak"].domains.items()) == list(slim.domains.items())
    assert slim.fraction == pytest.approx(299.28 / 606, abs=1e-4)
    assert german.validation_share == pytest.approx(0.9826 / (195.43 + 0.9826), abs=1e-4)
    assert "NOT the papers' data" in pile.note and manifests["pile_deduplicated"].format == "parquet"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("slimpajama", {"validation_share": 0.1}, "either 'splits.validation' or a 'validation_share'"),
        ("slimpajama", {"splits": {"validation": {"files": ["x"]}}}, "'splits' must name train"),
        ("slimpajama", {"domain": None}, "'domain' must say which column"),
        ("slimpajama", {"domain": {"column": "c", "names": {"x": "arxiv"}}}, "must name the same domains"),
        ("slimpajama", {"files_per_part": 2, "parts_per_file": 2}, "cannot both be above 1"),
        ("slimpajama", {"fraction": 0}, "'fraction' is wrong"),
        ("slimpajama", {"dataset": "../../etc"}, "'dataset' is wrong"),
        ("slimpajama", {"format": "csv"}, "'format' is wrong"),
        ("slimpajama", {"kind": "hubs"}, "Did you mean 'hub'?"),
        ("slimpajama", {"name": "other"}, "the key 'name' says 'other'"),
        ("english_broad", {"domains": {"docs": -0.1, "novels": 1.1}}, "'domains"),
        ("english_broad", {"domains": {"docs": 0.8, "novels": 0.3}}, "the shares sum to 1.1"),
        ("english_broad", {"domains": {"docs": 1, "novels": None}}, "every domain a share, or none"),
        ("smoke_weak", {"topic_words": 149}, "successors <= topic_words"),
        ("smoke_weak", {"mixes": {"a": [1, 0]}}, "must name the same domains"),
        ("smoke_weak", {"topics": 3}, "shares that sum to 1"),
        ("smoke_weak", {"words": {"train": 10**12, "validation": 1}}, "'words.train' is wrong"),
        ("smoke_weak", {"document_words": [1, 10**7]}, "'document_words.1' is wrong"),
        ("smoke_weak", {"domains": {f"d{k}": 1e-3 for k in range(1001)}}, "at most 1000 items"),
        ("smoke_weak", {"vocabulary": {"seed": 1, "words": 10, "shapes": ["c" * 21]}}, "vocabulary.shapes.0"),
        (
            "smoke_weak",
            {"vocabulary": {"seed": 1, "words": 10**5, "shapes": ["cvcvcv"]}, "topic_words": 10**5},
            "topics * topic_words^2",
        ),
    ],
)
def test_contradictions_are_refused(third_project, name, change, message):
    path = third_project.manifests / f"{name}.yaml"
    path.write_text(yaml.safe_dump(read_yaml(path) | change), encoding="utf-8")
    text = refused(lambda: load_manifest(third_project, name))
    assert f"{path}: " in text and message in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda of: {**of, "poems": 1}, "must name the same domains"),
        (lambda of: {**of, "docs": of["docs"] + 1}, "domain_bytes sum to"),
    ],
)
def test_bytes_of_domains_must_fit(third_project, change, message):
    path = third_project.manifests / "english_broad.yaml"
    value = read_yaml(path)
    train = value["splits"]["train"]
    load_manifest(third_project, "english_broad")
    train["domain_bytes"] = change(train["domain_bytes"])
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    assert message in refused(lambda: load_manifest(third_project, "english_broad"))


def test_an_unknown_one_is_told_with_the_known(repository):
    assert "Did you mean 'slimpajama'?" in refused(lambda: load_manifest(repository, "slimpajam"))


OUTSIDE = [
    "../../x",
    "/etc/x",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    ".hidden",
    "a\n",
    "a\nb",
    "a\0b",
    "a;b",
    "$(b)",
    "a'b",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_a_folder(third_project, name):
    path = third_project.manifests / "english_broad.yaml"
    value = read_yaml(path)
    train = {"splits": value["splits"] | {"train": value["splits"]["train"] | {"file": name}}}
    for change, key in ((train, "splits.train.file"), ({"domains": {"docs": 1, name: 0}}, "domains.")):
        path.write_text(yaml.safe_dump(value | change), encoding="utf-8")
        assert f"{path}: the key '{key}" in refused(lambda: load_manifest(third_project, "english_broad"))
    scale = read_yaml(third_project.scales / "smoke.yaml")
    for key, change in (
        ("name", name),
        ("corpora", scale["corpora"] | {name: "smoke_weak"}),
        ("corpora", scale["corpora"] | {"sp": name}),
        ("models", scale["models"] | {name: None}),
        ("suites", scale["suites"] | {name: next(iter(scale["suites"].values()))}),
    ):
        changed = scale | {key: change}
        assert f"a test: the key '{key}" in refused(lambda changed=changed: parse(Scale, changed, "a test"))
    paper = read_yaml(third_project.papers / "third2026" / "runs.yaml")
    run = paper["runs"]["large"]
    for outside in (
        (name, f"a/{name}", f"{name}/a") if name != "a/b" else ()
    ):  # a slash is part of a run's name
        changed = paper | {"runs": {outside: run}}
        assert "a test: the key 'runs." in refused(lambda changed=changed: parse(Paper, changed, "a test"))
