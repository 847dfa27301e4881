"""Tiny models, ours and those of others."""

import torch
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from cpt_repro.declarations.scale import Size
from cpt_repro.files import write_json
from cpt_repro.models.architecture import architecture

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
