"""P/D-Device as a rule for live answers: the cloud stops once its tokens last until the device continues.

The cloud's tokens are released at an even pace up to the device's first token. The remaining time of the device's
prefill is estimated anew for every token. If the device is late, the pace slows down to at most s seconds a token; if
that is not enough, the cloud is recalled, to generate more before the reader has to wait. Slowing down, recalling and
the spare time are our reconstruction of its speed controller. Symbols as in `timing`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from disco_core import checks
from disco_core.cost import End
from disco_core.dispatch import DispatchPlan
from disco_core.latency import DeviceProfile
from disco_core.migration import HAND_OVER, PREFILL, RECALL, STAY, AnyPrompt, Decision, Rule, StreamState
from disco_core.record import LATE

MOST_RECALLS = 2  # after so many recalls the cloud generates the rest
ROUNDING_S = 1e-6  # the same time computed in two ways differs by less
STEP_TOKENS = 32  # endpoints report prefill in steps of this size; within a step the profile is used


def plan_together(*, refined: bool = False) -> DispatchPlan:
    """The prompt goes to both endpoints at once; refined: to the cloud first, which refines it for the device."""
    delays_s = np.array([[[0.0]], [[math.inf if refined else 0.0]]])
    return DispatchPlan("P/D-Device", np.array([1]), delays_s, np.ones((1, 1)))


@dataclass(frozen=True, eq=False)
class TakeOver(Rule):
    """The device takes over once the pace can stay within s seconds a token; use it with `plan_together`.

    device         profile: its prefill and decode rates
    cloud_token_s  t_c, seconds between the cloud's tokens
    tpot_limit_s   s, limit on seconds per output token
    resume_s       longest time in seconds until a recalled cloud sends its next token
    spare          share by which the device's prefill may exceed the expected time before a recall
    refine         function that makes the device's prompt from the full one; it is called in the event loop, so it
                   must be fast. None: the device prefills the full prompt, from the start of the request

    The hand-over needs a device with a prefix cache (`prefix_cache=True`), and is not made if a token of cloud or
    device takes longer than s. If the device does not report its prefill, a delay shows only once it is overdue; the
    reader may then wait for `resume_s`. A prefill longer than the stream's `stall_s` is a failure, and so is a cloud
    that stalls as long.
    """

    device: DeviceProfile
    cloud_token_s: float
    tpot_limit_s: float
    resume_s: float
    refine: Callable[[Any], Any] | None = None
    spare: float = 0.0

    target = End.DEVICE

    def __post_init__(self) -> None:
        checks.instance_of(self.device, DeviceProfile, "device")
        for name in ("cloud_token_s", "resume_s", "spare"):
            checks.number(getattr(self, name), name)
        checks.positive(self.tpot_limit_s, "tpot_limit_s")

    def prompt_for(self, end: End, prompt: AnyPrompt) -> AnyPrompt:
        """The full prompt for the cloud, the refined one for the device."""
        refined: AnyPrompt = prompt if self.refine is None or end is End.SERVER else self.refine(prompt)
        return refined

    def decide(self, state: StreamState) -> Decision:
        """The device prefills, and takes over once the cloud's tokens last; if it is late, the cloud is recalled."""
        if state.awaited:
            return self._awaits(state)
        if not self._bridged(state):
            # a refined prompt is ready with the cloud's first token, at which the device starts its prefill
            return PREFILL if state.running or self.refine is not None else STAY
        return HAND_OVER if state.prefix_cache else replace(STAY, reason="the device has no prefix cache")

    def _bridged(self, state: StreamState) -> bool:
        """Whether the cloud's n tokens bridge the time until the device's first, `(R - C) / n <= s`."""
        if max(self.cloud_token_s, 1 / self.device.decode_rate) > self.tpot_limit_s:
            return False
        if sum(one.reason == LATE for one in state.record.handovers) == MOST_RECALLS:
            return False
        if not state.record.handovers:
            lasts_s = self._first_s(state) + len(state.record.tokens) * self.tpot_limit_s
        elif state.running:  # it was late: this time its prefill has to finish first
            return False
        else:  # and some tokens may have been released too early
            lasts_s = self._lasts_s(state)
        return self._planned_s(state, len(state.record.tokens)) <= lasts_s + ROUNDING_S

    def due_s(self, state: StreamState, index: int, source: End) -> float:
        """A token of the cloud: `tau = max(t_c, (R - C) / n)` after the last, at most s; of the device: 1/d after."""
        last = state.record.tokens[index - 1]
        last_s = last.released_s
        if source is End.DEVICE:
            return last_s + (self.cloud_token_s if last.source is End.SERVER else 1 / self.device.decode_rate)
        sent = self._sent(state)
        even_s = (self._planned_s(state, sent) - last_s) / (sent - index + 1)
        return last_s + max(self.cloud_token_s, min(even_s, self.tpot_limit_s))

    def _awaits(self, state: StreamState) -> Decision:
        """Recall the cloud at the latest time at which the reader waits no longer than s for a token.

        It is recalled only if the device is not expected by then; otherwise this is checked again soon after.
        """
        lasts_s, often_s = self._lasts_s(state), self.tpot_limit_s / 8
        ask_s = lasts_s - self.resume_s - often_s
        if ask_s > state.now_s + ROUNDING_S:  # the pace may change until then
            return replace(STAY, again_s=min(ask_s, state.now_s + self.tpot_limit_s))
        late = lasts_s + ROUNDING_S < self.ready_s(state, len(state.record.tokens))
        return RECALL if late else replace(STAY, again_s=state.now_s + often_s)

    def ready_s(self, state: StreamState, sent: int) -> float:
        """R: when the device has prefilled its prompt and `sent` tokens; inf if it is overdue and reports nothing.

        A device that reports its prefill is expected to continue at the speed so far, at most that of its profile.
        """
        rate, l = self.device.prefill_rate, state.prompt_tokens
        known = next((one.at for one in reversed(state.record.handovers) if one.target is End.DEVICE), 0)
        made = state.record.tokens
        made_s = (made[-1].generated_s if made else state.now_s) + (sent - len(made)) * self.cloud_token_s
        there_s = max(state.now_s, made_s)
        if not state.running and state.running_s > 0:
            return there_s + (sent - known) / rate
        prefilling_s = state.running_s - self.device.startup
        left_s = (l + known) / rate - prefilling_s
        if state.prefilled is not None and prefilling_s > 0:
            expected = prefilling_s * rate
            done = expected if state.prefilled <= expected < state.prefilled + STEP_TOKENS else state.prefilled
            rate = min(rate, done / prefilling_s)
            left_s = (l + known - done) / rate if done else math.inf
        elif left_s < -ROUNDING_S - self.spare * (l + known) / rate:
            left_s = math.inf
        return max(state.now_s + left_s, there_s) + (sent - known) / rate if left_s < math.inf else math.inf

    def _planned_s(self, state: StreamState, sent: int) -> float:
        """R, including the spare time."""
        return self.ready_s(state, sent) + self.spare * (state.prompt_tokens + sent) / self.device.prefill_rate

    def _lasts_s(self, state: StreamState) -> float:
        """When the reader runs out of tokens, if one is released every s seconds from now on."""
        left = len(state.record.tokens) - state.released
        return state.record.tokens[state.released - 1].released_s + (left + 1) * self.tpot_limit_s

    def _sent(self, state: StreamState) -> int:
        """Tokens that the cloud has sent at the hand-over, or will have sent by then."""
        there = len(state.record.tokens)
        if state.record.handovers and state.record.handovers[-1].target is End.DEVICE:
            return state.record.handovers[-1].at
        behind_s = self._planned_s(state, 0) - self._first_s(state)
        room_s = self.tpot_limit_s - 1 / self.device.prefill_rate
        return (
            max(there, math.ceil((behind_s - ROUNDING_S) / room_s))
            if room_s > 0 and math.isfinite(behind_s)
            else there + 1
        )

    @staticmethod
    def _first_s(state: StreamState) -> float:
        return state.now_s if state.record.ttft_s is None else state.record.ttft_s
