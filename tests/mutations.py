"""Values with some nodes changed: whatever stands in a file is read, or refused in one sentence."""

import copy

from hypothesis import strategies as st

NUMBERS = st.sampled_from([0, 1, -1, 2, 0.5, 7, 1e-320, 1e308, 2**64, 10**400, float("inf"), float("nan")])
WORDS = st.sampled_from(
    ["", "a", "pile", "405m/pile", "../../x", "{x}", "a\nb", "\0", "é" * 300, "1e999", "*", "cosine"]
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=3), st.dictionaries(WORDS, PLAIN, max_size=2))
#: (which node, what is done to it, with what)
CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["set", "drop", "add", "twice"]), VALUES),
    min_size=1,
    max_size=2,
)


def places(value):
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
    for where, what, new in changes:
        nodes = list(places(value))
        if not nodes:
            break
        container, key = nodes[int(where * len(nodes))]
        if what == "drop":
            del container[key]
        elif what == "add" and isinstance(container, dict):
            container["surprise"] = new
        elif what == "twice" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = new
    return value
