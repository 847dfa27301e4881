"""Files with some nodes or bytes changed: whatever stands there is taken, or refused in one sentence."""

import copy
import json

ODD = [None, True, False, 0, -1, 2, 0.5, 7, 1e-320, 1e308, 2**31, 2**64, 10**400]
ODD += [
    "",
    "a",
    "0",
    "405m/pile",
    "../../x",
    "/etc/passwd",
    "{x}",
    "{{ x }}",
    "a\nb",
    "\0",
    "\x1b[2J",
    "é" * 300,
]
ODD += [
    "1e999",
    "*",
    "<script>",
    "=1+1",
    "\u202e",
    "a" * 10_000,
    [],
    {},
    [[]],
    {"": None},
    ["a"] * 50,
    {"a": 1},
]
TEXTS = ["NaN", "-Infinity", "1e400", "[" * 3000, '{"a":' * 3000, "\\ud800", "\x00", "\u2028", "&a [*a, *a]"]
TEXTS += [
    "<<: *a",
    "!!python/object/apply:os.system ['true']",
    "\ufeff",
    "---\n",
    "#",
    '"',
    "9" * 5000,
    "0x1F",
    "~",
]


def places(value):
    """Every (container, key) below `value`."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in list(children):
        yield value, key
        yield from places(child)


def _mutate(value, rng):
    """Changes one node of `value` in place."""
    nodes = list(places(value))
    if not nodes:
        return
    container, key = rng.choice(nodes)
    old, kind = container[key], rng.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice(["surprise", "", "é", f"{key}s", "../x", "__class__"])] = old
    elif kind == 2 and isinstance(container, dict):
        del container[key]
        container[f"{key}{rng.choice(['', 's', ' ', '/'])}"] = old
    elif kind == 3 and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(old))
    elif kind == 4:
        container[key] = copy.deepcopy(rng.choice(nodes)[0])
    elif kind == 5:
        container[key] = {str(k): v for k, v in enumerate(old)} if isinstance(old, list) else [old] * 2
    elif kind == 6 and isinstance(old, str | int | float) and not isinstance(old, bool):
        container[key] = _near(old, rng)
    else:
        container[key] = copy.deepcopy(rng.choice(ODD))


def _near(old, rng):
    """Another value of the same type."""
    if isinstance(old, str):
        at = rng.randrange(len(old) + 1)
        return old[:at] + rng.choice(["", "x", " ", "0", "/", "é"]) + old[at + rng.randrange(2) :]
    return rng.choice([old + 1, old - 1, old * 2, -old, old / 2 if isinstance(old, float) else old // 2])


def _torn(raw, rng):
    """Some bytes turned, taken out or put in, or the rest cut off."""
    at, kind = rng.randrange(len(raw) + 1), rng.randrange(4)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + rng.choice(TEXTS).encode("utf-8") + raw[at + rng.randrange(8) :]
    if kind == 2:
        return raw[:at] + raw[at + rng.randrange(1, 40) :]
    return raw[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 4))) + raw[at + 1 :]


def mutated(value, rng, mend=None):
    """JSON of `value` with some nodes changed (then `mend`ed, so that its hashes are right), or torn."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        _mutate(value, rng)
    if mend and rng.random() < 0.9:
        value = mend(value)
    raw = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return _torn(raw, rng) if rng.random() < 0.2 else raw
