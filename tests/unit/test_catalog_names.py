"""Names and ids: what is accepted, and that no two meanings share a string."""

import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorebase.serving.catalog import check_base_id, split_adapter_name, version_id
from lorebase.serving.errors import InvalidArgumentError

_FIRST = "abcxyz019"
SEGMENT = st.builds(
    str.__add__, st.sampled_from(_FIRST), st.text(alphabet=_FIRST + "._-", max_size=12)
)
FEW = settings(max_examples=50, deadline=None)


@FEW
@given(tenant=SEGMENT, name=SEGMENT)
def test_a_name_splits_into_its_tenant_and_the_rest(tenant: str, name: str) -> None:
    assert split_adapter_name(f"{tenant}/{name}") == (tenant, name)


@FEW
@given(text=st.text(max_size=40))
def test_no_string_is_both_an_adapter_name_and_a_base_id(text: str) -> None:
    accepted = 0
    for check in (split_adapter_name, check_base_id):
        try:
            check(text)
        except InvalidArgumentError:
            continue
        accepted += 1
        assert "@" not in text
    assert accepted <= 1


@pytest.mark.parametrize(
    "name",
    ["", "a", "/a", "a/", "a/b/c", "A/b", "a/b@c", "a/b c", "-a/b", "a/.b", "a/b\n", "ä/b", "../b"],
)
def test_malformed_adapter_names_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected 'tenant/name', each part of lower"):
        split_adapter_name(name)


def test_a_name_may_have_128_characters_and_no_more() -> None:
    longest = "t/" + "n" * 126
    assert split_adapter_name(longest) == ("t", "n" * 126)
    with pytest.raises(InvalidArgumentError, match=r"129 characters.*at most 128"):
        split_adapter_name(longest + "n")


@pytest.mark.parametrize("base_id", ["tiny-a", "llama-3.1_8b", "0", "x" * 63])
def test_plain_base_ids_are_accepted(base_id: str) -> None:
    assert check_base_id(base_id) == base_id


@pytest.mark.parametrize("base_id", ["", "Tiny", "a/b", "a@b", "a b", ".a", "a\n", "x" * 64])
def test_malformed_base_ids_are_refused(base_id: str) -> None:
    with pytest.raises(InvalidArgumentError, match="base id"):
        check_base_id(base_id)


def test_a_base_id_that_looks_like_a_version_id_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="would be ambiguous"):
        check_base_id("v-0123456789ab")


def test_a_version_id_is_the_hash_of_adapter_base_and_digest() -> None:
    expected = hashlib.sha256(b"acme/a\0old\0sha256:00").hexdigest()[:12]
    assert version_id("acme/a", "old", "sha256:00") == f"v-{expected}"


@FEW
@given(parts=st.lists(st.tuples(SEGMENT, SEGMENT, SEGMENT), min_size=2, max_size=5, unique=True))
def test_version_ids_differ_where_their_parts_differ(parts: list[tuple[str, str, str]]) -> None:
    ids = [version_id(*part) for part in parts]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"v-[0-9a-f]{12}", one) for one in ids)
