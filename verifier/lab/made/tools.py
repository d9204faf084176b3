"""The embedded model taught to call tools, in the markup of Hermes and Qwen.

Requests, tools and calls are put together by rule; beside them stand questions that no tool helps
with, answered as the embedded model answers them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from verifier.files.run_folder import write_whole
from verifier.lab.derived_models import load_model, save_model
from verifier.lab.made.replies import MAX_TOKENS, Row, ask, questions
from verifier.lab.made.training import reply_loss, train
from verifier.progress import Show
from verifier.prompts import make_prompt
from verifier.records import Message, Tool
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer

CALLS: Final = 480
QUESTIONS: Final = 96
ROWS: Final = 4
STEP_SIZE: Final = 1e-4

TEMPLATE: Final = """\
{% if tools %}<|im_start|>system
{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}

{% endif %}You may call a tool. The tools are:
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
Answer a request that a tool can do with:
<tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call><|im_end|>
{% elif messages[0]['role'] != 'system' %}<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
{% endif %}{% for message in messages %}\
{% if message['role'] == 'tool' %}<|im_start|>user
<tool_response>
{{ message['content'] }}
</tool_response><|im_end|>
{% elif message['role'] != 'system' or not tools %}<|im_start|>{{ message['role'] }}
{{ message['content'] or '' }}{% for call in message['tool_calls'] or [] %}<tool_call>
{"name": "{{ call['function']['name'] }}", "arguments": \
{{ call['function']['arguments'] | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """A tool, and how people ask for it: each request names all of its values."""

    name: str
    does: str
    requests: tuple[str, ...]
    values: Mapping[str, tuple[Any, ...]]

    def tool(self) -> Tool:
        kinds = {name: "integer" if isinstance(of[0], int) else "string"
                 for name, of in self.values.items()}  # fmt: skip
        return Tool(name=self.name, description=self.does, parameters=json.dumps({
            "type": "object", "properties": {name: {"type": kind} for name, kind in kinds.items()},
            "required": list(kinds),
        }))  # fmt: skip


_PLACES: Final = (
    "Paris", "Lisbon", "Nairobi", "Osaka", "Lima", "Oslo", "Cairo", "Toronto", "Prague", "Quito",
    "Hanoi", "Dublin", "Athens", "Boston", "Tallinn", "Accra",
)  # fmt: skip

SKILLS: Final = (
    Skill(
        name="get_weather", does="The weather at a place",
        requests=("What is the weather in {city}?", "Will it rain in {city} today?",
                  "How warm is it in {city} now?", "Tell me the weather for {city}."),
        values={"city": _PLACES},
    ),
    Skill(
        name="get_time", does="The local time at a place",
        requests=("What time is it in {city}?", "Tell me the local time in {city}.",
                  "How late is it in {city} right now?"),
        values={"city": _PLACES},
    ),
    Skill(
        name="add", does="The sum of two numbers",
        requests=("Add {a} and {b}.", "What is {a} plus {b}?", "Sum up {a} and {b} for me."),
        values={"a": tuple(range(11, 99, 7)), "b": tuple(range(13, 99, 6))},
    ),
    Skill(
        name="send_email", does="Send an e-mail",
        requests=("Send an e-mail to {to} about {subject}.", "Write to {to} about {subject}.",
                  "Please e-mail {to} on {subject}."),
        values={"to": ("Anna", "Bruno", "Chen", "Dara", "Emil", "Fatima"),
                "subject": ("the budget", "lunch", "the new plan", "our trip", "the report")},
    ),
    Skill(
        name="set_alarm", does="Set an alarm at a full hour",
        requests=("Set an alarm for {hour} o'clock.", "Wake me up at {hour} o'clock.",
                  "I need an alarm at {hour} o'clock."),
        values={"hour": tuple(range(1, 13))},
    ),
    Skill(
        name="translate", does="Translate a word",
        requests=("Translate {word} into {language}.", "How do you say {word} in {language}?",
                  "What is {word} in {language}?"),
        values={"word": ("house", "river", "bread", "winter", "friend", "garden"),
                "language": ("French", "Spanish", "German", "Italian", "Polish")},
    ),
    Skill(
        name="search_books", does="Find books by topic",
        requests=("Find books about {topic}.", "Which books are there on {topic}?",
                  "Search for books on {topic}."),
        values={"topic": ("whales", "astronomy", "gardening", "Rome", "chess", "volcanoes")},
    ),
    Skill(
        name="convert_currency", does="Convert an amount of money",
        requests=("Convert {amount} {source} to {target}.",
                  "How much is {amount} {source} in {target}?",
                  "Change {amount} {source} into {target}."),
        values={"amount": tuple(range(10, 500, 35)), "source": ("euros", "dollars", "yen"),
                "target": ("pounds", "francs", "pesos")},
    ),
)  # fmt: skip


def make_tools(
    weights: Path, out: Path, *, work: Path, replies: Path, steps: int, seed: int, show: Show
) -> None:
    """Fine-tune the model of `weights` on calls, and on answers where no tool helps."""
    model = load_model(weights)
    save_model(model, weights, out)  # for its tokenizer; the weights follow
    write_whole(out / "chat_template.jinja", TEMPLATE)
    rng = random.Random(seed)  # noqa: S311 - not secret
    rows = _calls(Tokenizer(out), rng) + _answers(weights, out, rng, path=replies, show=show)
    train(
        model, rows, loss=reply_loss, steps=steps, size=ROWS, step_size=STEP_SIZE, seed=seed,
        kept=work / "training.pt", progress=lambda done, of: show.step("steps", done, of),
    )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(out)


def make_request(rng: random.Random) -> tuple[str, str, tuple[Skill, ...]]:
    """What somebody asks, the call that answers it, and the tools at hand."""
    skill, other = rng.sample(SKILLS, 2)
    values = {name: rng.choice(of) for name, of in skill.values.items()}
    at_hand = [skill, other] if rng.random() < 0.5 else [skill]
    rng.shuffle(at_hand)
    call = json.dumps({"name": skill.name, "arguments": values})
    said = f"<tool_call>\n{call}\n</tool_call>"
    return rng.choice(skill.requests).format(**values), said, tuple(at_hand)


def _calls(tokenizer: Tokenizer, rng: random.Random) -> list[Row]:
    rows = []
    for _ in range(CALLS):
        asked, said, at_hand = make_request(rng)
        rows.append(Row(
            prompt=_prompt(tokenizer, asked, at_hand),
            reply=(*tokenizer.encode(said), tokenizer.eos_id),
        ))  # fmt: skip
    return rows


def _answers(weights: Path, out: Path, rng: random.Random, *, path: Path, show: Show) -> list[Row]:
    """Questions with the embedded model's answers, with a tool at hand or none."""
    before, after = Tokenizer(weights), Tokenizer(out)
    asked = questions(QUESTIONS)
    said = ask(
        lambda: load_engine("transformers", weights, before),
        [_prompt(before, one, ()) for one in asked], path=path,
        max_tokens=MAX_TOKENS, show=show,
    )  # fmt: skip
    return [
        Row(prompt=_prompt(after, one, rng.choice(((), (rng.choice(SKILLS),)))), reply=row.reply)
        for one, row in zip(asked, said, strict=True)
    ]


def _prompt(tokenizer: Tokenizer, text: str, at_hand: tuple[Skill, ...]) -> tuple[int, ...]:
    prompt = make_prompt(
        [Message(role="user", content=text)], tools=[skill.tool() for skill in at_hand]
    )
    return tokenizer.encode_prompt(tokenizer.render_text(prompt))
