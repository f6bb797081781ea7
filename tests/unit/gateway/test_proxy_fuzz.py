"""What holds for the data path whatever is said on either side, and however it comes apart on the way.

The conversations, the reader that judges them and the transports are in `tests/support`; `bench/fuzz.py` runs the same
properties for longer, guided by the code that they reach.
"""

from hypothesis import given, settings
from tests.support import proxy_fuzz as fuzz

# Twice as many as other properties get (`make test-unit` has its own, smaller number): about 15 s for all of them.
often = settings(max_examples=2 * settings.default.max_examples)


@often
@given(fuzz.split_cases)
def test_a_valid_conversation_ends_the_same_however_its_bytes_are_split(case):
    fuzz.check_splits_do_not_matter(case)


@often
@given(fuzz.meaning_cases)
def test_each_side_gets_what_the_other_said(case):
    fuzz.check_meaning_is_kept(case)


@often
@given(fuzz.attacks)
def test_a_hostile_client_harms_nobody_but_itself(attack):
    fuzz.check_hostile_clients(attack)


@often
@given(fuzz.poisons)
def test_what_a_broken_instance_says_never_becomes_the_answer_to_somebody_else(poison):
    fuzz.check_hostile_instances(poison)


@often
@given(fuzz.stories)
def test_every_request_ends_once_whatever_fails_around_it(story):
    fuzz.check_failing_instances(story)


@often
@given(fuzz.tunnels)
def test_a_tunnel_carries_every_byte_and_ends_with_either_side(case):
    fuzz.check_tunnels(case)
