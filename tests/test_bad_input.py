"""Whatever stands in a declaration or a record, it is read and makes sense, or there is one `UserError`."""

import copy
import json
import string

import pytest
import yaml
from exhibit_receipts import make_results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpt_repro import config, papers, published
from cpt_repro import manifests as manifest
from cpt_repro.declarations.claims import load_claims, parse_claims
from cpt_repro.project import MANIFESTS, PAPERS, SCALES
from cpt_repro.declarations.scale import Scale, load_scale
from cpt_repro.declarations.strict import load, parse, read_yaml
from cpt_repro.errors import UserError
from cpt_repro.exhibits import declarations
from cpt_repro.files import read_json
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import (
    evaluation_path,
    read_evaluation,
    read_fingerprint,
    read_receipt,
    receipt_path,
)

# Same examples every time, and no clock: a busy machine is no fault.
settings.register_profile("calm", deadline=None, derandomize=True)
settings.load_profile("calm")
CALM = {"suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}

NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 0.5, -0.0, 7, 1e-9, 1e-320, 1e6, 1e308, 2**31, 2**64, -(2**64), 10**400]
    + [float("inf"), float("-inf"), float("nan")]
)
WORDS = st.sampled_from(
    [
        "",
        " ",
        "a",
        "pile",
        "sp",
        "sp/9",
        "405m",
        "405m/pile",
        "figure_99",
        "table_02",
        "../../x",
        "/etc/passwd",
        "{x}",
    ]
    + ["a\nb", "\0", "é" * 300, "1e999", "NaN", "null", "*", "[", "+", "- -", "smoke_upstream", "cosine"]
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
VALUES = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=3),
    st.dictionaries(st.one_of(WORDS, st.sampled_from([1, None, True])), PLAIN, max_size=2),
)
#: (which node, what is done to it, with what)
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.sampled_from(["set", "drop", "rename", "add", "twice"]), VALUES
    ),
    min_size=1,
    max_size=3,
)


def places(value, path=()):
    """Every (container, key) below `value`."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in list(children):
        yield value, key
        yield from places(child)


def changed(value, changes):
    """A copy of `value` with some nodes changed."""
    value = copy.deepcopy(value)
    for where, what, given_ in changes:
        found = list(places(value))
        if not found:
            break
        container, key = found[int(where * len(found))]
        if what == "drop":
            del container[key]
        elif what == "rename":
            if isinstance(container[key], str):  # a name that something else refers to
                container[key] += "x"
            elif isinstance(container, dict):
                container[f"{key}x"] = container.pop(key)
        elif what == "add" and isinstance(container, dict):
            container["surprise" if not isinstance(given_, str) else given_] = given_
        elif what == "twice" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = given_
    return value


def answer(action, *named):
    """Runs `action`; a `UserError` must be one paragraph that says where. True where there was none."""
    try:
        action()
    except UserError as error:
        text = str(error)
        assert any(name in text for name in named), text
        assert error.what and error.do
        return False
    return True


def written(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("input")


# -- scales and manifests

SMOKE, POCKET = (read_yaml(SCALES / f"{name}.yaml") for name in ("smoke", "pocket"))


@given(st.sampled_from(["smoke", "pocket"]), CHANGES)
@settings(max_examples=120, **CALM)
def test_any_scale(folder, name, changes):
    path = written(folder / f"{name}.yaml", changed(SMOKE if name == "smoke" else POCKET, changes))
    answer(lambda: Plan(load(Scale, path)), str(path), "configs/", "data_manifests", "manifest")


def test_evaluations_without_number_are_refused():
    scale = parse(Scale, SMOKE | {"validation": SMOKE["validation"] | {"every": 0.02}}, "a test")
    with pytest.raises(UserError, match="too many evaluations.*validation.every"):
        Plan(scale)


MANIFEST_NAMES = sorted(p.stem for p in MANIFESTS.glob("*.yaml") if p.stem != "sources")


@given(st.sampled_from(MANIFEST_NAMES), CHANGES)
@settings(max_examples=250, **CALM)
def test_any_manifest(folder, name, changes):
    patch = pytest.MonkeyPatch()
    patch.setattr(manifest, "MANIFESTS", folder / "manifests")
    path = written(
        folder / "manifests" / f"{name}.yaml", changed(read_yaml(MANIFESTS / f"{name}.yaml"), changes)
    )
    try:
        answer(lambda: manifest.load_manifest(name).digest, str(path))
    finally:
        patch.undo()


@given(CHANGES)
@settings(max_examples=100, **CALM)
def test_any_sources(folder, changes):
    from cpt_repro.data.extract import load_sources

    path = written(folder / "sources.yaml", changed(read_yaml(MANIFESTS / "sources.yaml"), changes))
    answer(lambda: load_sources(path), str(path))


def test_a_manifest_without_shares_makes_no_plan(folder, monkeypatch):
    value = read_yaml(MANIFESTS / "english_upstream.yaml")
    value["domains"] = dict.fromkeys(value["domains"])
    written(folder / "none" / "english_upstream.yaml", value)
    for path in MANIFESTS.glob("*.yaml"):
        if path.stem != "english_upstream":
            written(folder / "none" / path.name, read_yaml(path))
    monkeypatch.setattr(manifest, "MANIFESTS", folder / "none")
    with pytest.raises(UserError, match="'english_upstream'.*no shares"):
        Plan(load_scale("pocket"))


# -- what the papers declare

FILES = [
    "runs.yaml",
    "exhibits.yaml",
    "claims.yaml",
    "published.yaml",
    "discrepancies.yaml",
    "digitised.json",
]
DECLARED = [
    (paper, file) for paper in papers.paper_names() for file in FILES if (PAPERS / paper / file).exists()
]
CACHES = [papers.load_paper, declarations.load_declarations, load_claims]
CACHES += [published.load_published, published.load_digitised, published.load_discrepancies]


def read_all(paper):
    """Everything that is declared of a paper, and what it means at the scale smoke."""
    from cpt_repro.claims import declarations as claims

    declared = papers.load_paper(paper)
    exhibits = declarations.load_declarations(paper)
    claims.load_claims(paper)
    known = tuple(papers.known_variants(paper))
    plan = Plan(load_scale("smoke"), papers=[declared])
    for exhibit in exhibits.exhibits.values():
        declarations.needs(plan, paper, exhibit)
    for variant in known:
        papers.load_papers((variant,))


def with_file(folder, paper, file, text):
    """Reads all of a paper with one of its files replaced."""
    from cpt_repro.claims import declarations as claims

    root = folder / "papers"
    for other in papers.paper_names():
        for path in (PAPERS / other).iterdir():
            target = root / other / path.name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    path = root / paper / file

    def read(wanted):  # the others need not be read again
        key = (wanted.parent.name, wanted.name)
        return copy.deepcopy(RAW[key]) if key in RAW and wanted != path else read_yaml(wanted)

    patch = pytest.MonkeyPatch()
    for module in (papers, declarations, published, claims):
        patch.setattr(module, "PAPERS", root)
    for module in (papers, declarations, claims, config):
        patch.setattr(module, "read_yaml", read)
    for cache in CACHES:
        cache.cache_clear()
    path.write_text(text, encoding="utf-8")
    try:
        return answer(lambda: read_all(paper), str(root / paper), f"configs/papers/{paper}", "variants")
    finally:
        path.write_bytes((PAPERS / paper / file).read_bytes())
        patch.undo()
        for cache in CACHES:
            cache.cache_clear()


RAW = {
    (paper, file): json.loads((PAPERS / paper / file).read_text()) if file.endswith("json") else None
    for paper, file in DECLARED
}
for key in RAW:
    RAW[key] = RAW[key] or read_yaml(PAPERS / key[0] / key[1])


@pytest.mark.parametrize(("paper", "file"), DECLARED, ids=str)
def test_any_declaration(folder, paper, file):
    assert with_file(folder, paper, file, (PAPERS / paper / file).read_text(encoding="utf-8"))
    answers = []

    @given(CHANGES)
    @settings(max_examples=25, **CALM)
    def check(changes):
        value = changed(RAW[paper, file], changes)
        dump = json.dumps if file.endswith("json") else yaml.safe_dump
        answers.append(with_file(folder, paper, file, dump(value)))

    check()
    assert False in answers


@pytest.mark.parametrize(("paper", "file"), DECLARED, ids=str)
@pytest.mark.parametrize(
    "text", ["", "[]", "3", "a: [", "- a", "null", "{}", "\x00", "a: 2020-99-99", "? [a]\n: 1"]
)
def test_any_text(folder, paper, file, text):
    with_file(folder, paper, file, text)


@pytest.mark.parametrize("file", ["runs.yaml", "exhibits.yaml", "claims.yaml"])
def test_a_file_of_another_paper_is_refused(folder, file):
    value = RAW["gupta2023", file] | {"paper": "ibrahim2024"}
    assert not with_file(folder, "gupta2023", file, yaml.safe_dump(value))


@given(st.text(string.printable, max_size=60))
@settings(max_examples=150, **CALM)
def test_any_yaml(folder, text):
    path = folder / "any.yaml"
    path.write_text(text, encoding="utf-8")
    answer(lambda: read_yaml(path), str(path))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: " * 3000,
        "a: 2020-99-99",
        "? [a]\n: 1",
        "? {a: 1}\n: 1",
        "a: " + "9" * 5000,
        "a: &a [*a]",
        "a: !!python/object/apply:os.system [echo]",
        "a: !!python/name:os.system",
        "<<: 3",
        "a: 1\na: 2",
        "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + "".join(
            f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "a: &a {k: 1}\n"
        + "".join(
            f"{y}: &{y} {{<<: [{', '.join([f'*{x}'] * 9)}]}}\n"
            for x, y in zip("abcdefgh", "bcdefghi", strict=True)
        ),
    ],
    ids=range(13),
)
def test_yaml_that_bites(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="bad.yaml"):
        read_yaml(path)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"\xe9: 1")
    for read in (read_yaml, read_json):
        for name in ("folder", "latin", "none"):
            assert not answer(lambda read=read, name=name: read(tmp_path / name), name)


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", '{"a": [Infinity]}', "[" * 100_000, "9" * 5000, "\ufeff{}"]
)
def test_json_that_bites(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match="bad.json"):
        read_json(tmp_path / "bad.json")


def test_claims_of_the_wrong_shape():
    for raw in (
        {"names": [1]},
        {"names": 3},
        {"names": {"a": [1]}},
        {"names": {1: "a"}},
        {"claims": [3]},
        {"claims": [{"id": "1", "tests": 3}]},
        {"claims": [{"id": "1", "tests": [3]}]},
        {"claims": [{"id": "1", "statement": "x", "tests": [{"each": 3}]}]},
        {"claims": [{"id": "1", "statement": "x", "tests": [{"kind": "ratio", "says": "x", "of": {1: 2}}]}]},
    ):
        value = {"paper": "gupta2023", "claims": []} | raw
        answer(lambda value=value: parse_claims(value, "gupta2023", "claims.yaml"), "claims.yaml")


# -- records


@pytest.fixture(scope="module")
def records(folder):
    """A receipt, an evaluation and a fingerprint as they are, made up."""
    plan = Plan(load_scale("smoke"))
    name = "ibrahim2024/405m/pile--sp/replay-0.05/seed-0"
    kept = {name, "405m/pile--sp/replay-0.05"}
    leave = [run for paper in plan.papers.values() for run in [*paper.runs, *paper.merges] if run not in kept]
    make_results(plan, folder / "results", tuple(leave))
    receipt = read_json(receipt_path(folder / "results", "smoke", name))
    evaluation = read_json(evaluation_path(folder / "results", "smoke", name))
    corpus = read_json(config.ROOT / "results" / "pocket" / "corpora" / "sp.json")
    return {"receipt": receipt, "evaluation": evaluation, "fingerprint": corpus}


def use_receipt(path):
    receipt = read_receipt(path)
    receipt.model_dump(mode="json")
    for corpus in receipt.segment.validate_on:
        assert receipt.curve(corpus)[-1] and receipt.final[corpus].loss is not None
    assert receipt.segment.identity and receipt.segment.billions > 0


def use_evaluation(path):
    for suite in read_evaluation(path).suites.values():
        assert 0 <= suite["average"] <= 1 and suite["stderr"] is not None
        for task in suite["tasks"].values():
            assert 0 <= task["value"] <= 1 and task["stderr"] + task["documents"] is not None


def use_fingerprint(path):
    from cpt_repro.data.build import _quotas

    found = read_fingerprint(path)
    available = {domain: entry["sequences"] for domain, entry in found["splits"]["validation"].items()}
    assert sum(_quotas(found["shares"], available, 3).values()) == 3


USES = {"receipt": use_receipt, "evaluation": use_evaluation, "fingerprint": use_fingerprint}


@given(st.sampled_from(sorted(USES)), CHANGES)
@settings(max_examples=400, **CALM)
def test_any_record(folder, records, kind, changes):
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(changed(records[kind], changes)))
    answer(lambda: USES[kind](path), str(path))


@given(CHANGES)
@settings(max_examples=60, **CALM)
def test_any_index_of_shards(folder, changes):
    from cpt_repro.data.shards import verify

    raw = {"basename": "part.00000/shard.00000.mds", "bytes": 12, "hashes": {"sha1": "0" * 40}}
    shard = {"column_encodings": ["ndarray:uint16:17"], "column_names": ["tokens"], "column_sizes": [34]}
    shard |= {"compression": None, "format": "mds", "hashes": ["sha1"], "raw_data": raw, "samples": 1}
    shard |= {"size_limit": 9, "version": 2, "zip_data": None}
    path = folder / "index.json"
    path.write_text(json.dumps(changed({"version": 2, "shards": [shard]}, changes)))
    answer(lambda: verify(folder), str(folder))


@pytest.mark.parametrize("kind", USES)
def test_records_as_they_are(folder, records, kind):
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(records[kind]))
    USES[kind](path)


@pytest.mark.parametrize("kind", ["receipt", "evaluation"])
@pytest.mark.parametrize("version", [0, 2, "1", 1.5, None, True, [1]])
def test_unknown_versions_are_refused(folder, records, kind, version):
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(records[kind] | {"schema_version": version}))
    if version is True:  # equal to 1 in Python; the text is not
        answer(lambda: USES[kind](path), str(path))
        return
    with pytest.raises(UserError, match="schema_version is .*; this program reads 1"):
        USES[kind](path)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["curves"].update(pile=[]),
        lambda raw: raw["curves"].pop("pile"),
        lambda raw: raw["final"].pop("sp"),
        lambda raw: raw["curves"].update(german=[[0, 1.0]]),
        lambda raw: raw["segment"].update(iterations=0),
        lambda raw: raw["segment"].update(tokens_per_billion=0),
    ],
)
def test_a_receipt_that_cannot_be_drawn_from_is_refused(folder, records, change):
    raw = copy.deepcopy(records["receipt"])
    change(raw)
    path = folder / "receipt.json"
    path.write_text(json.dumps(raw))
    assert not answer(lambda: read_receipt(path), str(path))
