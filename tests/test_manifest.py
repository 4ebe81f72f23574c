"""Each bound of the contract, said with its field; and a manifest means the same on paper, on the wire and in words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import errors, forms, manifest, options
from meshnode.sessions import timers
from meshnode.wire import cbor, envelope, schema
from meshnode.wire.award import MANIFEST_BYTES_MAX, Invitation
from tests.sessions import cases

BROKEN: list[tuple[str, Any]] = [
    ("characteristics.context_tokens", 63),
    ("characteristics.context_tokens", (1 << 20) + 1),
    ("characteristics.duration_s", 0),
    ("placement.model_digest", "00"),
    ("placement.model", "m" * 129),
    ("placement.numeric_class", "w9"),
    ("placement.zones", ["eu"] * 17),
    ("placement.zones", ["e" * 33]),
    ("placement.memory_bytes_min", -1),
    ("placement.latency_ms_max", -1),
    ("migration.loss_tokens_max", -1),
    ("migration.replicas", 7),
    ("migration.replicas", -1),
    ("migration.replicas_min", 2),
    ("scaling.keep_cold_s", -1),
    ("scaling.demand", "d" * 65),
    ("verification.audit_rate", 1.5),
    ("verification.tokens_per_s_min", -0.5),
    ("agent.temperature", 10.5),
    ("agent.temperature", float("nan")),
    ("agent.top_k", -1),
    ("agent.top_p", 0.0),
    ("agent.min_p", 1.0),
    ("agent.min_p", -0.1),
    ("agent.repetition_penalty", 0.0),
    ("agent.repetition_penalty", 10.5),
    ("agent.presence_penalty", -2.5),
    ("agent.frequency_penalty", 2.5),
    ("agent.frequency_penalty", float("inf")),
    ("agent.logit_bias", [{"token": 1, "amount": 1.0}] * 301),
    ("agent.logit_bias", [{"token": 1, "amount": 100.5}]),
    ("agent.logit_bias", [{"token": -1, "amount": 1.0}]),
    ("agent.logit_bias", [{"token": 1, "amount": 1.0}, {"token": 1, "amount": 2.0}]),
    ("agent.logprobs", 21),
    ("agent.logprobs", -1),
    ("agent.stop", ["a"] * 5),
    ("agent.stop", [""]),
    ("agent.stop", ["a" * 65]),
    ("agent.stop", ["\ud800"]),
    ("agent.grammar", {"kind": "json", "text": ""}),
    ("agent.grammar", {"kind": "json", "text": "ä" * (16 << 10) + "x"}),
    ("agent.grammar", {"kind": "json", "text": "\ud800"}),
    ("agent.grammar", {"kind": "gbnf", "text": "x"}),
    ("agent.seed", 2**63),
    ("agent.seed", -1),
    ("agent.max_tokens", 0),
    ("agent.max_tokens", 4097),
    ("agent.system", "x" * ((1 << 16) + 1)),
    ("agent.system", "\U0001f600" * (1 << 16)),
    ("value.start", float("inf")),
    ("migration.fidelity", "lossy"),
    ("migration.confidentiality", "client"),
    ("migration.sharing", "all"),
    ("characteristics.kind", "batch"),
]


def nested(path: str, value: object) -> dict[str, dict[str, object]]:
    table, name = path.split(".")
    return {table: {name: value}}


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=[f"{path}-{place}" for place, (path, _) in enumerate(BROKEN)])
def test_each_bound_is_refused_with_its_field(path: str, value: object) -> None:
    with pytest.raises(errors.ManifestError) as caught:
        manifest.read(nested(path, value))
    assert any(reason.startswith(path) for reason in caught.value.reasons)


def test_every_rule_of_the_contract_is_broken_by_some_case() -> None:
    words = {words.partition(":")[0] for _, words in manifest._RULES}
    words |= {f"agent.{words.partition(':')[0].partition('.')[0]}" for _, words in options._RULES}
    assert words - {path for path, _ in BROKEN} == set()


def test_several_mistakes_are_said_at_once() -> None:
    raw = {"agent": {"top_p": 2, "seed": -1, "temperatur": 1}, "migration": {"replicas": 9}, "plcement": {}}
    with pytest.raises(errors.ManifestError) as unread:
        manifest.read(raw)
    assert "did you mean 'temperature'?" in str(unread.value)
    assert "did you mean 'placement'?" in str(unread.value)
    del raw["agent"]["temperatur"], raw["plcement"]
    with pytest.raises(errors.ManifestError) as broken:
        manifest.read(raw)
    assert len(broken.value.reasons) == 3


@pytest.mark.parametrize("raw", [None, {}])
def test_nothing_is_a_plain_chat(raw: object) -> None:
    assert manifest.read(raw) == manifest.Manifest()


@pytest.mark.parametrize("raw", [[], "", 0, False, "interactive"])
def test_what_is_no_table_is_no_manifest(raw: object) -> None:
    with pytest.raises(errors.ManifestError):
        manifest.read(raw)


whole = st.integers(-3, 2**63 - 1)
manifests = st.builds(
    manifest.Manifest,
    st.builds(manifest.Characteristics, st.sampled_from(manifest.Kind), whole, whole),
    st.builds(manifest.Placement, st.text(max_size=3), st.just(b"") | st.binary(min_size=32, max_size=32)),
    st.builds(manifest.Migration, st.booleans(), whole, st.integers(-1, 8), st.integers(-1, 8)),
    agent=st.builds(
        manifest.Agent,
        st.text(st.characters(codec="utf-8"), max_size=9),
        *(st.floats(-1, 11), st.integers(-1, 99), st.floats(0, 1.1), st.floats(0, 1.1), st.floats(0.1, 9)),
        logit_bias=st.lists(st.builds(options.Bias, st.integers(0, 9), st.floats(-9, 9)), max_size=3).map(tuple),
        logprobs=st.none() | st.integers(0, 20),
        stop=st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=4).map(tuple),
        grammar=st.none()
        | st.builds(
            options.Grammar,
            st.sampled_from(options.GrammarKind),
            st.text(st.characters(codec="utf-8"), max_size=9),
        ),
    ),
)


@given(manifests)
def test_a_manifest_that_holds_means_the_same_in_words_and_on_the_wire(value: manifest.Manifest) -> None:
    if manifest.problems(value):
        with pytest.raises(errors.ManifestError):
            manifest.read(forms.write(value))
        return
    assert manifest.read(forms.write(value)) == value
    sent = Invitation(cases.SESSION, value)
    assert schema.unpack(schema.number_of(sent), cbor.decode(cbor.encode(schema.pack(sent)))) == sent


def test_the_largest_manifest_that_holds_can_be_sent() -> None:
    largest = {
        "agent": {
            "system": "\U0001f600" * (manifest.TEXT_BYTES_MAX // 4),
            "grammar": {"kind": "regex", "text": "x" * options.GRAMMAR_BYTES_MAX},
            "logit_bias": [{"token": (1 << 24) - n, "amount": 0.123456789} for n in range(options.BIASES_MAX)],
            "stop": ["\U0001f600" * options.STOP_CHARS_MAX] * options.STOPS_MAX,
        },
        "placement": {"zones": ["z" * 32] * 16},
    }
    sealed = envelope.seal(cases.AGENT, Invitation(cases.SESSION, manifest.read(largest)))
    assert len(sealed) <= MANIFEST_BYTES_MAX


def test_every_kind_has_its_timers() -> None:
    assert set(timers.TIMERS) == set(manifest.Kind)
