"""Tiny models, ours and those of others, and a plan that starts from one."""

import torch
import yaml
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from cpt_repro.declarations.scale import Size, load_scale
from cpt_repro.files import write_json
from cpt_repro.models.architecture import architecture
from cpt_repro.planning.plan import Plan

SIZE, ROWS, LENGTH = Size(layers=2, width=32, heads=2), 640, 64
TOKENS = torch.randint(0, ROWS, (3, 40), generator=torch.Generator().manual_seed(0))


def fresh(seed=1):
    """A new model of ours."""
    return architecture(SIZE.architecture).new(SIZE, ROWS, LENGTH, seed)


@torch.no_grad()
def logits(model):
    """What a model says of some tokens."""
    return model.eval()(input_ids=TOKENS).logits


def made_elsewhere():
    """A model as transformers itself makes one."""
    torch.manual_seed(5)
    sizes = {"hidden_size": SIZE.width, "num_hidden_layers": SIZE.layers, "num_attention_heads": SIZE.heads}
    sizes |= {"intermediate_size": 4 * SIZE.width, "vocab_size": ROWS, "max_position_embeddings": 128}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)).eval()


def old_config(**changes):
    """A config.json as the published Pythia models have it."""
    sizes = {"hidden_size": SIZE.width, "num_hidden_layers": SIZE.layers, "num_attention_heads": SIZE.heads}
    sizes |= {"intermediate_size": 4 * SIZE.width, "vocab_size": ROWS, "max_position_embeddings": 128}
    kind = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu"}
    kind |= {"rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True}
    kind |= {"tie_word_embeddings": False, "torch_dtype": "float16", "bos_token_id": 0, "eos_token_id": 0}
    return kind | sizes | {"layer_norm_eps": 1e-5} | changes


def write_model(folder, tensors, **config):
    """Writes a model folder with `tensors` and a configuration with these changes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", old_config(**config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def plan_from(project, init_from, **changes):
    """A plan of smoke with one paper of one run, `child`, that starts from a model from outside."""
    declared = {
        "paper": "made_up",
        "reference": "A test",
        "batch": {"sequences": 1104, "sequence_length": 2048},
    }
    declared |= {"unit": {"billions": 10, "name": "10B tokens"}, "models": {"405m": "405M"}}
    declared["corpora"] = {
        name: {"role": role, "called": name, "stands_for": name}
        for name, role in (("pile", "old"), ("sp", "new"))
    }
    run = {"model": "405m", "init_from": init_from, "iterations": 4000, "data": {"sp": 1}}
    run |= {"schedule": {"kind": "cosine", "eta_max": 3e-4, "eta_min": 3e-5}, "validate": ["pile", "sp"]}
    declared["runs"] = {"child": run | changes}
    path = project.papers / "made_up" / "runs.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(declared, sort_keys=False))
    return Plan(project, load_scale(project, "smoke"), ("made_up",))
