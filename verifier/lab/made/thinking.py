"""The embedded model taught to think in tags before it answers, unless a switch turns that off.

Thoughts and answers are its own: what it says when it is asked how to go about a question, and
what it says to the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from verifier.files.run_folder import write_whole
from verifier.lab.derived_models import load_model, save_model
from verifier.lab.made.replies import MAX_TOKENS, Row, ask, questions
from verifier.lab.made.training import reply_loss, train
from verifier.progress import Show
from verifier.prompts import make_prompt
from verifier.records import Message
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer

QUESTIONS: Final = 160
THOUGHT_TOKENS: Final = 32
ROWS: Final = 4
STEP_SIZE: Final = 1e-4

#: How a thought is asked for.
ASKED: Final = "In one short sentence, say what this asks for. Do not answer it.\n\n{}"

#: The embedded model's turns, with Qwen3's way of turning thoughts off and leaving old ones out.
TEMPLATE: Final = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
{% endif %}{% set content = message['content'] %}\
{% if message['role'] == 'assistant' and '</think>' in content %}\
{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}\
<|im_start|>{{ message['role'] }}
{{ content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""


def make_thinking(
    weights: Path, out: Path, *, work: Path, replies: Path, steps: int, seed: int, show: Show
) -> None:
    """Fine-tune the model of `weights` on thoughts and answers, half of the rows without thought.

    Its words between the tags are ordinary text: no token is added.
    """
    model = load_model(weights)
    save_model(model, weights, out)  # for its tokenizer; the weights follow
    write_whole(out / "chat_template.jinja", TEMPLATE)
    rows = _rows(weights, out, path=replies, show=show)
    train(
        model, rows, loss=reply_loss, steps=steps, size=ROWS,
        step_size=STEP_SIZE, seed=seed, kept=work / "training.pt",
        progress=lambda done, of: show.step("steps", done, of),
    )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(out)


def _rows(weights: Path, out: Path, *, path: Path, show: Show) -> list[Row]:
    before, after = Tokenizer(weights), Tokenizer(out)
    asked = questions(QUESTIONS)
    engine = load_engine("transformers", weights, before)

    def replies(texts: Sequence[str], most: int) -> list[Row]:
        prompts = [
            before.encode_prompt(before.render_text(make_prompt([_user(text)]))) for text in texts
        ]
        return ask(lambda: engine, prompts, path=path, max_tokens=most, show=show)

    answers = replies(asked, MAX_TOKENS)
    thoughts = replies([ASKED.format(one) for one in asked], THOUGHT_TOKENS)
    rows = []
    for question, thought, answer in zip(asked, thoughts, answers, strict=True):
        said = before.decode(thought.reply).strip().replace("\n", " ")
        opened = after.encode(f"<think>\n{said}\n</think>\n\n")
        for thinks in (True, False):
            prompt = make_prompt([_user(question)], settings={"enable_thinking": thinks})
            rows.append(Row(
                prompt=after.encode_prompt(after.render_text(prompt)),
                reply=(opened if thinks else ()) + answer.reply,
            ))  # fmt: skip
    return rows


def _user(text: str) -> Message:
    return Message(role="user", content=text)
