"""The fast encoder against the library, on texts that are as odd as texts get."""

import random

import numpy as np
from tokenizers import AddedToken, pre_tokenizers

from cpt_repro.data import tokenizer
from cpt_repro.data.tokenizer import Encoder, load_tokenizer

ODD = [*"abcXYZéßäöŒ×÷ñ019²½Ⅷ'’\"!.,;:-_()[]{}@#<=>~`|\\ \t\n\r\f\v東🙂한жªºµʰſ", "  ", "   "]
ODD += ["<|endoftext|>", "'s", "'LL", "don't"]
ODD += (
    "\u212a\u1100\u1161\u0391\u037e\u0387\u00a0\u2003\u2000\u3000\u0085\x1c\x1f\u200b\u2028\ufeff\u180e\u1680"
)
ODD += "\u0301\u0338\u0307\u1fef\u0374"


def test_it_gives_the_librarys_tokens(published, monkeypatch):
    library = load_tokenizer(published)
    encoder, rng = Encoder(library), random.Random(1)
    assert not encoder._whole
    monkeypatch.setattr(tokenizer, "MOST_PIECES", 5000)  # forgets now and then
    for _ in range(400):
        texts = ["".join(rng.choice(ODD) for _ in range(rng.randint(0, 14))) for _ in range(20)]
        encodings = library.encode_batch(texts, add_special_tokens=False)
        tokens = encoder(texts)
        assert tokens.tolist() == [token for each in encodings for token in [*each.ids, 1]]
        assert tokens.dtype == np.uint16 and len(encoder._known) < 5200
    assert encoder([]).tolist() == []


def test_texts_are_cut_only_where_the_library_cuts(published):
    library, rng, cuts = load_tokenizer(published), random.Random(2), 0
    encoder = Encoder(library)
    for _ in range(20_000):
        text = library.normalizer.normalize_str("".join(rng.choice(ODD) for _ in range(rng.randint(1, 8))))
        pieces = encoder._cut(text)
        assert "".join(pieces) == text
        ours = {sum(map(len, pieces[:k])) for k in range(1, len(pieces))}
        cuts += len(ours)
        assert ours <= {end for _, (_, end) in library.pre_tokenizer.pre_tokenize_str(text)}, repr(text)
    assert cuts > 5000


def test_tokenizers_that_split_in_another_way_are_left_to_the_library(published):
    library = load_tokenizer(published)
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    assert Encoder(library)._whole
    library = load_tokenizer(published)
    library.add_tokens([AddedToken("the house", special=False)])
    encoder = Encoder(library)
    assert encoder._whole
    assert encoder(["in the house."]).tolist() == [*library.encode("in the house.").ids, 1]
