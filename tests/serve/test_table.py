"""What names mean: aliases, versions, split requests, and the way back."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.serve.door.table import HISTORY, Route, Table, Target

A, B, C = (f"sha256:{digit * 64}" for digit in "abc")


@pytest.fixture
def table() -> Table:
    table = Table("org/base", started=1)
    table.set("support/tone", [Target(A)])
    return table


def test_an_alias_its_version_and_the_base_are_routed_and_listed(table: Table) -> None:
    version = f"support/tone@{'a' * 12}"
    assert [model.name for model in table.models()] == ["org/base", "support/tone", version]
    assert table.route("org/base", "") == Route("org/base", None)
    assert table.route("support/tone", "") == Route("support/tone", A)
    assert table.route(version, "") == Route(version, A)
    assert table.route("support/tone:v2", "") is None
    assert table.like("suport/tone")[0] == "support/tone"


def test_after_an_update_the_old_version_can_still_be_asked_for_and_gone_back_to(
    table: Table,
) -> None:
    table.set("support/tone", [Target(B)])
    assert table.route("support/tone", "") == Route("support/tone", B)
    assert table.route(f"support/tone@{'a' * 12}", "") is not None
    assert f"support/tone@{'a' * 12}" not in {model.name for model in table.models()}
    assert table.rollback("support/tone") is not None
    assert table.route("support/tone", "") == Route("support/tone", A)
    assert table.route(f"support/tone@{'b' * 12}", "") is not None
    assert table.rollback("support/tone") is None


def test_history_is_bounded_and_the_oldest_version_is_let_go(table: Table) -> None:
    for number in range(HISTORY + 1):
        table.set("support/tone", [Target(f"sha256:{number:x}{'0' * 63}")])
    assert A not in table.digests()
    assert len(table.digests()) == HISTORY + 1


def test_a_version_may_be_named_by_more_or_fewer_digits_but_never_by_two_versions_beginning() -> (
    None
):
    table = Table("base")
    near = f"sha256:{'a' * 12}{'b' * 52}"
    table.set("tone", [Target(A)])
    assert table.route(f"tone@{A}", "") == Route(f"tone@{A}", A)
    assert table.route("tone@aaaaaa", "") == Route("tone@aaaaaa", A)
    assert table.route("tone@aaaaa", "") is None
    table.set("tone", [Target(near)])
    assert table.route(f"tone@{'a' * 12}", "") is None
    assert table.route(f"tone@{near}", "") == Route(f"tone@{near}", near)


def test_setting_what_it_means_already_is_no_step_in_its_history(table: Table) -> None:
    table.set("support/tone", [Target(A)])
    assert table.rollback("support/tone") is None


def test_two_tags_of_one_version_share_its_name_and_removing_one_keeps_it(table: Table) -> None:
    table.set("support/tone:v1", [Target(A)])
    table.remove("support/tone:v1")
    assert table.route(f"support/tone@{'a' * 12}", "") is not None
    table.remove("support/tone")
    assert table.digests() == set()


@given(sticky=st.text(max_size=20), share=st.floats(0.01, 100))
def test_equal_keys_get_equal_versions_of_a_split_alias(sticky: str, share: float) -> None:
    table = Table("base")
    table.set("tone", [Target(A, 1.0), Target(B, share)])
    first = table.route("tone", sticky)
    assert first is not None
    assert first.digest in (A, B)
    assert table.route("tone", sticky) == first


def test_shares_are_kept_over_many_keys() -> None:
    table = Table("base")
    table.set("tone", [Target(A, 6), Target(B, 3), Target(C, 1)])
    drawn: Counter[str | None] = Counter()
    for key in range(20_000):
        route = table.route("tone", str(key))
        assert route is not None
        drawn[route.digest] += 1
    # four standard deviations of a binomial
    for digest, share in ((A, 0.6), (B, 0.3), (C, 0.1)):
        assert abs(drawn[digest] - 20_000 * share) < 4 * (20_000 * share * (1 - share)) ** 0.5


def test_aliases_split_apart_from_each_other() -> None:
    table = Table("base")
    for name in ("one", "two"):
        table.set(name, [Target(A), Target(B)])
    routes = [(table.route("one", str(key)), table.route("two", str(key))) for key in range(400)]
    same = sum(one.digest == two.digest for one, two in routes if one and two)
    assert 120 < same < 280
