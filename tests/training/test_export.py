"""Export: the folder opens elsewhere, is a start for others, and says where it comes from."""

import pytest
import torch
import yaml
from tiny_models import ROWS, SIZE, fresh, logits, made_elsewhere, plan_from, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpt_repro.data.tokenizer import save_tokenizer, train_tokenizer
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest
from cpt_repro.models.outside import Outside, check_fits, check_tokenizer, load_outside
from cpt_repro.models.weights import save_model
from cpt_repro.records.receipts import FinalLoss, Losses, Measured, Receipt, RunName, read_record
from cpt_repro.training.export import export_run
from cpt_repro.training.store import Store


def losses(data, value):
    final = FinalLoss(loss=value, evaluations=5, stderr=0.01, noise=0.02)
    return Losses(data=data, fingerprint="f", sequences=48, curve=((0, 5.0), (4, value)), final=final)


@pytest.fixture
def trained(third_project):
    """(plan, store, run, receipt, model): as training leaves them."""
    write_model(third_project.root / "model", made_elsewhere().state_dict())
    plan = plan_from(third_project, "./model")
    (run,) = plan.runs.values()
    store, model, last = Store(third_project, "smoke"), fresh(7), run.training.iterations
    receipt = Receipt(
        identity=run.identity,
        run=RunName(id=run.id, paper=run.paper, name=run.name, seed=run.seed, model=run.model_name),
        training=run.training,
        parent_weights="0" * 64,
        data=dict.fromkeys(run.training.data, "f"),
        losses={corpus: losses(plan.data[corpus], 3.25) for corpus in ("pile", "sp")},
        learning_rate=((0, 1e-3),),
        train_loss=((last, 3.5),),
        checkpoints={last: save_model(model, store.weights(run.identity, last))},
        parameters=1234,
        code={},
        environment={},
        measured=Measured(seconds=1),
    )
    store.finish(receipt)
    tokenizer = third_project.data / "smoke" / "tokenizer"
    tokenizer.mkdir(parents=True)
    save_tokenizer(train_tokenizer(["abc abd"] * 20, 300), tokenizer)
    return plan, store, run, receipt, model


def test_it_opens_elsewhere_and_is_a_start_for_others(trained, tmp_path):
    plan, store, run, receipt, own = trained
    out = export_run(plan, store, "made_up/child", tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(own))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"
    assert read_record(Receipt, out / "receipt.json") == receipt
    # Elsewhere it is a model from outside like any other, tokenizer included.
    model, outside = fresh(), Outside(plan.project, str(out))
    check_fits(outside, SIZE, ROWS, "the scale")
    check_tokenizer(outside, plan.project.data / "smoke" / "tokenizer")
    load_outside(outside, model)
    assert torch.equal(logits(model), logits(own))


def test_its_card_says_where_it_comes_from(trained, tmp_path):
    plan, store, run, receipt, _ = trained
    out = export_run(plan, store, run.id, tmp_path / "out")
    card = (out / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "transformers" and "base_model" not in head
    assert (
        head["tags"] == ["gpt_neox", "continual-pre-training"]
        and "A GPT-NeoX language model of 1,234" in card
    )
    wanted = [run.id, receipt.identity, *receipt.checkpoints.values(), "./model, then `made_up/child/seed-0`"]
    wanted += [
        file_digest(out / "model.safetensors"),
        "smoke_upstream",
        "smoke_weak",
        "- pile: 3.2500",
        "A test",
    ]
    assert [text for text in wanted if text not in card] == []
    # A model of the hub is its base.
    plan = plan_from(plan.project, "authors/tiny@step10")
    (run,) = plan.runs.values()
    update = {"identity": run.identity, "training": run.training}
    store.finish(receipt.model_copy(update=update))
    (store.folder(run.identity) / f"iteration-{run.training.iterations}").symlink_to(
        store.weights(receipt.identity, run.training.iterations)
    )
    card = (export_run(plan, store, run.id, tmp_path / "other") / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "authors/tiny"


def test_what_cannot_be_exported(trained, tmp_path):
    plan, store, run, _, _ = trained
    out, last = tmp_path / "out", run.training.iterations

    def refused(words, name=run.id, out=out, iteration=None):
        with pytest.raises(UserError, match=words):
            export_run(plan, store, name, out, iteration)

    refused("unknown", "made_up/chil")
    refused(f"Kept are: {last}", iteration=last + 1)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    refused("not an empty folder", out=precious)
    refused("not an empty folder", out=precious / "thesis.txt")
    assert (precious / "thesis.txt").read_text() == "mine"
    tokenizer = plan.project.data / "smoke" / "tokenizer"
    tokenizer.rename(tmp_path / "tokenizer")
    refused("tokenizer is missing")
    (tmp_path / "tokenizer").rename(tokenizer)
    save_model(fresh(9), store.weights(run.identity, last))
    refused("altered")
    (store.folder(run.identity) / "receipt.json").unlink()
    refused("not trained.*cpt-repro train made_up/child/seed-0")
    assert not out.exists()
