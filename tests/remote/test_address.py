"""Addresses on the Hub: what they mean, what is none, and what an adapter from there is called."""

from __future__ import annotations

import pytest

from adapterhub.errors import UsageError
from adapterhub.names import parse_name
from adapterhub.remote.address import HubAddress, is_hub, parse_address


@pytest.mark.parametrize(
    ("text", "meant", "name"),
    [
        ("hf://org/repo", HubAddress("org/repo"), "org/repo"),
        ("hf://gpt2", HubAddress("gpt2"), "gpt2"),
        ("HF://org/repo", HubAddress("org/repo"), "org/repo"),
        ("hf://models/org/repo", HubAddress("org/repo"), "org/repo"),
        ("hf://org/repo/", HubAddress("org/repo"), "org/repo"),
        ("hf://org/repo@v1.0", HubAddress("org/repo", "v1.0"), "org/repo"),
        ("hf://org/repo/a/b", HubAddress("org/repo", None, "a/b"), "org/repo-a-b"),
        ("hf://org/repo@v1/a b", HubAddress("org/repo", "v1", "a b"), "org/repo-a-b"),
        ("hf://gpt2@main/a", HubAddress("gpt2", "main", "a"), "gpt2-a"),
        ("hf://org/repo@refs%2Fpr%2F3", HubAddress("org/repo", "refs/pr/3"), "org/repo"),
        ("hf://org/repo@feature%2Fx/a", HubAddress("org/repo", "feature/x", "a"), "org/repo-a"),
        ("hf://con/_x_", HubAddress("con/_x_"), "adapter-con/x"),
    ],
)
def test_an_address_means_one_place_and_proposes_a_legal_name(
    text: str, meant: HubAddress, name: str
) -> None:
    assert is_hub(text)
    assert parse_address(text) == meant
    assert meant.name == name
    assert parse_name(name).path == name


@pytest.mark.parametrize(
    "address",
    [
        HubAddress("org/repo"),
        HubAddress("gpt2"),
        HubAddress("org/repo", "v1"),
        HubAddress("org/repo", "feature/x%y", "a/b"),
        HubAddress("gpt2", "main", "a"),
    ],
)
def test_an_address_written_out_is_read_as_itself(address: HubAddress) -> None:
    assert parse_address(str(address)) == address


def test_a_folder_of_an_old_bare_name_is_written_with_a_revision() -> None:
    assert str(HubAddress("gpt2", None, "a")) == "hf://gpt2@main/a"


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf:///repo",
        "hf://org/",
        "hf://org//repo",
        "hf://../repo",
        "hf://org/..",
        "hf://org/repo/../other",
        "hf://org/repo//a",
        "hf://org/repo/.",
        "hf://org/re po",
        "hf://org/repo?x=1",
        "hf://org/repo.git",
        "hf://org/a--b",
        "hf://org/" + "a" * 97,
        "hf://-org/repo",
        "hf://org/repo@",
        "hf://org/repo@a b",
        "hf://org/repo@a..b",
        "hf://org/repo@-x",
        "hf://org/repo@%2Fx",
        "hf://org/repo@%00",
        "hf://org/repo@%ff",
        "hf://org/repo@a@b",
        "hf://org/repo@a^1",
        "hf://org/repo@x.lock",
        "hf://org/repo/a\\b",
        "hf://org/repo/a\x1b[2J",
        "hf://or\ng/repo",
        "hf://org/repo@ма\u202eин",
        "org/repo",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert "hf://org/repo@revision/folder" in caught.value.hint
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize("kind", ["datasets", "spaces", "buckets"])
def test_other_things_on_the_hub_are_named_as_such(kind: str) -> None:
    with pytest.raises(UsageError, match=f"it is in {kind}"):
        parse_address(f"hf://{kind}/org/repo")


def test_a_pull_request_is_not_taken_for_a_branch_and_a_folder() -> None:
    with pytest.raises(UsageError, match="hf://org/repo@refs%2Fpr%2F3"):
        parse_address("hf://org/repo@refs/pr/3/adapter")


@pytest.mark.parametrize("text", ["./folder", "org/repo", "hf:org", "https://huggingface.co/o/r"])
def test_a_path_is_no_address(text: str) -> None:
    assert not is_hub(text)
