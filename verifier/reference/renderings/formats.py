"""Chat formats that servers build in, as a table: what stands around what each role says.

Facts about formats, in our own table. Sources: llama.cpp's built-in list (`src/llama-chat.cpp`, as
of 2026), Ollama's (`template/*.gotmpl`, 2026-08) and vLLM's examples
(`examples/template_*.jinja`). Formats that are the same text for the conversations asked here are
one entry; what a tool gave is rendered as the words of the user. Where such a server's tokenizer
puts a token in front of every text, the format here has none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, Literal

Around = tuple[str, str]

#: Where the system text goes: a message of its own, into the first user turn, or nowhere.
SystemPlace = Literal["own", "first user", "nowhere"]

_VICUNA: Final = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_ALPACA: Final = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What stands in front of and behind the words of each role."""

    system: Around
    user: Around
    assistant: Around
    opens: str  # the assistant's turn that is to be written
    begins: str = ""
    leads: str = ""  # within the user's turn, behind a system text that goes there
    place: SystemPlace = "own"
    default: str | None = None  # the system text where none is sent
    trims: bool = False  # white space around what is said
    closes_last: bool = True  # whether the last message is ended too
    bos: bool = False  # whether the template writes the model's own first token


def _by_role(before: str, after: str, opens: str, **more: bool | str) -> Format:
    """A format whose marks hold the role's name, in the place of `ROLE`."""
    return Format(
        system=(before.replace("ROLE", "system"), after),
        user=(before.replace("ROLE", "user"), after),
        assistant=(before.replace("ROLE", "assistant"), after),
        opens=opens,
        **more,  # type: ignore[arg-type]  # fields that are not marks
    )


def _in_brackets(
    user: Around, assistant: Around, within: Around, *, leads: str = "", trims: bool = False
) -> Format:
    """Instruction brackets: the system text stands in the first one, and nothing opens a reply."""
    return Format(
        system=within, user=user, assistant=assistant, opens="", leads=leads, place="first user",
        trims=trims,
    )  # fmt: skip


_SYS: Final = ("<<SYS>>\n", "\n<</SYS>>\n\n")
_HY: Final = "<｜hy_place▁holder▁no▁{}｜>"
_COHERE: Final = "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>"
_COHERE_END: Final = "<|END_OF_TURN_TOKEN|>"


def _command_r(opens: str, *, trims: bool) -> Format:
    system, user, assistant = map(_COHERE.format, ("SYSTEM", "USER", "CHATBOT"))
    return Format(
        system=(system, _COHERE_END), user=(user, _COHERE_END),
        assistant=(assistant, _COHERE_END), opens=opens.format(assistant), trims=trims,
    )  # fmt: skip


#: Built into llama.cpp, but for what ships as a family or is the same text as another.
_LLAMA_CPP: Final = {
    "llama2": _in_brackets(("[INST] ", " [/INST]"), ("", "</s>"), ("", "\n")),
    "llama2-sys": _in_brackets(("[INST] ", " [/INST]"), ("", "</s>"), _SYS),
    "llama2-sys-bos": _in_brackets(("[INST] ", " [/INST]"), ("", "</s><s>"), _SYS),
    "llama2-sys-strip": _in_brackets(("[INST] ", " [/INST]"), ("", "</s>"), _SYS, trims=True),
    "mistral-v1": _in_brackets((" [INST] ", " [/INST]"), (" ", "</s>"), ("", "\n\n")),
    "mistral-v3": _in_brackets(("[INST] ", "[/INST]"), (" ", "</s>"), ("", "\n\n")),
    "mistral-v3-tekken": _in_brackets(("[INST]", "[/INST]"), ("", "</s>"), ("", "\n\n")),
    "mistral-v7": Format(
        system=("[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"), user=("[INST] ", "[/INST]"),
        assistant=(" ", "</s>"), opens="",
    ),
    "mistral-v7-tekken": Format(
        system=("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), user=("[INST]", "[/INST]"),
        assistant=("", "</s>"), opens="",
    ),
    "phi3": _by_role("<|ROLE|>\n", "<|end|>\n", "<|assistant|>\n"),
    "phi4": _by_role("<|im_start|>ROLE<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
    "falcon3": _by_role("<|ROLE|>\n", "\n", "<|assistant|>\n"),
    "zephyr-endoftext": _by_role("<|ROLE|>\n", "<|endoftext|>\n", "<|assistant|>\n"),
    "monarch": _by_role("ROLE\n", "</s>\n<s>", "assistant\n"),
    "gemma-plain": Format(
        system=("", "\n\n"), user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant=("<start_of_turn>model\n", "<end_of_turn>\n"),
        opens="<start_of_turn>model\n", place="first user", trims=True,
    ),
    "orion": Format(
        system=("", "\n\n"), user=("Human: ", "\n\nAssistant: </s>"), assistant=("", "</s>"),
        opens="", place="first user",
    ),
    "openchat": Format(
        system=("", "<|end_of_turn|>"), user=("GPT4 Correct User: ", "<|end_of_turn|>"),
        assistant=("GPT4 Correct Assistant: ", "<|end_of_turn|>"), opens="GPT4 Correct Assistant:",
    ),
    "vicuna": Format(
        system=("", "\n\n"), user=("USER: ", "\n"), assistant=("ASSISTANT: ", "</s>\n"),
        opens="ASSISTANT:",
    ),
    "vicuna-orca": Format(
        system=("SYSTEM: ", "\n"), user=("USER: ", "\n"), assistant=("ASSISTANT: ", "</s>\n"),
        opens="ASSISTANT:",
    ),
    "deepseek-coder": Format(
        system=("", ""), user=("### Instruction:\n", "\n"),
        assistant=("### Response:\n", "\n<|EOT|>\n"), opens="### Response:\n",
    ),
    "deepseek2": Format(
        system=("", "\n\n"), user=("User: ", "\n\n"),
        assistant=("Assistant: ", "<｜end▁of▁sentence｜>"), opens="Assistant:",
    ),
    "deepseek3": Format(
        system=("", "\n\n"), user=("<｜User｜>", ""),
        assistant=("<｜Assistant｜>", "<｜end▁of▁sentence｜>"), opens="<｜Assistant｜>",
    ),
    "command-r": _command_r("{}", trims=True),
    "llama3-plain": _by_role(
        "<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n", trims=True,
    ),
    "llama4": _by_role(
        "<|header_start|>ROLE<|header_end|>\n\n", "<|eot|>",
        "<|header_start|>assistant<|header_end|>\n\n", trims=True,
    ),
    "chatglm3": _by_role("<|ROLE|>\n ", "", "<|assistant|>", begins="[gMASK]sop"),
    "chatglm4": _by_role("<|ROLE|>\n", "", "<|assistant|>\n", begins="[gMASK]<sop>"),
    "glmedge": _by_role("<|ROLE|>\n", "", "<|assistant|>"),
    "minicpm": Format(
        system=("", ""), user=("<用户>", "<AI>"), assistant=("", ""), opens="", trims=True,
    ),
    "exaone": Format(
        system=("[|system|]", "[|endofturn|]\n"), user=("[|user|]", "\n"),
        assistant=("[|assistant|]", "[|endofturn|]\n"), opens="[|assistant|]", trims=True,
    ),
    "rwkv-world": Format(
        system=("System: ", "\n\n"), user=("User: ", "\n\n"), assistant=("Assistant: ", "\n\n"),
        opens="Assistant:", trims=True,
    ),
    "granite": _by_role(
        "<|start_of_role|>ROLE<|end_of_role|>", "<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
    "gigachat": Format(
        system=("", "<|message_sep|>"),
        user=(
            "user<|role_sep|>", "<|message_sep|>available functions<|role_sep|>[]<|message_sep|>"
        ),
        assistant=("assistant<|role_sep|>", "<|message_sep|>"), opens="assistant<|role_sep|>",
        begins="<s>",
    ),
    "megrez": _by_role(
        "<|role_start|>ROLE<|role_end|>", "<|turn_end|>", "<|role_start|>assistant<|role_end|>"
    ),
    "yandex": Format(
        system=("", ""), user=(" Пользователь: ", "\n\n"), assistant=(" Ассистент: ", "\n\n"),
        opens=" Ассистент:[SEP]", place="nowhere",
    ),
    "bailing": Format(
        system=("<role>SYSTEM</role>", ""), user=("<role>HUMAN</role>", ""),
        assistant=("<role>ASSISTANT</role>", ""), opens="<role>ASSISTANT</role>",
    ),
    "bailing-think": Format(
        system=("<role>SYSTEM</role>", ""), user=("<role>HUMAN</role>", ""),
        assistant=("<role>ASSISTANT</role>", ""), opens="<role>ASSISTANT</role><think>",
    ),
    "bailing2": Format(
        system=("<role>SYSTEM</role>", "<|role_end|>"),
        user=("<role>HUMAN</role>", "<|role_end|>"),
        assistant=("<role>ASSISTANT</role>", "<|role_end|>"), opens="<role>ASSISTANT</role>",
        default="detailed thinking off",
    ),
    "smolvlm": Format(
        system=("", "\n\n"), user=("User: ", "<end_of_utterance>\n"),
        assistant=("Assistant: ", "<end_of_utterance>\n"), opens="Assistant:",
        begins="<|im_start|>",
    ),
    "dots1": Format(
        system=("<|system|>", "<|endofsystem|>"), user=("<|userprompt|>", "<|endofuserprompt|>"),
        assistant=("<|response|>", "<|endofresponse|>"), opens="<|response|>",
    ),
    "hunyuan-moe": Format(
        system=("<|startoftext|>", "<|extra_4|>"), user=("<|startoftext|>", "<|extra_0|>"),
        assistant=("", "<|eos|>"), opens="",
    ),
    "hunyuan-dense": Format(
        system=("", _HY.format(3)), user=("<｜hy_User｜>", "<｜hy_Assistant｜>"),
        assistant=("<｜hy_Assistant｜>", _HY.format(2)), opens="",
    ),
    "hunyuan-vl": Format(
        system=("", _HY.format(3)), user=("", "<｜hy_User｜>"),
        assistant=("", "<｜hy_Assistant｜>"), opens="", begins="<｜hy_begin▁of▁sentence｜>",
    ),
    "gpt-oss-plain": Format(
        system=("<|start|>system<|message|>", "<|end|>"),
        user=("<|start|>user<|message|>", "<|end|>"),
        assistant=("<|start|>assistant<|message|>", "<|return|>"), opens="<|start|>assistant",
    ),
    "kimi-k2": Format(
        system=("<|im_system|>system<|im_middle|>", "<|im_end|>"),
        user=("<|im_user|>user<|im_middle|>", "<|im_end|>"),
        assistant=("<|im_assistant|>assistant<|im_middle|>", "<|im_end|>"),
        opens="<|im_assistant|>assistant<|im_middle|>",
    ),
    "seed-oss": _by_role("<seed:bos>ROLE\n", "<seed:eos>", "<seed:bos>assistant\n"),
    "grok-2": Format(
        system=("System: ", "<|separator|>\n\n"), user=("Human: ", "<|separator|>\n\n"),
        assistant=("Assistant: ", "<|separator|>\n\n"), opens="Assistant:", trims=True,
    ),
    "pangu-embedded": Format(
        system=("[unused9]系统：", "[unused10]"), user=("[unused9]用户：", "[unused10]"),
        assistant=("[unused9]助手：", "[unused10]"), opens="[unused9]助手：", default="",
    ),
    "solar-open": _by_role("<|begin|>ROLE<|content|>", "<|end|>", "<|begin|>assistant"),
}  # fmt: skip

#: Ollama's, where they differ from these.
_OLLAMA: Final = {
    "alfred": _by_role("<start_ROLE>", "<end_message>", "<start_assistant>"),
    "alpaca": Format(
        system=("", "\n\n"), user=("### Instruction:\n", "\n\n"),
        assistant=("### Response:\n", "\n\n"), opens="### Response:\n",
    ),
    "chatqa": Format(
        system=("System: ", "\n\n"), user=("User: ", "\n\n"), assistant=("Assistant: ", "\n\n"),
        opens="Assistant:",
    ),
    "codellama-70b": _by_role(
        "Source: ROLE\n\n ", " <step> ", "Source: assistant\nDestination: user\n\n "
    ),
    "command-r-closed": _command_r(f"{_COHERE_END}{{}}\n", trims=False),
    "falcon-instruct": Format(
        system=("System: ", "\n"), user=("User:\n", "\n"), assistant=("Falcon:\n", "\n"),
        opens="Falcon:\n",
    ),
    "gemma-instruct": Format(
        system=("", "\n"), user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant=("<start_of_turn>model\n", "<end_of_turn>\n"),
        opens="<start_of_turn>model\n", place="first user",
    ),
    "gemma3-instruct": Format(
        system=("", "\n\n"), user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant=("<start_of_turn>model\n", "<end_of_turn>\n"),
        opens="<start_of_turn>model\n\n", place="first user",
    ),
    "granite-instruct": Format(
        system=("System:\n", "\n\n"), user=("Question:\n", "\n\n"), assistant=("Answer:\n", "\n\n"),
        opens="Answer:\n",
    ),
    "llama2-chat": _in_brackets(
        ("[INST] <<SYS>>", " [/INST]"), (" ", "</s><s>"), ("\n", "\n"), leads="<</SYS>>\n\n"
    ),
    "llama3-instruct": _by_role(
        "<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "magicoder": Format(
        system=("", "\n\n"), user=("@@ Instruction\n", "\n\n"),
        assistant=("@@ Response\n", "\n\n"), opens="@@ Response\n",
    ),
    "openchat-system": Format(
        system=("GPT4 Correct System: ", "<|end_of_turn|>"),
        user=("GPT4 Correct User: ", "<|end_of_turn|>"),
        assistant=("GPT4 Correct Assistant: ", "<|end_of_turn|>"), opens="GPT4 Correct Assistant:",
    ),
    "solar-instruct": Format(
        system=("### System:\n", "\n\n"), user=("### User:\n", "\n\n"),
        assistant=("### Assistant:\n", "</s>\n\n"), opens="### Assistant:\n",
    ),
    "starcoder2-instruct": Format(
        system=("", "\n\n"), user=("### Instruction\n", "\n\n"),
        assistant=("### Response\n", "<|endoftext|>\n\n"), opens="### Response\n",
    ),
    "zephyr": _by_role("<|ROLE|>\n", "</s>\n", "<|assistant|>\n"),
}  # fmt: skip

#: vLLM's examples; those that count rounds ship as families of their own. With them the two
#: preambles that the first models of these formats were trained with.
_VLLM: Final = {
    "alpaca-example": Format(
        system=("", "\n\n"), user=("### Instruction:\n", "\n\n"),
        assistant=("### Response:\n", "\n\n"), opens="### Response:\n", default="", trims=True,
        closes_last=False, bos=True,
    ),
    "alpaca-preamble": Format(
        system=("", "\n\n"), user=("### Instruction:\n", "\n\n"),
        assistant=("### Response:\n", "\n\n"), opens="### Response:\n", default=_ALPACA,
    ),
    "baichuan": Format(
        system=("", ""), user=("<reserved_106>", ""), assistant=("<reserved_107>", ""),
        opens="<reserved_107>",
    ),
    "falcon": Format(
        system=("", "\n"), user=("User: ", "\n"), assistant=("Assistant: ", "\n"),
        opens="Assistant:", place="nowhere", bos=True,
    ),
    "falcon-180b": Format(
        system=("System: ", "\n"), user=("User: ", "\n"), assistant=("Falcon: ", "\n"),
        opens="Falcon:", bos=True,
    ),
    "inkbot": Format(
        system=("<#meta#>\n- Date: \n- Task: \n<#system#>\n", "\n<#chat#>\n"),
        user=("<#user#>\n", "\n"), assistant=("<#bot#>\n", "\n"), opens="<#bot#>\n", default="",
        trims=True, closes_last=False, bos=True,
    ),
    "telechat": Format(
        system=("", ""), user=("<_user>", "<_bot>"), assistant=("", "<_end>"), opens="",
    ),
    "teleflm": Format(
        system=("        ", "\n \n"), user=("        <_user>", "<_bot>\n \n"),
        assistant=("        ", "\n \n"), opens="", place="nowhere", trims=True,
    ),
    "vicuna-preamble": Format(
        system=("", " "), user=("USER: ", " "), assistant=("ASSISTANT: ", "</s>"),
        opens="ASSISTANT:", default=_VICUNA,
    ),
}  # fmt: skip

FORMATS: Final[dict[str, Format]] = {**_LLAMA_CPP, **_OLLAMA, **_VLLM}


def spell_template(made: Format) -> str:
    """The chat template of a format."""
    trim = " | trim" if made.trims else ""
    sent = "messages[0].content" if made.place != "nowhere" else "''"
    default = json.dumps(made.default or "", ensure_ascii=False)
    always = made.default is not None
    begins = "{{ bos_token }}" if made.bos else ""
    ends = "" if made.closes_last else "{% if not loop.last %}"
    end_if = "" if made.closes_last else "{% endif %}"
    return (
        "{%- set has = messages[0].role == 'system' %}"
        f"{{%- set said = ({sent} if has else {default}){trim} %}}"
        f"{{%- set kept = {'true' if always else 'has'} %}}"
        f"{begins}{_literal(made.begins)}"
        f"{_own_system(made)}"
        "{%- for m in messages %}{% if m.role != 'system' or not loop.first %}"
        "{% if m.role == 'assistant' %}"
        f"{_literal(made.assistant[0])}{{{{ m.content{trim} }}}}"
        f"{ends}{_literal(made.assistant[1])}{end_if}"
        "{% else %}"
        f"{_literal(made.user[0])}{_system_within(made)}{_literal(made.leads)}"
        f"{{{{ m.content{trim} }}}}{ends}{_literal(made.user[1])}{end_if}"
        "{% endif %}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{_literal(made.opens)}{{% endif %}}"
    )


def _own_system(made: Format) -> str:
    if made.place == "first user":
        return ""
    before, after = map(_literal, made.system)
    return f"{{%- if kept %}}{before}{{{{ said }}}}{after}{{% endif %}}"


def _system_within(made: Format) -> str:
    """The system text, in the turn of the user that comes first."""
    if made.place != "first user":
        return ""
    before, after = map(_literal, made.system)
    first = "loop.index0 == (1 if has else 0)"
    return f"{{% if kept and said and {first} %}}{before}{{{{ said }}}}{after}{{% endif %}}"


def _literal(text: str) -> str:
    """A text as a template writes it, whatever signs it has."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
