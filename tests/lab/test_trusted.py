"""A pack of what a trusted host says: what it holds, what is refused, and what it costs first."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from audits import FAULT, host, write_card, write_run_file
from command_line import _plain_surroundings, call
from fakes_engine import WORDS
from fakes_host import Answer, Asked, FakeHost, chat, error
from packs import TOKENS, configure_packed, record_tiny_pack, run_packed, trust, write_tiny_pack

from verifier.errors import ConfigError, EndpointError
from verifier.evidence.hazards import WINDOW, leaving_of
from verifier.lab.trusted import Asking, describe, draw_asked, foresee
from verifier.probes import load_pool
from verifier.reference.pack_file import TOP, read_pack

__all__ = ["_plain_surroundings"]  # a fixture


def speak(
    prompt: str,
    *,
    alternatives: int | None,
    step: float = 0.0,
    flips: int = 0,
    fuzz: float = 0.0,
    tie: int = 0,
    sure: bool = False,
) -> dict[str, Any]:
    """An answer of eight words that depend on the prompt, each with so many alternatives.

    `step`: what log-probabilities are rounded to; `flips`: the place at which another word is said,
    counted from 1; `fuzz` (nats) is added to the first of each; `tie`: where two words are about
    as likely; `sure`: as of a temperature near 0.
    """
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
    words = [WORDS[(seed + n * (1 + seed % 7)) % 16] for n in range(8)]
    rows = []
    for at, word in enumerate(words):
        named = [word, *[w for w in WORDS[:16] if w != word]]
        if flips == at + 1:
            named[0], named[1] = named[1], named[0]
        values = [-0.13 - fuzz, *(-2.04 - n for n in range(len(named) - 1))]
        if tie == at + 1:
            values[:2] = [-0.70, -0.72]
        if sure:
            values = [value * (20 if n else 1e-4) for n, value in enumerate(values)]
        if step:
            values = [round(value / step) * step for value in values]
        told = [
            {"token": w, "bytes": list(w.encode()), "logprob": v}
            for w, v in zip(named, values, strict=True)
        ]
        words[at] = named[0]
        rows.append(told[0] | {"top_logprobs": told[:alternatives]})
    body = chat(
        "".join(words).strip(), logprobs=None if alternatives is None else {"content": rows}
    )
    body["usage"] = {"prompt_tokens": 7, "completion_tokens": 9}
    return body


@contextmanager
def speaking(
    *, scouts: int = 3, second: dict[str, Any] | None = None, seldom: bool = False, **how: Any
) -> Iterator[str]:
    """A host that speaks so; of every question asked again as `second` has it, `seldom` of one in
    three. So many requests come first, to find out what it gives."""
    heard: Counter[str] = Counter()
    total = 0

    def script(asked: Asked) -> dict[str, Any]:
        nonlocal total
        total += 1
        if total <= scouts:
            return speak(asked.prompt, **how)
        heard[asked.prompt] += 1
        again = heard[asked.prompt] > 1 and not (seldom and len(asked.prompt) % 3)
        return speak(asked.prompt, **(how | (second or {} if again else {})))

    with FakeHost(script) as found:
        yield found.url


# -- what it holds -----------------------------------------------------------------------------


def test_a_pack_of_scores_has_what_the_host_named(tmp_path: Path) -> None:
    """The paths, and the very log-probabilities that the weights behind it have."""
    weights = read_pack(write_tiny_pack(tmp_path, questions=24))
    with host() as url:
        told: list[str] = []
        said = read_pack(record_tiny_pack(tmp_path, url, questions=24, tell=told.append))

    trusted = said.manifest.trusted
    assert (said.manifest.source, said.manifest.panel) == ("scores", 0)
    assert trusted is not None
    assert (trusted.questions, trusted.repeated, trusted.hazard) == (24, 24, 0.0)
    assert trusted.alternatives == TOP
    assert trusted.model == "tiny"
    assert "asked twice, it repeated 24 of 24" in told[-1]
    alike = 0
    for number, probe in enumerate(said.probes):
        own = weights.index.get(probe.id)
        if own is None or weights.probes[own].messages != probe.messages:
            continue
        one, other = said.paths[number, 0], weights.paths[own, 0]
        place, known = said.place(one, 0), weights.place(other, 0)
        assert said.token_id(place.tokens[0]) == weights.token_id(known.tokens[0])
        assert place.logprobs[0] == pytest.approx(known.logprobs[0], abs=1e-3)
        assert place.few
        assert not known.few
        alike += 1
    assert alike


def test_a_reply_that_parted_is_a_branch(tmp_path: Path) -> None:
    """Where it parted, with what came then."""
    with speaking(alternatives=5, tie=3, second={"flips": 3}, seldom=True) as url:
        pack = read_pack(record_tiny_pack(tmp_path, url, questions=24))

    trusted = pack.manifest.trusted
    assert trusted is not None
    assert 0 < trusted.repeated < 24
    assert len(pack.branches) == 24 - trusted.repeated
    for (path, at, token), branch in pack.branches.items():
        place = pack.place(path, at)
        assert at == 2
        assert token == place.tokens[1]  # the likeliest but one, by the host's own words
        assert pack.length(branch) == pack.length(path) - 3
    assert trusted.hazard == pytest.approx(
        len(pack.branches) / (3 * len(pack.branches) + 9 * trusted.repeated), abs=1e-6
    )


def test_texts_hold_every_reply_and_how_soon_the_host_left_itself(tmp_path: Path) -> None:
    """Asked again it says some seventh word otherwise; a second host says every eighth so."""
    with (
        speaking(scouts=6, alternatives=None, second={"flips": 7}, seldom=True) as url,
        speaking(scouts=0, alternatives=None, flips=8) as other,
    ):
        path = record_tiny_pack(tmp_path, url, questions=12, second=other, tokens=24)
    pack = read_pack(path)

    trusted = pack.manifest.trusted
    assert trusted is not None
    assert (pack.manifest.source, trusted.second_model) == ("texts", "tiny")
    itself, second = (
        [leaving_of(int(n)) for n in column] for column in pack.tensors["leaving"].T
    )  # fmt: skip
    assert sum(not row.left for row in itself) == trusted.repeated < 12
    assert all(row.exposure >= 7 for row in itself if row.left)  # a word may be several tokens
    assert all(row.left and row.exposure >= 8 for row in second)
    assert [len(pack.replies(n)) for n in range(12)] == [3 if row.left else 2 for row in itself]
    assert pack.place(0, 0).logprobs == (0.0,)


def test_what_was_asked_is_not_asked_again(tmp_path: Path) -> None:
    """Stopped half way, the same command goes on, and the pack is the same."""
    served = 0

    def script(asked: Asked) -> Answer | dict[str, Any]:
        nonlocal served
        served += 1
        return error(401) if served == 30 else speak(asked.prompt, alternatives=5)

    with FakeHost(script) as found:
        with pytest.raises(EndpointError):
            record_tiny_pack(tmp_path, found.url, questions=20, concurrency=1)
        assert not (tmp_path / "said.pack").exists()
        path = record_tiny_pack(tmp_path, found.url, questions=20, concurrency=1)

    assert served <= 3 + 2 * 20 + 2
    assert read_pack(path).manifest.trusted is not None


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "wanted", "said"),
    [
        ({"alternatives": None}, "scores", "no log-probabilities, which --scores wants"),
        ({"alternatives": 2}, None, "names 2 tokens at a place at most, and it takes 3"),
        ({"alternatives": 5, "step": 0.1}, None, "are rounded to 0.1"),
        ({"alternatives": 5, "sure": True}, None, "not its model's own, but of a temperature"),
        ({"alternatives": 5, "second": {"fuzz": 0.5}}, None, "nats apart"),
        ({"alternatives": 5, "second": {"flips": 1}}, None, "does not agree with itself"),
        (
            {"alternatives": None, "second": {"flips": 1}, "scouts": 6},
            None,
            "does not agree with itself",
        ),
    ],
)
def test_a_host_that_is_of_no_use_is_refused_in_one_line(
    tmp_path: Path, how: dict[str, Any], wanted: Any, said: str
) -> None:
    """With nothing half written: the work folder alone is there."""
    with speaking(**how) as url, pytest.raises(ConfigError, match=said) as refused:
        record_tiny_pack(tmp_path, url, questions=40, wanted=wanted)

    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["said.pack.work"]


def test_a_host_without_scores_gives_texts_and_that_is_said(tmp_path: Path) -> None:
    """Few alternatives are no hindrance to that, where they are not wanted."""
    told: list[str] = []
    with speaking(alternatives=None) as url:
        pack = read_pack(record_tiny_pack(tmp_path, url, questions=8, tell=told.append))
    with speaking(alternatives=2) as url:
        other = record_tiny_pack(tmp_path, url, questions=8, wanted="texts", name="other.pack")

    assert pack.manifest.source == read_pack(other).manifest.source == "texts"
    assert any("gives no log-probabilities: its texts alone are recorded" in one for one in told)


def test_a_host_that_ends_early_is_refused(tmp_path: Path) -> None:
    """It fails all of a sudden; and one that refuses every other question."""
    served = 0

    def script(asked: Asked) -> Answer | dict[str, Any]:
        nonlocal served
        served += 1
        return error(500) if served > 12 else speak(asked.prompt, alternatives=5)

    with FakeHost(script) as found, pytest.raises((ConfigError, EndpointError)) as refused:
        record_tiny_pack(tmp_path, found.url, questions=40, concurrency=1)

    assert "answered" in str(refused.value)


def test_a_second_host_beside_scores_is_refused(tmp_path: Path) -> None:
    """It would be asked for nothing."""
    with (
        speaking(alternatives=5) as url,
        speaking(scouts=0, alternatives=None) as other,
        pytest.raises(ConfigError, match="need no second one"),
    ):
        record_tiny_pack(tmp_path, url, questions=8, second=other)


def test_a_host_that_counts_prompts_otherwise_is_told_of(tmp_path: Path) -> None:
    """It may put words of its own before them; the audit says so too."""
    told: list[str] = []
    with speaking(alternatives=5) as url:  # it counts 7 of each
        path = record_tiny_pack(tmp_path, url, questions=24, tell=told.append)
    with host() as url:
        report = run_packed(configure_packed(url, path, tmp_path / "run"))

    assert "counts 24 of 24 prompts otherwise than the published template" in told[-1]
    assert any("counts 24 of 24 prompts otherwise" in note for note in report.notes)


def test_a_second_host_that_says_something_else_is_refused(tmp_path: Path) -> None:
    """One of the two serves other weights."""
    with (
        speaking(scouts=0, alternatives=None) as url,
        speaking(scouts=0, alternatives=None, flips=1) as other,
        pytest.raises(ConfigError, match="--second: leaves the replies of 127"),
    ):
        record_tiny_pack(tmp_path, url, questions=40, wanted="texts", second=other)


# -- what it costs -----------------------------------------------------------------------------


def test_what_it_takes_is_told_first_and_a_budget_that_is_smaller_refused() -> None:
    """Each question twice, and a few before; the second host once, of texts."""
    asking = Asking(
        questions=50, seed=1, tokens=48, wanted=None, host=trust("http://a.example/v1"),
        second=trust("http://b.example/v1"),
    )  # fmt: skip
    probes = draw_asked(load_pool(), asking)
    first, second = foresee(asking, probes)

    assert first.most.amount.requests == 2 * 50 + 2 * 3
    assert first.most.amount.completion_tokens == first.most.amount.requests * 48
    assert second.most.amount.completion_tokens == 50 * (WINDOW + 1)
    assert "cost not known" in describe([first, second], questions=50)[-1]
    poor = Asking(
        questions=50, seed=1, tokens=48, wanted=None,
        host=trust("http://a.example/v1", budget=4000),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"audit.budget_completion_tokens: 4,000"):
        foresee(poor, probes)


def test_a_dry_run_asks_nobody_and_names_the_price(tmp_path: Path) -> None:
    """Nothing is written; run files of other cards, and options that do not fit, are refused."""
    with FakeHost(lambda asked: speak(asked.prompt, alternatives=5)) as found:
        file = write_run_file(tmp_path, found.url, budget_completion_tokens=100_000)
        card, out = tmp_path / "tiny.yaml", tmp_path / "a.pack"
        before = {path.name for path in tmp_path.iterdir()}
        options = (card, "--probes", 20, "--out", out, "--from", file)
        dry = call("pack", "make", *options, "--dry-run")
        poor = write_run_file(tmp_path, found.url, name="poor.yaml")
        refused = [
            call("pack", "make", card, "--probes", 20, "--out", out, *more)
            for more in (
                ("--from", poor, "--dry-run"),
                ("--from", file, "--engine", "vllm"),
                ("--from", file, "--second", file),
                ("--scores",),
            )
        ]
        assert found.asked == []

    assert dry.status == 0
    assert "at most USD 0." in dry.out
    assert before | {"poor.yaml"} == {path.name for path in tmp_path.iterdir()}
    for ended, said in zip(
        refused,
        (
            "audit.budget_completion_tokens: 240",
            "--engine: beside --from",
            "the very host",
            "--from",
        ),
        strict=True,
    ):
        assert said in ended.complaint


def test_a_run_file_of_a_trusted_host_needs_no_more_than_the_host(tmp_path: Path) -> None:
    """What the command says already, card and file, need not stand in it."""
    card = write_card(tmp_path)
    file = tmp_path / "host.yaml"
    file.write_text(
        "endpoint: {base_url: 'http://127.0.0.1:1/v1', model: m}\n"
        "audit: {budget_completion_tokens: 100000}\n"
    )
    ended = call(
        "pack", "make", card, "--probes", 20, "--out", tmp_path / "a.pack", "--from", file,
        "--dry-run",
    )  # fmt: skip

    assert ended.status == 0, ended.complaint
    assert "20 questions" in ended.out


@pytest.mark.parametrize(
    ("card", "options", "said"),
    [
        ("minimax-m2.7", (), "it knows no setting that turns that off"),
        ("qwen3-8b", (), "add --no-think"),
        ("qwen3-8b", ("--think",), "add --no-think"),
    ],
)
def test_thoughts_of_a_host_are_not_recorded(
    tmp_path: Path, card: str, options: tuple[str, ...], said: str
) -> None:
    """One line says what can be done instead; with thinking off the plan is told."""
    file = tmp_path / "host.yaml"
    file.write_text(
        "endpoint: {base_url: 'http://127.0.0.1:1/v1', model: m}\n"
        "audit: {budget_completion_tokens: 100000}\n"
    )
    asked = ("--probes", 20, "--out", tmp_path / "a.pack", "--from", file, "--dry-run")
    ended = call("pack", "make", card, *asked, *options)

    assert ended.status == 2
    assert said in ended.complaint
    if said.startswith("add"):
        assert call("pack", "make", card, *asked, "--no-think").status == 0


# -- audits ------------------------------------------------------------------------------------


def test_audits_from_scores_of_a_host_tell_what_those_from_weights_tell(tmp_path: Path) -> None:
    """An honest host and one with other weights."""
    with host() as url:
        path = record_tiny_pack(tmp_path, url, questions=40)
        honest = run_packed(configure_packed(url, path, tmp_path / "honest"))
    with host(FAULT) as url:
        faulty = run_packed(configure_packed(url, path, tmp_path / "faulty"))

    assert honest.decision == "consistent"
    assert faulty.decision == "inconsistent"
    assert "on trust" in honest.notes[0]
    assert "the log-probabilities of a trusted host" in honest.notes[0]
    assert read_pack(path).manifest.max_tokens == TOKENS


def test_a_pack_says_whose_word_it_is(tmp_path: Path) -> None:
    """`pack show` names the host, and how it agreed with itself."""
    write_card(tmp_path)
    with host() as url:
        path = record_tiny_pack(tmp_path, url, questions=8)

    shown = call("pack", "show", path).out
    assert "the log-probabilities of a trusted host" in shown
    assert "on its word" in shown
    assert "8 of 8 replies came again" in shown
    assert call("pack", "check", path).status == 0
