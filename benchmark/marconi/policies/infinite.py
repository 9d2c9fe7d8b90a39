"""What no eviction would hit: the same admission into pools that hold a whole trace.

It bounds every policy where admission does not depend on what is cached. SGLang's does a little:
the ends of prefill chunks, where it leaves states, are counted from the depth at which a request
resumes, so that on prompts of several chunks a run that evicts can leave a state at a place where
this one leaves none, and hit it later.
"""

from __future__ import annotations

from policies.prompt_tree import PromptTree
from policies.registry import (
    CacheArguments,
    PolicyArguments,
    PolicyContext,
    Recipe,
    policy_family,
)

#: State slots that a request holds while it runs, its latest state in the tree included.
STATES_RUNNING = 4


@policy_family("infinite", "nothing is ever evicted; the bound, but for prompts of several chunks")
def infinite(arguments: PolicyArguments) -> Recipe:
    def recipe(context: PolicyContext) -> CacheArguments:
        blocks, longest = distinct_blocks(context)
        return CacheArguments(
            core="rust",
            kv_tokens=blocks + context.running * longest,
            # A state lies at the end of some block, one at most.
            state_slots=blocks + context.running * STATES_RUNNING,
        )

    return recipe


def distinct_blocks(context: PolicyContext) -> tuple[int, int]:
    """Blocks that a trace's prompts and outputs fill in a radix tree, and those of its longest
    request; a block of output that the trace does not name counts as new."""
    tree = PromptTree()
    blocks = longest = 0
    for index, request in enumerate(context.requests()):
        prompt = request.input_length // context.block_tokens
        total = (request.input_length + request.output_length) // context.block_tokens
        named = (request.prompt_ids[:prompt] + request.output_ids)[:total]
        blocks += tree.add(index, named) + total - len(named)
        longest = max(longest, total)
    return blocks, longest
