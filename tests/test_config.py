"""Run files and policies: what is taken, what is refused, and how the refusal reads."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verifier.config import (
    AuditSection,
    EndpointSection,
    Fleet,
    Hardware,
    Policy,
    Prices,
    ReferenceSection,
    Relation,
    RunFile,
    TargetSection,
    dump_run_file,
    load_fleet,
    load_hosts,
    load_policies,
    load_run_file,
    resolve_policy,
    validated,
)
from verifier.errors import ConfigError
from verifier.shipped import shipped
from verifier.steps import make_endpoint

KEY = "sk-invented-5f2b9c1d"
LEAST: dict[str, Any] = {
    "endpoint": {"base_url": "http://127.0.0.1:8000/v1", "model": "tiny"},
    "reference": {"card": "tiny"},
    "out": "runs/x",
}
LEAST_YAML = yaml.safe_dump(LEAST)
FULL: dict[str, Any] = {
    "endpoint": LEAST["endpoint"]
    | {
        "host": None,
        "api_key_file": None,
        "api_key_header": "api-key",
        "max_tokens_field": None,
        "provider": "some-host/fp8",
        "router": True,
        "dialect": "responses",
        "logprobs_form": "integer",
        "most_top_logprobs": 7,
        "extra_body": {"top_k": 1},
        "headers": {"X-Told": "yes"},
        "api_key_env": "SOME_KEY",
        "concurrency": 2,
        "timeout_s": 7.5,
        "connect_timeout_s": 2.5,
        "read_timeout_s": 5.0,
        "max_attempts": 3,
        "requests_per_minute": 20.0,
        "stream": True,
        "ca_file": "private/ca.pem",
        "client_certificate": "private/own.pem",
        "client_key": "private/own.key",
    },
    "reference": {
        "card": "tiny",
        "pack": None,
        "pack_key": None,
        "engine": "remote",
        "weights": "weights/tiny",
        "dtype": "bfloat16",
        "engine_args": {"tensor_parallel_size": 4, "enable_expert_parallel": True},
        "url": "http://127.0.0.1:8001/v1",
        "url_key_env": "OTHER_KEY",
        "url_model": "tiny-at-the-host",
        "threads": 3,
        "hardware": {"gpus": 8, "memory_gib": 80.0, "nodes": 2},
        "suspects": [
            {
                "name": "base",
                "repo": "someone/base",
                "revision": "0" * 40,
                "path": None,
                "relation": "base",
            }
        ],
    },
    "audit": {
        "policy": {
            "noise": ["4-bit-class rounding"],
            "builds": ["nf4-g64"],
            "routed": {"another model": 0.1},
        },
        "alpha": 0.01,
        "beta": 0.02,
        "seed": 12,
        "budget_completion_tokens": 900,
        "budget_usd": 0.75,
        "max_tokens": 32,
        "top_logprobs": 0,
        "min_replies": 6,
        "after": "runs/before",
        "kinds": ["code", "list"],
        "template_settings": {"enable_thinking": False},
        "sampler": True,
        "vary": True,
        "context": 8192,
        "output": 1024,
        "streaming": True,
        "tools": True,
        "speed": True,
        "capabilities": True,
        "deadline": 5400.0,
    },
    "prices": {"prompt": 0.5, "completion": 1.5},
    "out": "runs/é",
}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with single keys of its sections replaced."""
    result = dict(base)
    for key, value in changes.items():
        inner = base.get(key, {})
        both = isinstance(value, dict) and isinstance(inner, dict)
        result[key] = merged(inner, value) if both else value
    return result


def refusal(path: Path) -> str:
    """What loading a run file complains of, after the file's name, on one line."""
    with pytest.raises(ConfigError) as refused:
        load_run_file(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("content", [LEAST, FULL], ids=["least", "full"])
def test_a_run_file_comes_back_from_its_dump(tmp_path: Path, content: dict[str, Any]) -> None:
    """The dump holds every key, and loads to the same run."""
    config = load_run_file(write(tmp_path, content))
    dumped = dump_run_file(config)

    assert load_run_file(write(tmp_path, dumped)) == config
    assert dump_run_file(load_run_file(write(tmp_path, dumped))) == dumped
    assert yaml.safe_load(dumped).keys() == RunFile.model_fields.keys()
    assert "é" in dumped or content is LEAST


def test_every_key_of_a_full_run_file_is_read(tmp_path: Path) -> None:
    """No section loses a value on the way."""
    config = load_run_file(write(tmp_path, FULL))

    assert config.model_dump(mode="json") == FULL


def keys_and_values(value: object, prefix: str = "") -> dict[str, object]:
    """Every leaf of nested keys, by its dotted name."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, object] = {}
    for key, inner in value.items():
        found |= keys_and_values(inner, f"{prefix}.{key}".removeprefix("."))
    return found


def test_the_example_shows_every_key_with_its_default() -> None:
    """What has no default is filled in, and every key has a word on it."""
    path = shipped("configs") / "example.yaml"
    shown = keys_and_values(yaml.safe_load(path.read_text()))
    least = {
        "endpoint": {"base_url": "http://127.0.0.1/v1", "model": "m"},
        "reference": {"card": "c"},
        "out": "o",
    }
    defaults = keys_and_values(RunFile.model_validate(least).model_dump(mode="json"))
    required = {"endpoint.base_url", "endpoint.model", "reference.card", "out"}

    assert load_run_file(path)
    assert shown.keys() == defaults.keys()
    assert {key: shown[key] for key in shown.keys() - required} == {
        key: defaults[key] for key in defaults.keys() - required
    }
    comments = path.read_text()
    for name in (*Policy.model_fields, *Prices.model_fields, *Hardware.model_fields):
        assert f"{name}:" in comments  # the forms that null and screen stand for
    (said,) = re.findall(
        r"relation is ([a-z, -]+) or ([a-z ]+)\. Written",
        " ".join(line.strip().removeprefix("#").strip() for line in comments.splitlines()),
    )
    assert {*said[0].split(", "), said[1]} == {*get_args(Relation)}


def test_the_second_example_shows_what_the_first_does_not() -> None:
    """Targets, a control, prices of their own; the rest is in the first."""
    path = shipped("configs") / "targets.yaml"
    fleet = load_fleet(path)
    shown = path.read_text()

    for name in Fleet.model_fields.keys() - RunFile.model_fields.keys():
        assert f"\n{name}:" in shown
    for name in TargetSection.model_fields.keys() - EndpointSection.model_fields.keys():
        assert f"    {name}:" in shown
    assert fleet == Fleet.model_validate(yaml.safe_load(dump_run_file(fleet)))


@pytest.mark.parametrize(
    ("changes", "place", "section"),
    [
        ({"endpiont": 1}, "endpiont", RunFile),
        ({"endpoint": {"api_key": KEY}}, "endpoint.api_key", EndpointSection),
        ({"reference": {"crad": 1}}, "reference.crad", ReferenceSection),
        ({"audit": {"alhpa": 0.1}}, "audit.alhpa", AuditSection),
        (
            {"audit": {"policy": {"noise": [], "build": []}}},
            "audit.policy.build",
            Policy,
        ),
        ({"prices": {"prompt": 1, "completion": 1, "input": 1}}, "prices.input", Prices),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_key_is_refused_with_the_known_ones(
    tmp_path: Path, changes: dict[str, Any], place: str, section: Any
) -> None:
    """In every section; the value beside it, which may be a key, is not repeated."""
    complaint = refusal(write(tmp_path, merged(LEAST, changes)))

    known = f"{place}: unknown key; known are {', '.join(section.model_fields)}"
    assert complaint.partition("; did you mean ")[0] == known


@pytest.mark.parametrize(
    "missing", ["endpoint", "endpoint.base_url", "endpoint.model", "reference.card", "out"]
)
def test_a_missing_key_is_named(tmp_path: Path, missing: str) -> None:
    """With the sections it lies in."""
    content = merged(LEAST, {})
    *sections, key = missing.split(".")
    place = content
    for section in sections:
        place[section] = dict(place[section])
        place = place[section]
    del place[key]

    assert refusal(write(tmp_path, content)) == f"{missing}: missing; add it"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"endpoint": 3}, "endpoint: expected a valid dictionary"),
        ({"endpoint": {"model": 3}}, "endpoint.model: expected a valid string; got 3"),
        ({"endpoint": {"concurrency": 0}}, "endpoint.concurrency: expected greater than or equal"),
        ({"endpoint": {"timeout_s": float("inf")}}, "endpoint.timeout_s: expected a finite number"),
        ({"endpoint": {"max_attempts": True}}, "endpoint.max_attempts: takes no yes or no"),
        (
            {"reference": {"dtype": "int8"}},
            "reference.dtype: expected 'auto', 'float32', 'bfloat16' or",
        ),
        (
            {"reference": {"hardware": {"gpus": 0, "memory_gib": 80}}},
            "reference.hardware.gpus: expected greater than or equal to 1; got 0",
        ),
        (
            {"reference": {"hardware": {"gpus": 8}}},
            "reference.hardware.memory_gib: missing; add it",
        ),
        ({"audit": None}, "audit: expected a valid dictionary"),
        (
            {"audit": {"alpha": 0}},
            "audit.alpha: expected greater than or equal to 0.000000001",
        ),
        ({"audit": {"alpha": 0.5}}, "audit.alpha: expected less than 0.5; got 0.5"),
        ({"audit": {"alpha": float("nan")}}, "audit.alpha: expected a finite number; got nan"),
        ({"audit": {"alpha": float("inf")}}, "audit.alpha: expected a finite number; got inf"),
        ({"audit": {"beta": -1}}, "audit.beta: expected greater"),
        ({"audit": {"seed": -1}}, "audit.seed: expected greater than or equal to 0; got -1"),
        ({"audit": {"seed": 1.5}}, "audit.seed: expected a valid integer"),
        ({"audit": {"seed": "today"}}, "audit.seed: expected a valid integer"),
        ({"audit": {"budget_completion_tokens": 0}}, "audit.budget_completion_tokens: expected"),
        ({"audit": {"budget_completion_tokens": 10**9}}, "audit.budget_completion_tokens: expec"),
        ({"audit": {"max_tokens": 7}}, "audit.max_tokens: expected greater than or equal to 8"),
        ({"audit": {"top_logprobs": 21}}, "audit.top_logprobs: expected less than or equal to 20"),
        ({"audit": {"kinds": "code"}}, "audit.kinds: expected a list; got 'code'"),
        ({"audit": {"policy": 5}}, "audit.policy: expected a valid string; got 5"),
        ({"audit": {"policy": {}}}, "audit.policy.noise: missing; add it"),
        ({"audit": {"policy": {"noise": [1]}}}, "audit.policy.noise.0: expected a valid string"),
        ({"prices": {"prompt": 1}}, "prices.completion: missing; add it"),
        ({"prices": {"prompt": float("inf"), "completion": 1}}, "prices.prompt: expected a finite"),
        ({"prices": {"prompt": -1, "completion": 1}}, "prices.prompt: expected greater"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_wrong_value_is_refused_with_its_key(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    """The key as the file spells it, what was expected, and what came."""
    assert refusal(write(tmp_path, merged(LEAST, changes))).startswith(complaint)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "expected keys and values, got nothing"),
        ("~", "expected keys and values, got nothing"),
        ("- a\n- b\n", "expected keys and values, got list"),
        ("just words", "expected keys and values, got str"),
        ("out: [", "not YAML ("),
        ("out: a\nout: b\n", "not YAML (the key 'out' is there twice, line 2)"),
        ("audit: {seed: 1, seed: 2}\n", "not YAML (the key 'seed' is there twice, line 1)"),
        ("? [1]\n: 2\n", "not YAML (found unhashable key, line 1)"),
        ("true: a\nTrue: b\n", "not YAML (a key is there twice, line 1)"),
        ("out: 2020-13-45\n", "not YAML (a date; put it in quotes, line 1)"),
        ("out: 2020-12-31\n", "not YAML (a date; put it in quotes, line 1)"),
        ("out: !!python/object/apply:os.getcwd []", "not YAML (tags (!) are not taken"),
        ("out: !!int ''", "not YAML (tags (!) are not taken"),
        ("out: 0b_", "not YAML in UTF-8 (invalid literal"),
        ("out: 1" + ":00" * 300_000, "not YAML (a number too long to be one"),
        ("out: 1" + "1" * 5_000, "not YAML (a number too long to be one"),
        ("out: {<<: {a: 1}}", "not YAML (merging (<<) is not taken"),
        ("1: 2\n" + LEAST_YAML, "1: Keys should be strings"),
        ("a: &a [*a]\n" + LEAST_YAML, "not YAML (anchors and aliases (& and *) are not taken"),
        ("out: *sk-invented\n", "not YAML (anchors and aliases (& and *) are not taken"),
        ("out: " + "[" * 100 + "]" * 100, "not YAML (nested deeper than 64, line 1)"),
        ("out: " + "[" * 5_000, "not YAML ("),
        ("out: " + "x" * 2**20, "larger than 1048576 bytes; refused"),
    ],
    ids=lambda value: value[:30],
)
def test_a_file_that_is_no_run_file_is_refused(
    tmp_path: Path, content: str, complaint: str
) -> None:
    """Whatever else it is, in one line."""
    assert refusal(write(tmp_path, content)).startswith(complaint)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A binary file given by mistake."""
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")

    assert refusal(path).startswith("not YAML in UTF-8 ('utf-8' codec can't decode")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    """Each by what it is."""
    assert refusal(tmp_path / "none.yaml") == "no such run file"
    assert refusal(tmp_path) == "is not a run file"


@pytest.mark.parametrize(
    "base_url",
    [f"http://me:{KEY}@host/v1", f"http://{KEY}@host/v1", f"http://host/v1?key={KEY}",
     f"http://host/v1#{KEY}"],
    ids=["password", "user", "query", "fragment"],
)  # fmt: skip
def test_a_key_in_the_base_url_is_refused_and_not_repeated(tmp_path: Path, base_url: str) -> None:
    """Before anything is written: the run folder would publish it."""
    complaint = refusal(write(tmp_path, merged(LEAST, {"endpoint": {"base_url": base_url}})))

    assert complaint.startswith("endpoint.base_url: must not hold")
    assert KEY not in complaint


def test_a_key_given_as_the_name_of_its_variable_is_not_repeated(tmp_path: Path) -> None:
    """An easy mistake."""
    complaint = refusal(write(tmp_path, merged(LEAST, {"endpoint": {"api_key_env": KEY}})))

    assert complaint.startswith("endpoint.api_key_env: expected the name of an environment")
    assert KEY not in complaint


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": f"http://host:{KEY}/v1"},
        {"base_url": f"{KEY}://host/v1"},
        {"base_url": f"http://[{KEY}]/v1"},
        {"api_key_env": [KEY]},
        {"api_key_env": {"is": KEY}},
        {"api_key_env": "gsk_0aB1cD2eF3gH4iJ5kL6mN7oP8q"},
        {"api_key_env": "sk_test_0123456789abcdef"},
        {"api_key_env": "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1v"},
        {"api_key_file": [KEY]},
        {"headers": {"X-Told": [KEY]}},
        {"headers": [KEY]},
        {"headers": KEY},
        {"extra_body": KEY},
        {"model": [KEY]},
        {"dialect": KEY},
        {"concurrency": KEY},
        {KEY: 1},
    ],
    ids=str,
)
def test_a_key_pasted_anywhere_is_refused_and_not_repeated(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Before anything is written, and the line shows none of it."""
    path = write(tmp_path, merged(LEAST, {"endpoint": changes}))
    with pytest.raises(ConfigError) as refused:
        make_endpoint(load_run_file(path), api_key=None)

    assert "endpoint" in str(refused.value)
    assert "\n" not in str(refused.value)
    for secret in (KEY, KEY.lower(), "gsk_0aB", "sk_test_0", "aB3dE5f"):
        assert secret not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    ["Host", "transfer-encoding", "Connection", "Content-Length", "Content-Type", "Accept-Encoding",
     "TE", "Upgrade", "Keep-Alive", "Trailer", "Expect", "Proxy-Connection", "Content-Encoding",
     "X-Auth", "X-Credential", "Proxy-Authorization", "X-Password", "Set Cookie", "a:b", "", "X\nY",
     "X-Goog-Signature", "X-User-Key"],
)  # fmt: skip
def test_a_header_that_frames_or_tells_a_secret_is_refused(tmp_path: Path, name: str) -> None:
    """The first would spoil every request, the second would be kept in the run folder."""
    changes = {"endpoint": {"headers": {name: "5"}}}

    assert refusal(write(tmp_path, merged(LEAST, changes))).startswith("endpoint.headers")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"api_key_header": "a b", "api_key_env": "K"}, "api_key_header: expected the name of a"),
        ({"api_key_header": "Host", "api_key_env": "K"}, "api_key_header: frames the request"),
        ({"api_key_header": KEY, "api_key_env": "K"}, "api_key_header: looks like a key"),
        ({"api_key_header": "api-key"}, "api_key_header: needs a key"),
        ({"api_key_header": "X-T", "api_key_env": "K", "headers": {"x-t": "1"}}, "headers too"),
        ({"client_key": "own.key"}, "client_certificate: missing"),
        ({"max_tokens_field": "max_output_tokens"}, "max_tokens_field: expected 'max_tokens' or"),
        ({"max_tokens_field": "max_tokens", "dialect": "messages"}, "only chats have two names"),
    ],
)
def test_settings_of_the_line_fit_together(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """What cannot be sent, or means nothing, is refused by its name; a key is not shown."""
    complaint = refusal(write(tmp_path, merged(LEAST, {"endpoint": changes})))

    assert said in complaint
    assert KEY not in complaint


@pytest.mark.parametrize("value", ["a\nb", "ä", f"Bearer {KEY}", KEY, "x" * 5000])
def test_a_header_whose_text_cannot_be_sent_or_is_a_key_is_refused(
    tmp_path: Path, value: str
) -> None:
    """And is not shown."""
    complaint = refusal(write(tmp_path, merged(LEAST, {"endpoint": {"headers": {"X-T": value}}})))

    assert complaint.startswith("endpoint.headers.X-T: ")
    assert KEY not in complaint


@pytest.mark.parametrize(
    "body",
    [
        {"api_key": KEY}, {"apiKey": "x"}, {"a": {"b": [{"Authorization": "x"}]}}, {"token": "x"},
        {"access_token": "x"}, {"hf_token": "x"}, {"auth": {"value": "x"}}, {"key": "x"},
        {"client-secret": "x"}, {"password": "x"}, {"credentials": ["x"]}, {"x": KEY},
        {"x": [f"Bearer {KEY}"]}, {KEY: {"properties": {"token": "x"}}}, {"api_key": 12345},
        {"properties": {"token": "x"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_secret_in_further_fields_is_refused_at_any_depth(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    """The run folder would keep it; by its name where it has one."""
    complaint = refusal(write(tmp_path, merged(LEAST, {"endpoint": {"extra_body": body}})))

    assert complaint.startswith("endpoint.extra_body: ")
    assert "api_key_env" in complaint
    assert KEY not in complaint


#: Of OpenAI, vLLM 0.32, SGLang and OpenRouter.
REQUEST_FIELDS = """
    max_tokens max_completion_tokens max_output_tokens min_tokens min_completion_tokens temperature
    top_k top_p min_p n best_of seed logit_bias logprobs top_logprobs prompt_logprobs echo stop user
    stop_token_ids skip_special_tokens spaces_between_special_tokens add_special_tokens
    return_token_ids return_tokens_as_token_ids include_stop_str_in_output ignore_eos
    truncate_prompt_tokens allowed_token_ids bad_words thinking_token_budget max_thinking_tokens
    thinking_budget prompt_cache_key safety_identifier add_generation_prompt continue_final_message
    chat_template chat_template_kwargs documents mm_processor_kwargs structured_outputs guided_json
    response_format priority request_id cache_salt kv_transfer_params vllm_xargs frequency_penalty
    presence_penalty repetition_penalty length_penalty use_beam_search detokenize metadata
    return_hidden_states return_text_in_logprobs logprob_start_len top_logprobs_num
    token_ids_logprob no_stop_trim regex ebnf separate_reasoning stream_reasoning lora_path
    session_params custom_params custom_logit_processor bootstrap_room rid extra_key service_tier
    reasoning reasoning_effort include_reasoning verbosity modalities prediction store tools
    tool_choice parallel_tool_calls stream_options web_search_options provider transforms models
    route plugins usage context_length_exceeded_behavior enable_thinking eos_token pad_token
    eos_token_id author keyword tokenizer
""".split()  # noqa: SIM905 - a list of words reads as one


@pytest.mark.parametrize("name", REQUEST_FIELDS)
def test_a_real_field_of_requests_is_taken(tmp_path: Path, name: str) -> None:
    """Whatever words it shares with the names of secrets."""
    for value in ("text", 5, {"max_tokens": 5, name: "x"}, [{name: "x"}]):
        changes = {"endpoint": {"extra_body": {name: value}}}
        load_run_file(write(tmp_path, merged(LEAST, changes)))


def test_a_schema_may_describe_secrets(tmp_path: Path) -> None:
    """Its names are of fields that a reply has, and it holds none."""
    schema = {"type": "object", "properties": {"token": {"type": "string"}, "key": {"type": "x"}}}
    body = {"response_format": {"json_schema": {"schema": schema}}, "logit_bias": {50256: -100}}
    config = load_run_file(write(tmp_path, merged(LEAST, {"endpoint": {"extra_body": body}})))

    assert config.endpoint.extra_body == body


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {"a": [float("nan")]}, {1.5: 1}, {None: 1}], ids=str
)
@pytest.mark.parametrize(
    ("section", "key"), [("endpoint", "extra_body"), ("reference", "engine_args")]
)
def test_what_json_has_not_is_refused(
    tmp_path: Path, section: str, key: str, value: object
) -> None:
    """It would be found out only when it is sent."""
    content = merged(LEAST, {section: {key: {"x": value}}})

    assert "expected what JSON has" in refusal(write(tmp_path, content))


@pytest.mark.parametrize(
    "name",
    ["SOME_KEY", "OPENROUTER_API_KEY", "TOGETHER_AI_2024_KEY", "hf_token_of_mine", "_x", "KEY_1",
     "AzureOpenAIKeyForProductionTests", "QWEN3_235B_A22B_2507_KEY", "my_long_name_for_the_key"],
)  # fmt: skip
def test_names_of_variables_are_no_keys(tmp_path: Path, name: str) -> None:
    """As people name them."""
    load_run_file(write(tmp_path, merged(LEAST, {"endpoint": {"api_key_env": name}})))


def test_a_folder_that_no_terminal_should_show_is_refused(tmp_path: Path) -> None:
    """Its name would be told on the way."""
    complaint = refusal(write(tmp_path, merged(LEAST, {"out": "x\x1b]0;OWNED\x07"})))

    assert complaint == "out: expected a folder whose name can be printed"


def test_what_stands_in_two_places_is_written_out_twice(tmp_path: Path) -> None:
    """A dump with aliases could not be read back."""
    inner = {"a": [1, 2]}
    changes = {"endpoint": {"extra_body": {"x": inner, "y": inner}}}
    config = RunFile.model_validate(merged(LEAST, changes))

    assert load_run_file(write(tmp_path, dump_run_file(config))) == config


def test_a_mark_of_the_byte_order_is_no_part_of_a_run_file(tmp_path: Path) -> None:
    """Some editors write one."""
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + LEAST_YAML.encode())

    assert load_run_file(path).reference.card == "tiny"


def test_what_surrounds_a_mistake_is_not_repeated(tmp_path: Path) -> None:
    """A line that cannot be read may hold a key."""
    complaint = refusal(write(tmp_path, f'api_key: "{KEY}\nout: x\n'))

    assert complaint.startswith("not YAML (")
    assert KEY not in complaint


def test_a_value_that_explodes_is_shown_short(tmp_path: Path) -> None:
    """Aliases can make a small file endless; nobody waits for it to be printed."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 40)]
    lines.append("endpoint: *a39")

    assert len(refusal(write(tmp_path, "\n".join(lines)))) < 300


#: A machine under load is no failure, and `tmp_path` may serve every example.
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.dates() | st.binary(max_size=3)
)  # fmt: skip
KEYS = st.sampled_from(
    [
        *RunFile.model_fields, *EndpointSection.model_fields, *ReferenceSection.model_fields,
        *AuditSection.model_fields, *Policy.model_fields, *Prices.model_fields,
    ]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=150, suppress_health_check=SLOW)
@given(changes=st.dictionaries(KEYS, VALUES, max_size=4), section=st.none() | KEYS)
def test_any_keys_and_values_load_or_are_refused(
    tmp_path: Path, changes: dict[str, Any], section: str | None
) -> None:
    """Nothing but ConfigError comes out; what loads also comes back from its dump."""
    content = merged(LEAST, changes if section is None else {section: changes})
    path = write(tmp_path, yaml.dump(content))

    with suppress(ConfigError):
        config = load_run_file(path)

        assert load_run_file(write(tmp_path, dump_run_file(config))) == config


YAML_SIGNS = st.text(st.sampled_from(list("abc019 :-?[]{},&*#!|>'\"%@`~\n\t.\\é\x00\ud800")))


@settings(deadline=None, max_examples=150, suppress_health_check=SLOW)
@given(text=YAML_SIGNS)
def test_any_text_loads_or_is_refused(tmp_path: Path, text: str) -> None:
    """The parser's own exceptions stay inside."""
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))

    with pytest.raises(ConfigError):
        load_run_file(path)


def test_policies_ship_each_stricter_than_the_last() -> None:
    """Whoever passes strict passes standard, and so on; routing is screen and one thing more."""
    policies = load_policies()
    *three, routing = policies.values()

    assert list(policies) == ["screen", "standard", "strict", "routing"]
    noise = [set(policy.noise) for policy in three]
    assert noise[0] < noise[1] < noise[2]
    assert [policy.builds for policy in three] == [(), (), ("all",)]
    share = [policy.routed["4-bit-class rounding"] for policy in three]
    assert share == [0.75, 0.25, 0.25]
    routed = {"4-bit-class rounding": 0.05}
    assert routing == three[0].model_copy(update={"routed": routed})


def test_a_policy_is_found_by_name_or_taken_as_written() -> None:
    """A policy of one's own is called custom."""
    own = Policy(noise=("another model",))

    assert resolve_policy("screen") == ("screen", load_policies()["screen"])
    assert resolve_policy(own) == ("custom", own)


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    """And with the other way out."""
    with pytest.raises(ConfigError, match="no policy 'lax'; there are screen, standard, strict"):
        resolve_policy("lax")


def test_a_flag_is_complained_of_under_the_name_given() -> None:
    """`where` stands in front, whether it is a file or a command."""
    with pytest.raises(ConfigError, match=r"^audit: endpoint: missing; add it$"):
        validated(RunFile, {"reference": {"card": "c"}, "out": "o"}, where="audit")


# -- hosts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(load_hosts()))
def test_every_preset_makes_an_endpoint(tmp_path: Path, name: str) -> None:
    """With a model, a URL where the preset has none, and a provider where it is a router."""
    preset = load_hosts()[name]
    endpoint: dict[str, Any] = {"host": name, "model": "m"}
    if preset.base_url is None:
        endpoint["base_url"] = "http://127.0.0.1:8000/v1"
    if preset.router:
        endpoint["provider"] = "novita/fp8"
    config = load_run_file(write(tmp_path, LEAST | {"endpoint": endpoint}))

    assert config.endpoint.base_url.endswith(("/v1", "/openai"))
    assert make_endpoint(config, api_key=None).dialect == "chat"
    assert load_run_file(write(tmp_path, dump_run_file(config))) == config


def test_what_the_run_file_says_comes_before_the_preset(tmp_path: Path) -> None:
    """A preset is what is known when nothing else is said."""
    endpoint = {"host": "together", "model": "m", "api_key_env": "MINE", "most_top_logprobs": 3}
    config = load_run_file(write(tmp_path, LEAST | {"endpoint": endpoint}))

    assert config.endpoint.base_url == "https://api.together.xyz/v1"
    assert config.endpoint.logprobs_form == "integer"
    assert config.endpoint.api_key_env == "MINE"
    assert make_endpoint(config, api_key=None).top_logprobs == 3


def test_a_router_is_asked_for_one_host_and_no_other(tmp_path: Path) -> None:
    """Fallbacks off, parameters required, and the metadata that says who answered."""
    endpoint = {"host": "openrouter", "model": "m", "provider": "novita/fp8"}
    made = make_endpoint(
        load_run_file(write(tmp_path, LEAST | {"endpoint": endpoint})), api_key=None
    )

    assert made.extra_body["provider"] == {
        "only": ["novita/fp8"],
        "allow_fallbacks": False,
        "require_parameters": True,
    }
    assert made.headers == {"X-OpenRouter-Metadata": "enabled"}


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ({"host": "nowhere", "model": "m"}, "no host 'nowhere'; there are openrouter, together"),
        ({"host": "openrouter", "model": "m"}, "name the one host to ask"),
        ({"host": "together", "model": "m", "provider": "x"}, "only a router takes one"),
        ({"host": "vllm", "model": "m"}, "base_url: missing"),
        ({"host": "together", "model": "m", "headers": {"X-Api-Key": "s"}}, "may hold a secret"),
    ],
)
def test_a_host_that_cannot_be_is_refused(
    tmp_path: Path, endpoint: dict[str, Any], said: str
) -> None:
    """One line that names the key and what to write instead."""
    assert said in refusal(write(tmp_path, LEAST | {"endpoint": endpoint}))


def test_every_fact_about_a_host_has_a_source() -> None:
    """And no preset names a host that cannot be found again."""
    for preset in load_hosts().values():
        assert all(":" in source or "nothing else was read" in source for source in preset.sources)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("90m", 5_400), ("2h", 7_200), ("60s", 60), ("90", 90), (120, 120), ("1.5h", 5_400),
     ("30d", 2_592_000), (" 2 h ", 7_200)],
    ids=str,
)  # fmt: skip
def test_a_deadline_is_a_span_of_time(given: object, seconds: float) -> None:
    """As text with a unit, or in seconds."""
    assert AuditSection(deadline=given).deadline == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", ["59s", 59, "31d", "soon", "1h30m", "-2h", "", "2 weeks", True, None, "nan", "١h"],
    ids=str,
)  # fmt: skip
def test_what_is_no_deadline_is_refused(given: object) -> None:
    """Nor one below a minute, or above 30 days."""
    with pytest.raises(ConfigError, match=r"deadline"):
        validated(AuditSection, {"deadline": given}, where="audit")
