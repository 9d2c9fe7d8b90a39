"""The fast engine against brute-force twins that keep nothing but a dictionary of paths."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper import AS_PUBLISHED, CORRECTED, Fixes, PaperCache, PaperConfig, PaperModel
from paper.sequences import encode, path_hash

MODEL = PaperModel(num_ssm_layers=2, num_attn_layers=1, num_mlp_layers=3, d=16, n=4)
STATE, KV = MODEL.state_bytes, MODEL.kv_bytes_per_token
Path = tuple[int, ...]
Victim = tuple[Path, str, int]

tokens = st.integers(0, 2)
requests = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=9), st.lists(tokens, max_size=4)),
    min_size=1,
    max_size=40,
)
capacities = st.integers(0, 12).map(lambda states: states * STATE)


class Aged:
    """Compares by stamp alone, as the published simulator's nodes do."""

    def __init__(self, stamp: int, path: Path) -> None:
        self.stamp, self.path = stamp, path

    def __lt__(self, other: Aged) -> bool:
        return self.stamp < other.stamp


class Twin:
    """Every node is its path: a stamp, and the paths of its children in order."""

    def __init__(self, policy: str, capacity: int, alpha: float, fixes: Fixes) -> None:
        self.policy, self.capacity, self.alpha, self.fixes = policy, capacity, alpha, fixes
        self.stamp: dict[Path, int] = {(): 0}
        self.below: dict[Path, list[Path]] = {(): []}
        self.clock = 0

    def parent(self, path: Path) -> Path:
        return max((p for p in self.stamp if len(p) < len(path) and path[: len(p)] == p), key=len)

    def size(self) -> int:
        own = sum(len(p) - len(self.parent(p)) for p in self.stamp if p)
        return STATE * (len(self.stamp) - 1) + KV * own

    def lookup(self, query: Path) -> tuple[int, int]:
        """Reusable and raw tokens; stamps."""
        self.clock += 1
        node, rest, reusable, raw = (), query, 0, 0
        visited, deepest = [()], None
        while rest:
            found = [c for c in self.below[node] if c[len(node)] == rest[0]]
            if not found:
                break
            (child,) = found
            segment = child[len(node) :]
            same = next((i for i, pair in enumerate(zip(segment, rest, strict=False))
                         if pair[0] != pair[1]), min(len(segment), len(rest)))  # fmt: skip
            if same == len(segment):
                reusable += same
                deepest = child
            raw += same
            visited.append(child)
            node, rest = child, rest[same:]
        stamped = visited if self.policy == "v1" else [deepest] if deepest else []
        for path in stamped:
            self.stamp[path] = self.clock
        return reusable, raw

    def serve(self, given: Path, answer: Path) -> tuple[int, int, list[Victim]]:
        reusable, raw = self.lookup(given)
        whole, victims = given + answer, []
        self.clock += 1
        inner_reusable, inner_raw = self.lookup(whole)
        states = 2 if inner_raw > inner_reusable else 1
        wanted = self.size() + states * STATE + KV * (len(whole) - inner_raw) - self.capacity
        if wanted > 0:
            self.clock += 1
            victims = self.evict_leaves(wanted) if self.policy == "v1" else self.evict(wanted)
        self.insert(whole)
        return reusable, raw, victims

    def insert(self, whole: Path) -> None:
        node, through = (), [()]
        while node != whole:
            child = next((c for c in self.below[node] if c[len(node)] == whole[len(node)]), None)
            if child is None:
                self.add(node, whole)
                break
            if whole[: len(child)] == child:
                node = child
                if node != whole:
                    through.append(node)
                continue
            same = next(i for i in range(len(child) + 1) if child[: i + 1] != whole[: i + 1])
            upper = whole[:same]
            self.below[node][self.below[node].index(child)] = upper
            self.below[upper], self.stamp[upper] = [child], self.clock
            if upper != whole:
                self.add(upper, whole)
            break
        if self.policy == "v1":
            for path in through:
                self.stamp[path] = self.clock

    def add(self, parent: Path, path: Path) -> None:
        self.below[parent].append(path)
        self.below[path], self.stamp[path] = [], self.clock

    def drop_leaf(self, path: Path) -> None:
        self.below[self.parent(path)].remove(path)
        del self.stamp[path], self.below[path]

    def preorder(self, node: Path = ()) -> list[Path]:
        return [p for child in self.below[node] for p in [child, *self.preorder(child)]]

    def evict_leaves(self, wanted: int) -> list[Victim]:
        heap = [Aged(self.stamp[p], p) for p in self.preorder() if not self.below[p]]
        heapq.heapify(heap)
        victims, freed = [], 0
        while heap and freed < wanted:
            path = heapq.heappop(heap).path
            parent = self.parent(path)
            freed += STATE + KV * (len(path) - len(parent))
            victims.append((path, "leaf", self.stamp[path]))
            self.drop_leaf(path)
            if parent and not self.below[parent]:
                heapq.heappush(heap, Aged(self.stamp[parent], parent))
        return victims

    def evict(self, wanted: int) -> list[Victim]:
        victims, claimed = [], 0
        while claimed < wanted:
            candidates = [p for p in self.preorder() if len(self.below[p]) <= 1]
            if not candidates:
                break
            efficiency = normalised([self.efficiency(p) for p in candidates])
            recency = normalised([1 / (self.clock - self.stamp[p]) for p in candidates])
            scores = [self.alpha * e + r for e, r in zip(efficiency, recency, strict=True)]
            path = candidates[scores.index(min(scores))]
            parent, below = self.parent(path), self.below[path]
            victims.append((path, "merge" if below else "leaf", self.stamp[path]))
            if below:
                claimed += STATE
                (child,) = below
                self.stamp[child] = max(self.stamp[child], self.stamp[path])
                self.below[parent][self.below[parent].index(path)] = child
                del self.stamp[path], self.below[path]
            else:
                counted = path if self.fixes.bytes_of_victim else candidates[-1]
                claimed += STATE + KV * (len(counted) - len(self.parent(counted)))
                self.drop_leaf(path)
        return victims

    def efficiency(self, path: Path) -> float:
        total, above = len(path), len(self.parent(path))
        attn, mlp = MODEL.attn_flops, MODEL.mlp_flops
        wrong = MODEL.num_mlp_layers * (8 * above * 16**2 + 4 * above**2 * 16)
        saved = MODEL.ssm_flops(total - above) + attn(total) - attn(above)
        saved += mlp(total) - (mlp(above) if self.fixes.mlp_of_parent else wrong)
        return saved / (STATE + KV * (total - above if self.fixes.memory_of_segment else total))


def normalised(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [1.0 if low == high else (value - low) / (high - low) for value in values]


def as_hash(path: Path) -> str:
    return path_hash(encode(path))


@pytest.mark.parametrize("policy", ["v1", "v3"])
@settings(max_examples=150, deadline=None)
@given(
    work=requests,
    capacity=capacities,
    alpha=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    fixes=st.sampled_from([AS_PUBLISHED, CORRECTED])
    | st.builds(Fixes, st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
def test_every_event_is_the_twins(policy, work, capacity, alpha, fixes):
    cache = PaperCache(PaperConfig(policy, capacity, alpha, fixes=fixes, model=MODEL, details=True))
    twin = Twin(policy, capacity, alpha, fixes)
    for given_, answer in work:
        record = cache.serve(given_, answer)
        reusable, raw, victims = twin.serve(tuple(given_), tuple(answer))
        assert (record.matched, record.lookup.raw) == (reusable, raw)
        ours = [(v.path_hash, v.kind, v.last_access) for v in record.evictions]
        assert ours == [(as_hash(path), kind, stamp) for path, kind, stamp in victims]
        assert cache.tree_bytes == record.tree_bytes == twin.size()
        nodes = [(n.path_hash, n.last_access, n.children) for n in cache.tree()]
        paths = twin.preorder()
        assert nodes == [(as_hash(p), twin.stamp[p], len(twin.below[p])) for p in paths]
    ranks = [node.rank() for node in cache._store.radix_nodes()]
    assert ranks == sorted(set(ranks))
    assert cache.summary().clock == twin.clock


class BlockTwin:
    """vLLM+ as nested lists: [tokens, stamp, children]."""

    def __init__(self, size: int, capacity: int) -> None:
        self.root, self.size, self.capacity, self.clock = [(), 0, []], size, capacity, 0

    def lookup(self, query: Path) -> tuple[int, int]:
        """Reused tokens and nodes accessed."""
        self.clock += 1
        node, at, accessed = self.root, 0, 1
        node[1] = self.clock
        while True:
            block = query[at : at + self.size]
            full = [c for c in node[2] if c[0] == block and len(block) == self.size]
            if not full:
                break
            node, at, accessed = full[0], at + self.size, accessed + 1
            node[1] = self.clock
        for tokens_, _, _ in node[2]:
            if query[at : at + len(tokens_)] == tokens_:
                return at + len(tokens_), accessed + 1
        return at, accessed

    def everything(self, node=None, above=()):
        for child in (node or self.root)[2]:
            yield child, node or self.root, above + child[0]
            yield from self.everything(child, above + child[0])

    def tree_bytes(self) -> int:
        return sum(STATE + KV * len(block[0]) for block, _, _ in self.everything())

    def serve(self, given: Path, answer: Path) -> tuple[int, list[Victim]]:
        reused, _ = self.lookup(given)
        whole, victims = given + answer, []
        self.clock += 1
        _, accessed = self.lookup(whole)
        extra = len(whole) - self.size * accessed
        wanted = self.tree_bytes() + (extra / self.size * STATE + KV * extra) - self.capacity
        if wanted > 0:
            self.clock += 1
            victims = self.evict(wanted)
        self.insert(self.root, None, whole)
        return reused, victims

    def evict(self, wanted: float) -> list[Victim]:
        places = {id(block): (block, above, path) for block, above, path in self.everything()}
        heap = [Aged(b[1], i) for i, (b, _, _) in places.items() if not b[2]]
        heapq.heapify(heap)
        victims, freed = [], 0
        while heap and freed < wanted:
            block, above, path = places[heapq.heappop(heap).path]
            freed += STATE + KV * len(block[0])
            victims.append((path, "leaf", block[1]))
            above[2][:] = [other for other in above[2] if other is not block]
            if not above[2] and above is not self.root:
                heapq.heappush(heap, Aged(above[1], id(above)))
        return victims

    def insert(self, node, above, rest: Path) -> None:
        node[1] = self.clock
        if not rest:
            return
        same = [(self.shared(child[0], rest), child) for child in node[2]]
        longest = max((length for length, _ in same), default=0)
        full = [c for length, c in same if length == longest == len(c[0])]
        if full:
            self.insert(full[0], node, rest[longest:])
        elif above is not None and len(node[0]) < self.size:
            space = self.size - len(node[0])
            node[0] += rest[:space]
            above[2][:] = [other for other in above[2] if other is not node] + [node]
            self.insert(node, above, rest[space:])
        else:
            node[2].append([rest[: self.size], self.clock, []])
            self.insert(node[2][-1], node, rest[self.size :])

    @staticmethod
    def shared(block: Path, rest: Path) -> int:
        return next(i for i in range(len(block) + 1)
                    if i == len(block) or i == len(rest) or block[i] != rest[i])  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(work=requests, capacity=capacities, size=st.integers(1, 5))
def test_every_block_event_is_the_twins(work, capacity, size):
    cache = PaperCache(PaperConfig("vllm", capacity, model=MODEL, block_tokens=size, details=True))
    twin = BlockTwin(size, capacity)
    for given_, answer in work:
        record = cache.serve(given_, answer)
        reused, victims = twin.serve(tuple(given_), tuple(answer))
        assert record.matched == reused
        ours = [(v.path_hash, v.kind, v.last_access) for v in record.evictions]
        assert ours == [(as_hash(path), kind, stamp) for path, kind, stamp in victims]
        assert cache.tree_bytes == twin.tree_bytes()
    assert cache.summary().clock == twin.clock
