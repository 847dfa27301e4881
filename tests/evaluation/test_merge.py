"""TIES merges: worked examples."""

import pytest
import torch

from cpt_repro.errors import UserError
from cpt_repro.evaluation.merge import ties_merge, trim


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(7, 5, generator=generator), "b": torch.randn(11, generator=generator)}


def test_density_one_of_one_model_is_that_model():
    base, task = tensors(0), tensors(1)
    merged = ties_merge(base, task, 1.0)
    assert all(torch.allclose(merged[name], task[name], atol=1e-6) for name in base)


@pytest.mark.parametrize("density", [0.25, 0.5, 0.75])
def test_the_largest_share_of_each_tensor_is_kept(density):
    base, task = tensors(0), tensors(1)
    merged = ties_merge(base, task, density)
    for name in base:
        changed = merged[name] != base[name]
        delta = (task[name] - base[name]).abs()
        assert int(changed.sum()) == int(density * delta.numel())
        assert delta[changed].min() >= delta[~changed].max()


def test_worked_example_with_trimming():
    base = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}
    task = {"w": torch.tensor([5.0, 0.5, -1.0, 1.0])}  # differences 4, -0.5, -2, 0: the half kept is 4, -2
    assert ties_merge(base, task, 0.5)["w"].tolist() == [5.0, 1.0, -1.0, 1.0]


def test_equal_magnitudes_trim_in_order_and_one_entry_always_stays():
    assert trim(torch.tensor([1.0, -1.0, 1.0, 1.0]), 0.5).tolist() == [1.0, -1.0, 0.0, 0.0]
    assert trim(torch.tensor([1.0, -2.0]), 0.1).tolist() == [0.0, -2.0]


def test_models_that_do_not_fit_are_refused():
    base = tensors(0)
    with pytest.raises(UserError, match="'b' is .* None in the task model"):
        ties_merge(base, {"a": base["a"]}, 0.5)
    with pytest.raises(UserError, match="'c' is None in the base"):
        ties_merge(base, {**base, "c": base["a"]}, 0.5)
    with pytest.raises(UserError, match="'a' is"):
        ties_merge(base, {**base, "a": torch.zeros(5, 7)}, 0.5)
