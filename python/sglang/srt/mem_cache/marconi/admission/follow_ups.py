"""Where conversations go on from finished requests: the evidence for keeping ends of prompts."""

from __future__ import annotations

from sglang.srt.mem_cache.marconi.admission.rules import Admission


class FollowUps:
    """Watches the two ends of each finished request and tells an admission which one was of use.

    A request's prompt ends at one prefix and its output at a deeper one. The next request of the
    conversation goes on from the latter if its client sent the whole output back. Otherwise its
    prompt parts from the cached one somewhere between the two. Ids are those of the tree's nodes.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._prompt_end_of: dict[int, int] = {}
        self._output_end_of: dict[int, int] = {}

    def clear(self) -> None:
        self._prompt_end_of.clear()
        self._output_end_of.clear()

    def watch(self, prompt_end: int, output_end: int) -> None:
        self.forget(prompt_end)
        self.forget(output_end)
        self._output_end_of[prompt_end] = output_end
        self._prompt_end_of[output_end] = prompt_end

    def forget(self, node: int) -> bool:
        """Watch an end no longer; ``False`` if it was none."""
        output_end = self._output_end_of.pop(node, None)
        if output_end is not None:
            del self._prompt_end_of[output_end]
        prompt_end = self._prompt_end_of.pop(node, None)
        if prompt_end is not None:
            del self._output_end_of[prompt_end]
        return output_end is not None or prompt_end is not None

    def seen(self, node: int) -> None:
        """A request resumes at ``node`` or has left a state there."""
        from_output = node in self._prompt_end_of
        if self.forget(node):
            self._admission.went_on(from_output=from_output)

    def parted(self, lower: int) -> None:
        """A prompt parts above ``lower``, below the node before it."""
        if lower in self._prompt_end_of:
            self.forget(lower)
            self._admission.went_on(from_output=False)
