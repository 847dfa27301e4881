"""What batches are made of: shares of streams of text, replay first."""

from __future__ import annotations

from pydantic import Field

from cpt_repro.declarations.strict import Strict


class Stream(Strict):
    """One domain of one corpus as a training reads it."""

    corpus: str
    domain: str
    #: Position in the domain's order (sequences) where reading begins.
    start: int = Field(default=0, ge=0)


class Part(Strict):
    """A node of a mixture: a share of its surroundings, split further or read from one stream."""

    share: float = Field(ge=0, le=1)
    parts: tuple[Part, ...] = ()
    stream: Stream | None = None


Mixture = tuple[Part, ...]


def streams(mixture: Mixture) -> list[Stream]:
    """The streams at the leaves, in order."""
    return [s for part in mixture for s in ([part.stream] if part.stream else streams(part.parts))]


def corpus_part(corpus: str, shares: dict[str, float], share: float, first_sequence: float) -> Part:
    """All domains of a corpus by their shares, from where `first_sequence` of the whole corpus would be."""
    total, parts = sum(shares.values()), []
    for domain, part in shares.items():
        stream = Stream(corpus=corpus, domain=domain, start=round(first_sequence * part / total))
        parts.append(Part(share=part / total, stream=stream))
    return Part(share=share, parts=tuple(parts))


def with_replay(new: Mixture, seen: list[tuple[int, Mixture]], replay_fraction: float) -> Mixture:
    """The new data, and a share `replay_fraction` of all that was `seen`, [(tokens, mixture)] in order.

    Replay comes first, so that its share of every batch is within one sample (`data.order`).
    """
    shares = reservoir_shares([tokens for tokens, _ in seen], replay_fraction)
    replayed = []
    for (_, parts), share in zip(seen, shares, strict=True):
        total = sum(part.share for part in parts)
        whole = tuple(part.model_copy(update={"share": part.share / total}) for part in parts)
        replayed.append(Part(share=share, parts=whole))
    rest = (part.model_copy(update={"share": part.share * (1 - replay_fraction)}) for part in new)
    return (Part(share=replay_fraction, parts=tuple(replayed)), *rest)


def reservoir_shares(sizes: list[float], replay_fraction: float) -> list[float]:
    """Shares of D_0..D_{i-1} in the replay buffer R_i of discrete reservoir sampling (Ibrahim A.1, Eq. 5).

    p_{i,j} = (s_j (1 - alpha)^{gamma_j} + sum_{k=j+1}^{i-1} p_{k,j} s_k alpha) / sum_{k<i} s_k, gamma_0 = 0
    and 1 else: a later dataset gave up `replay_fraction` of its batches to what came before it.
    """
    alpha, shares = replay_fraction, {}
    for i in range(1, len(sizes) + 1):
        for j in range(i):
            own = sizes[j] * (1 - alpha if j else 1)
            replayed = sum(shares[k, j] * sizes[k] * alpha for k in range(j + 1, i))
            shares[i, j] = (own + replayed) / sum(sizes[:i])
    return [shares[len(sizes), j] for j in range(len(sizes))]
