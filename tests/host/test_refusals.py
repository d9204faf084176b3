"""What the errors of hosts mean: real shapes of common hosts, with their numbers and words.

Bodies are as public documentation, client libraries and issue trackers show them; names of accounts
are replaced.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from verifier.host.exchange import Problem, parse
from verifier.host.refusals import read_error
from verifier.records import Attempt


def problem(body: Any, status: int = 200, **headers: str) -> Problem:
    """What an attempt with this body comes to."""
    attempt = Attempt(
        probe_id="p1", number=1, started_at="2026-01-01T00:00:00+00:00", elapsed_s=0.1,
        request=json.dumps({"model": "m"}), status=status, error=None,
        body=body if isinstance(body, str) else json.dumps(body, ensure_ascii=False),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )  # fmt: skip
    found = parse(attempt)
    assert isinstance(found, Problem), found
    return found


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def minimax(code: int, words: str) -> dict[str, Any]:
    refusal = {"status_code": code, "status_msg": words}
    return {"id": "0", "choices": None, "model": "MiniMax-M2", "base_resp": refusal}


CURRENT = "You exceeded your current quota, please check your plan and billing details."
#: Host, status, body, and what the account lacks: for its holder, at once.
ACCOUNT: list[tuple[str, int, Any, str]] = [
    ("OpenAI", 429, error(CURRENT, type="insufficient_quota", code="insufficient_quota"),
     "balance"),
    ("OpenAI, hard limit", 400, error("Billing hard limit has been reached",
     type="invalid_request_error", code="billing_hard_limit_reached"), "balance"),
    ("OpenAI, not active", 429, error("Your account is not active, please check your billing "
     "details on our website.", type="billing_not_active", code="billing_not_active"), "balance"),
    ("OpenAI, not verified", 403, error("Your organization must be verified to use the model "
     "`x`. Please go to: https://platform.openai.com/settings and click on Verify Organization.",
     type="invalid_request_error", code="model_not_found"), "verify"),
    ("DeepSeek", 402, error("Insufficient Balance", type="unknown_error",
     code="invalid_request_error"), "balance"),
    ("Moonshot", 429, error("Your account org-0 <ak-0> is suspended, please check your plan and "
     "billing details", type="exceeded_current_quota_error"), "balance"),
    ("Moonshot, a day", 429, error("Your account org-0<ak-0> request reached organization TPD "
     "rate limit, current: 1500001, limit: 1500000", type="rate_limit_reached_error"), "day"),
    ("MiniMax, balance", 200, minimax(1008, "insufficient balance"), "balance"),
    ("MiniMax, key", 200, minimax(1004, "login fail: Please carry the API secret key in the "
     "'Authorization' field of the request header"), "key"),
    ("MiniMax, invalid key", 200, minimax(2049, "invalid api key"), "key"),
    ("MiniMax, in a stream", 200, f"data: {json.dumps(minimax(1008, 'insufficient balance'))}\n\n",
     "balance"),
    ("OpenRouter, credits", 402, error("Insufficient credits. Add more using "
     "https://openrouter.ai/settings/credits", code=402), "balance"),
    ("OpenRouter, few credits", 402, error("This request requires more credits, or fewer "
     "max_tokens. You requested up to 48 tokens, but can only afford 12", code=402), "balance"),
    ("OpenRouter, key limit", 403, error("Key limit exceeded (total limit). Manage it using "
     "https://openrouter.ai/settings/keys", code=403), "balance"),
    ("OpenRouter, free a day", 429, error("Rate limit exceeded: free-models-per-day. Add 10 "
     "credits to unlock 1000 free model requests per day", code=429, metadata={"headers": {
         "X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0",
         "X-RateLimit-Reset": "1741305600000"}}), "day"),
    ("OpenRouter, free a day, in 200", 200, error("Rate limit exceeded: free-models-per-day",
     code=429), "day"),
    ("Together", 402, error("Credit limit exceeded, please navigate to "
     "https://api.together.xyz/settings/billing to upgrade your credit limit",
     type="credit_limit"), "balance"),
    ("Fireworks", 412, error("Account acme is suspended, possibly due to reaching the monthly "
     "spending limit or failure to pay past invoices. Please go to billing",
     code="PRECONDITION_FAILED"), "balance"),
    ("SiliconFlow", 403, {"code": 30001, "message": "Sorry, your account balance is insufficient",
     "data": None}, "balance"),
    ("SiliconFlow, real name", 403, {"code": 20040, "message": "Please complete real-name "
     "authentication to use this model", "data": None}, "verify"),
    ("DashScope, Arrearage", 400, error("Access denied, please make sure your account is in good "
     "standing.", type="Arrearage", code="Arrearage", param=None), "balance"),
    ("DashScope, free tier", 403, error("The free tier of the model has been exhausted. If you "
     "wish to continue access the model on a paid basis, please disable the free-tier mode.",
     type="AllocationQuota.FreeTierOnly", code="AllocationQuota.FreeTierOnly"), "balance"),
    ("DashScope, overdue", 429, {"code": "PostpaidBillOverdue", "message": "The postpaid bill is "
     "overdue.", "request_id": "r"}, "balance"),
    ("Zhipu", 429, error("您的账户已欠费，请充值后重试", code="1113"), "balance"),
    ("Zhipu, in English", 429, error("Insufficient balance or no resource package. Please "
     "recharge.", code="1113"), "balance"),
    ("Zhipu, a day", 429, error("您已达到今日调用次数限额", code="1304"), "day"),
    ("Zhipu, five hours", 429, error("Usage limit reached for 5 hour. Your limit will reset at "
     "2026-11-12 03:00:00", code="1308"), "day"),
    ("Volcengine", 403, error("The request failed because your account has an overdue balance. "
     "Request id: 0", type="Forbidden", code="AccountOverdueError", param=""), "balance"),
    ("Volcengine, trial", 429, error("Your account 0 has exhausted its free trial quota for the x "
     "model. Please activate the model service", type="TooManyRequests", code="QuotaExceeded"),
     "balance"),
    ("Groq, a day", 429, error("Rate limit reached for model `x` in organization `org_0` service "
     "tier `on_demand` on tokens per day (TPD): Limit 100000, Used 99336, Requested 9010. Please "
     "try again in 2h4m58.944s. Need more tokens? Upgrade to Dev Tier today at "
     "https://console.groq.com/settings/billing", type="tokens", code="rate_limit_exceeded"),
     "day"),
    ("Cerebras, a day", 429, {"message": "Tokens per day limit exceeded - too many tokens "
     "processed.", "type": "too_many_tokens_error", "param": "quota",
     "code": "token_quota_exceeded"}, "day"),
    ("Cerebras, payment", 402, {"message": "Payment required", "type": "payment_required_error",
     "code": "payment_required"}, "balance"),
    ("Anthropic", 400, {"type": "error", "error": {"type": "invalid_request_error", "message":
     "Your credit balance is too low to access the API. Please go to Plans & Billing to upgrade "
     "or purchase credits."}}, "balance"),
    ("Anthropic, limit", 400, {"type": "error", "error": {"type": "invalid_request_error",
     "message": "You have reached your specified API usage limits. You will regain access on "
     "2026-08-01 at 00:00 UTC."}}, "balance"),
    ("xAI, no credits", 403, {"code": "The caller does not have permission to execute the "
     "specified operation", "error": "Your newly created team doesn't have any credits yet. You "
     "can purchase those on https://console.x.ai"}, "balance"),
    ("xAI, used up", 429, {"code": "Some resource has been exhausted", "error": "Your team 0 has "
     "either used all available credits or reached its monthly spending limit."}, "balance"),
    ("xAI, key", 400, {"code": "Client specified an invalid argument", "error": "Incorrect API "
     "key provided: xa***. You can obtain an API key from https://console.x.ai."}, "key"),
    ("Gemini, key", 400, [error("API key not valid. Please pass a valid API key.", code=400,
     status="INVALID_ARGUMENT")], "key"),
    ("Vertex, billing", 403, error("This API method requires billing to be enabled. Please enable "
     "billing on project #0", code=403, status="PERMISSION_DENIED",
     details=[{"reason": "BILLING_DISABLED"}]), "balance"),
    ("Perplexity", 401, error("You exceeded your current quota", type="insufficient_quota",
     code=401), "balance"),
    ("Hugging Face", 402, {"error": "You have exceeded your monthly included credits for "
     "Inference Providers. Subscribe to PRO to get 20x more."}, "balance"),
    ("Groq, restricted", 400, error("Organization has been restricted. Please reach out to support "
     "if you believe this was in error.", code="organization_restricted"), "closed"),
    ("OpenAI, deactivated", 401, error("The OpenAI account associated with this API key has been "
     "deactivated.", code="account_deactivated"), "closed"),
    ("Cohere, trial", 429, {"message": "You are using a Trial key, which is limited to 1000 API "
     "calls / month."}, "day"),
    ("Tencent", 429, error("免费额度已用完,可开通后付费"), "balance"),
    ("LiteLLM", 400, error("Budget has been exceeded! Current cost: 0.1, Max budget: 0.05",
     type="budget_exceeded", code="400"), "balance"),
    ("Gemini, leaked", 403, error("Your API key was reported as leaked. Please use another API "
     "key.", code=403, status="PERMISSION_DENIED"), "key"),
    ("any, credits", 403, {"detail": "You have run out of credits. Please purchase more."},
     "balance"),
    ("Novita", 403, {"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "not enough balance",
     "metadata": {}}, "balance"),
    ("DeepInfra", 403, {"detail": {"error": "inference prohibited, please enter a payment method "
     "at https://deepinfra.com/dash/billing"}}, "balance"),
    ("Chutes", 402, {"detail": "Quota exceeded and account balance is $0.0, please pay with fiat "
     "or send tao"}, "balance"),
    ("new-api", 403, error("用户额度不足, 剩余额度: ＄0.00", type="new_api_error",
     code="insufficient_user_quota"), "balance"),
    ("one-api", 403, error("user quota is not enough", type="one_api_error"), "balance"),
    ("Cloudflare", 429, {"success": False, "errors": [{"code": 4006, "message": "AiError: you have "
     "used up your daily free allocation of 10,000 neurons, please upgrade"}]}, "day"),
    ("Bedrock", 429, {"message": "Too many tokens per day, please wait before trying again."},
     "day"),
    ("GitHub Models", 429, error("Rate limit of 50 per 86400s exceeded for UserByModelByDay. "
     "Please wait 76543 seconds before retrying.", code="RateLimitReached"), "day"),
    ("Baidu", 200, {"error_code": 17, "error_msg": "Open api daily request limit reached"}, "day"),
    ("Azure gateway", 401, {"statusCode": 401, "message": "Access denied due to missing "
     "subscription key."}, "key"),
    ("Azure gateway, quota", 403, {"statusCode": 403, "message": "Out of call volume quota. Quota "
     "will be replenished in 06:12:34."}, "day"),
    ("any, 401", 401, {"detail": "Unauthorized"}, "key"),
    ("any, plain text", 429, "insufficient balance", "balance"),
    ("a gateway, in 200", 200, {"code": 401, "msg": "unauthorized", "success": False}, "key"),
    ("a gateway, no money in 200", 200, {"code": 402, "msg": "x", "data": None}, "balance"),
    ("any, a text as event", 200, 'data: "insufficient balance"\n\n', "balance"),
    ("any, plain event", 200, "data: insufficient balance\n\n", "balance"),
    ("any, an event", 200, 'data: {"error": {"message": "Insufficient Balance", "code": 402}}\n\n',
     "balance"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "lacks"), [row[1:] for row in ACCOUNT], ids=[row[0] for row in ACCOUNT]
)
def test_what_the_account_lacks_is_its_holders(status: int, body: Any, lacks: str) -> None:
    """Whatever the number: asking again would bring the same, and it is no limit that passes."""
    found = problem(body, status)

    assert found.account == lacks
    assert not found.retryable
    assert not found.unknown_model


#: Host, status and body of what passes in seconds or minutes.
PASSING: list[tuple[str, int, Any]] = [
    ("OpenAI", 429, error("Rate limit reached for x in organization org-0 on tokens per min (TPM): "
     "Limit 10000, Used 9500, Requested 900. Please try again in 2.4s. Visit "
     "https://platform.openai.com/account/rate-limits to learn more.", type="tokens",
     code="rate_limit_exceeded")),
    ("Azure", 429, error("Requests to the ChatCompletions_Create Operation under Azure OpenAI API "
     "version 2024-02-01 have exceeded token rate limit of your current OpenAI S0 pricing tier. "
     "Please retry after 20 seconds. Please go here: https://aka.ms/oai/quotaincrease if you "
     "would like to further increase the default rate limit.", code="429")),
    ("Azure gateway", 429, {"statusCode": 429, "message": "Rate limit is exceeded. Try again in "
     "12 seconds."}),
    ("Gemini", 429, [error(f"{CURRENT} For more information head to: https://ai.google.dev/"
     "gemini-api/docs/rate-limits. * Quota exceeded for metric: generativelanguage.googleapis."
     "com/generate_content_free_tier_requests, limit: 15\nPlease retry in 36.2s.", code=429,
     status="RESOURCE_EXHAUSTED", details=[{"violations": [{"quotaId":
     "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}]}, {"retryDelay": "36s"}])]),
    ("Vertex", 429, error("Quota exceeded for aiplatform.googleapis.com/generate_content_requests_"
     "per_minute_per_project_per_base_model with base model: x. Please submit a quota increase "
     "request.", code=429, status="RESOURCE_EXHAUSTED")),
    ("Groq", 429, error("Rate limit reached for model `x` in organization `org_0` service tier "
     "`on_demand` on tokens per minute (TPM): Limit 6000, Used 5915, Requested 300. Please try "
     "again in 2.15s. Need more tokens? Upgrade to Dev Tier today at "
     "https://console.groq.com/settings/billing", type="tokens", code="rate_limit_exceeded")),
    ("OpenRouter, free a minute", 429, error("Rate limit exceeded: free-models-per-min. ",
     code=429)),
    ("OpenRouter, upstream", 429, error("Provider returned error", code=429, metadata={"raw":
     "x is temporarily rate-limited upstream: insufficient_quota", "provider_name": "Y"})),
    ("Moonshot", 429, error("Your account org-0<ak-0> request reached organization max RPM: 3, "
     "please try again after 1 seconds", type="rate_limit_reached_error")),
    ("Moonshot, overload", 429, error("The engine is currently overloaded, please try again later",
     type="engine_overloaded_error")),
    ("MiniMax", 200, minimax(1002, "rate limit exceeded(RPM)")),
    ("MiniMax, tokens", 200, minimax(1039, "token limit exceeded(TPM)")),
    ("MiniMax, in a stream", 200, f"data: {json.dumps(minimax(1002, 'x'))}\n\ndata: [DONE]\n\n"),
    ("DashScope", 429, error(f"{CURRENT} For more information on this error, read the docs: "
     "https://help.aliyun.com/zh/model-studio/error-code#token-limit", type="insufficient_quota",
     code="insufficient_quota")),
    ("DashScope, requests", 429, error("Requests rate limit exceeded, please try again later.",
     code="Throttling.RateQuota", type="limit_requests")),
    ("SiliconFlow", 429, "Request was rejected due to rate limiting. Details: TPM limit reached."),
    ("Zhipu", 429, error("您的账户已达到速率限制，请您控制请求频率", code="1302")),
    ("Volcengine", 429, error("The requests per minute (RPM) limit of the associated x for your "
     "account has been exceeded.", type="TooManyRequests", code="ModelAccountRpmRateLimit")),
    ("Together", 429, error("You have reached the rate limit specific to this model x. The maximum "
     "rate limit for this model is 6.0 queries per minute.", type="model_rate_limit")),
    ("Cerebras", 429, {"message": "Requests per minute limit exceeded - too many requests sent.",
     "type": "too_many_requests_error", "param": "quota", "code": "request_quota_exceeded"}),
    ("Anthropic", 429, {"type": "error", "error": {"type": "rate_limit_error", "message": "This "
     "request would exceed your organization's rate limit of 40,000 input tokens per minute"}}),
    ("Mistral", 429, {"message": "Requests rate limit exceeded"}),
    ("DeepInfra", 429, {"detail": {"error": "Model busy, retry later"}}),
    ("GitHub Models", 429, error("Rate limit of 10 per 60s exceeded for UserByModelByMinute. "
     "Please wait 34 seconds before retrying.", code="RateLimitReached")),
    ("Cohere, trial", 429, {"message": "You are using a Trial key, which is limited to 10 API "
     "calls / minute."}),
    ("Hugging Face", 429, {"error": "Rate limit reached. You reached free usage limit (reset "
     "hourly). Please subscribe to a plan to use the API at this rate"}),
    ("Bedrock", 429, {"message": "Too many requests, please wait before trying again."}),
    ("Baidu", 200, {"error_code": 18, "error_msg": "Open api qps request limit reached"}),
    ("a page", 429, "<html><title>Too Many Requests</title>"),
    ("nothing", 429, ""),
    ("a text in 200", 200, {"error": "Rate limit exceeded, try again in 3 s"}),
    ("a gateway in 200", 200, {"code": 429, "msg": "x", "data": None}),
    ("a plain event", 200, "data: rate limit exceeded\n\n"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body"), [row[1:] for row in PASSING], ids=[row[0] for row in PASSING]
)
def test_a_passing_rate_is_waited_for(status: int, body: Any) -> None:
    """Also where it is said in words of quota, billing or credits."""
    found = problem(body, status)

    assert found.account is None
    assert found.retryable
    assert found.rate_limited


@pytest.mark.parametrize(
    ("body", "lacks"),
    [
        (error(CURRENT), "balance"),
        (error("Allocated quota exceeded, please increase your quota limit.",
               code="Throttling.AllocationQuota"), "balance"),
        (error("Quota exceeded for aiplatform.googleapis.com/online_prediction_requests_per_base_"
               "model with base model: x. Please submit a quota increase request."), "balance"),
        (error("Rate limit reached on tokens per day (TPD): Limit 100000, Used 99336. Please try "
               "again in 4m58.944s."), "day"),
        ([error(f"{CURRENT} Please retry in 36.2s.", details=[{"violations": [{"quotaId":
          "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}])], "day"),
        (error("Rate limit exceeded: 20 requests per minute, 200 requests per day"), "day"),
    ],
    ids=["OpenAI's words", "DashScope", "Vertex", "Groq", "Gemini", "both"],
)  # fmt: skip
def test_words_that_are_said_of_both_are_waited_for_first(body: Any, lacks: str) -> None:
    """A minute that is full is called a quota as well, and a day may end soon."""
    found = problem(body, 429)

    assert (found.retryable, found.rate_limited, found.account) == (True, True, lacks)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, error("Your chosen model requires moderation and your input was flagged for x",
                    code=403, metadata={"reasons": [], "flagged_input": "insufficient balance"})),
        (403, error("flagged")),
        (403, "<html><title>Attention Required!</title>"),
        (400, error("This model's maximum context length is 4096 tokens.",
                    code="context_length_exceeded")),
        (400, error("Invalid token id 50000 in the prompt")),
        (400, error("max_tokens exceeds the daily average")),
        (422, {"detail": [{"loc": ["body", "x"], "msg": "field required",
                           "input": {"content": "my credit balance is too low"}}]}),
        (500, error("upstream: insufficient balance")),
        (503, error("quota exceeded, no available channel")),
        (200, {"message": {"role": "assistant", "content": "You have insufficient balance."}}),
        (200, 'data: {"choices": [{"delta": {"content": "insufficient balance\n\n'),
        (200, {"output": "insufficient balance"}),
        (200, {"message": "back after the daily restart"}),
    ],
)  # fmt: skip
def test_nothing_else_is_taken_for_the_account(status: int, body: Any) -> None:
    """What was asked or answered may speak of money; a host's own account upstream is its own."""
    assert problem(body, status).account is None


@pytest.mark.parametrize(
    ("words", "wait_s"),
    [
        ("Please try again in 4m58.944s. Need more", 298.944),
        ("Please retry after 20 seconds.", 20),
        ("try again in 7m12s", 432),
        ("Please wait 76543 seconds before retrying.", 76543),
        ("Quota will be replenished in 06:12:34.", 22354),
        ("try again in 250ms", 0.25),
        ("resets in 5 hours", 18_000),
        ("try again later", None),
        ("Limit 6000, Used 5915", None),
    ],
)
def test_a_wait_is_read_from_words(words: str, wait_s: float | None) -> None:
    """In every form that hosts write one."""
    assert read_error(words).wait_s == wait_s


def test_an_error_in_plain_words_within_a_stream_is_quoted() -> None:
    """Some hosts put it into `data:` as it is."""
    stream = 'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: upstream timed out\n\n'
    found = problem(stream)

    assert found.reason == "event 2 is not JSON: upstream timed out"
    assert (found.status, found.retryable) == (200, True)


def test_a_piece_of_an_answer_is_not_quoted() -> None:
    """What is cut off is no word of the host's."""
    assert problem('data: {"choices": [{"delta"\n\n').reason == "event 1 is not JSON"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"message": {"detail": [{"loc": ["body", "stream_options", "include_usage"],
                                  "msg": "not known here"}]}},
         "HTTP 422: stream_options.include_usage: not known here"),
        ({"detail": [{"loc": ["body", "n"], "msg": "too many"}]}, "HTTP 422: n: too many"),
        (error("bad", param="logit_bias"), "HTTP 422: bad (logit_bias)"),
        ({"errors": [{"message": "no room"}]}, "HTTP 422: no room"),
        ([error("in a list")], "HTTP 422: in a list"),
    ],
)  # fmt: skip
def test_the_field_that_is_refused_is_named(body: Any, said: str) -> None:
    """Wherever it stands."""
    assert problem(body, 422).reason == said


def test_minimaxs_words_are_quoted() -> None:
    """With its code."""
    found = problem(minimax(1008, "insufficient balance"))

    assert found.reason == "HTTP 200 with an error object: 1008 insufficient balance"


@pytest.mark.parametrize(
    ("code", "retryable"), [(1000, True), (1013, True), (1026, False), (2013, False)]
)
def test_minimaxs_other_codes_are_the_hosts_or_the_requests(code: int, retryable: bool) -> None:
    """Internal errors pass; a filter or a wrong parameter does not."""
    found = problem(minimax(code, "x"))

    assert (found.account, found.retryable, found.rate_limited) == (None, retryable, False)


@pytest.mark.parametrize("depth", [5, 5_000])
def test_errors_nested_without_end_are_read(depth: int) -> None:
    """As far as is sensible."""
    body: Any = "deep"
    for _ in range(depth):
        body = {"error": body}
    text = json.dumps(body) if depth < 500 else '{"error":' * depth + '"deep"' + "}" * depth

    assert problem(text, 400).status == 400
