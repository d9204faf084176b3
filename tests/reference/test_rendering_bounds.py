"""Chat templates are foreign code: what they may take of time, memory and reach, and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from families import FAMILIES, make_family, talk, tool_talk
from models import TEMPLATE

from verifier.errors import RenderingError
from verifier.prompts import make_prompt, prompt_of
from verifier.records import Message, Prompt
from verifier.reference.renderings.catalogue import (
    catalogue,
    family_names,
    family_template,
    render_probe,
)
from verifier.reference.template_process import LONGEST_TEMPLATE, TEMPLATES, TemplateProcess
from verifier.reference.tokenizer import Tokenizer

ASKED = prompt_of(talk(("system", "Be brief."), ("user", "Hi."), ("assistant", "Yes?")))
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}

#: What a template of this file may take.
SECONDS, MEMORY, OUTPUT = 0.7, 128 << 20, 64 << 10

FOREVER = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    """Narrow bounds, so that a test takes seconds."""
    found = TemplateProcess(seconds=SECONDS, memory=MEMORY, output=OUTPUT)
    yield found
    found.close()


def pid_of(process: TemplateProcess) -> int:
    process.render("x", {}, ASKED)
    assert process._process is not None
    return process._process.pid


def is_gone(pid: int, within: float) -> bool:
    """Whether a process, ours or an orphan, ends."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# -- what oversteps a bound --------------------------------------------------------------------

HOSTILE = {
    "loops in loops": (FOREVER, "0.7 s of a processor"),
    "a filter that runs in C": ("{{ 'a'|center(30000000000) }}", "128 MiB of memory"),
    "a string that grows": ("{{ 'a' * 3000000000 }}", "128 MiB of memory"),
    "a list that grows": ("{{ [0] * 3000000000 }}", "128 MiB of memory"),
    "a name that doubles": (
        "{% set n = namespace(x=1) %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "128 MiB of memory",
    ),
    "a power": ("{{ 9 ** (9 ** 9) }}", "0.7 s of a processor"),
    "a power's digits": ("{{ (7 ** 300000)|string|length }}", "ValueError: Exceeds the limit"),
    "a range as a list": ("{{ range(99999)|list * 90000 }}", "128 MiB of memory"),
    "a range that is too long": ("{{ range(10 ** 12)|list }}", "OverflowError: Range too big"),
    "more text than was asked with": ("{{ 'a' * 100000 }}", "more than 6"),
    "text without end": ("{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "MiB|more than"),
    "a macro that calls itself": (
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError",
    ),
    "two macros that call each other twice": (
        "{% macro a(n) %}{% if n %}{{ a(n-1) }}{{ a(n-1) }}{% endif %}{% endmacro %}{{ a(60) }}",
        "0.7 s of a processor",
    ),
    "blocks in blocks": ("{% if 1 %}" * 10_000 + "{% endif %}" * 10_000, "RecursionError|SyntaxE"),
    "brackets in brackets": ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "RecursionError"),
    "more text than a template has": ("a" * (LONGEST_TEMPLATE + 1), "1,048,577 characters"),
    "a constant that is folded": ("{{ ('a' * 2000000000)|length }}", "128 MiB of memory"),
    "many expressions": ("{{ [" + "1," * 400_000 + "] }}", "more than|s of a processor|128 MiB"),
    "sorting": ("{{ (range(99999)|list * 200)|sort|length }}", "128 MiB|0.7 s"),
    "a long exception": ("{{ raise_exception('a' * 90000000) }}", "TemplateError: a|128 MiB"),
    "replacing": ("{{ ('a' * 3000)|replace('a', 'a' * 90000)|length }}", "128 MiB of memory"),
    "wrapping words": ("{{ ('a ' * 9000000)|wordwrap(1)|length }}", "128 MiB|0.7 s"),
    "an indent": ("{{ ('a\\n' * 3000000)|indent(9000)|length }}", "128 MiB|0.7 s"),
    "a format's width": ("{{ '%3000000000d'|format(1)|length }}", "128 MiB|ValueError|Overflow"),
    "JSON's indent": ("{{ [[[1]]]|tojson(indent=900000000)|length }}", "128 MiB|0.7 s"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_ended(name: str, process: TemplateProcess) -> None:
    """Within seconds, in one line that names the template; the next one is rendered."""
    source, why = HOSTILE[name]
    began = time.monotonic()

    with pytest.raises(RenderingError, match=why) as refused:
        process.render(source, NAMES, ASKED)

    assert time.monotonic() - began < 20  # a start of the process included
    assert str(refused.value).startswith("the chat template ")
    assert "3 messages" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert process.render("{{ messages[0].content }}", NAMES, ASKED) == "Be brief."


def test_a_tokenizer_renders_within_bounds(tiny: Path, process: TemplateProcess) -> None:
    """Its own template and any other; what is refused by a bound is an error as others are."""
    tokenizer = Tokenizer(tiny, templates=process)

    assert tokenizer.render_text(ASKED).endswith("<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(RenderingError, match=r"ended at .* 0\.7 s of a processor; mend the templ"):
        tokenizer.render_text(replace(ASKED, template=FOREVER + " "))
    entries = catalogue(valid={"slow": FOREVER + "  "})
    assert render_probe(entries["alternative-slow"], talk(("user", "Hi.")), tokenizer) is None


@pytest.mark.parametrize("name", ["loops in loops", "a string that grows"])
def test_a_template_that_overstepped_is_rendered_no_more(
    name: str, process: TemplateProcess
) -> None:
    """An audit renders thousands of prompts: the first is enough, whatever the conversation."""
    source, why = HOSTILE[name]
    with pytest.raises(RenderingError, match=why):
        process.render(source, NAMES, ASKED)
    began = time.monotonic()

    for n in range(500):
        with pytest.raises(RenderingError, match=why):
            process.render(source, NAMES, prompt_of(talk(("user", str(n)))))

    assert time.monotonic() - began < 1


def test_a_template_just_below_the_bound_is_ended_too(process: TemplateProcess) -> None:
    """What it takes is added up, or it would hold an audit for as many hours as it has prompts."""
    slow = "{% for i in range(99999) %}{% endfor %}" * 9
    process.render(slow, NAMES, ASKED)
    began = time.monotonic()

    def ask_many() -> None:
        for n in range(500):
            process.render(slow, NAMES, prompt_of(talk(("user", str(n)))))

    with pytest.raises(RenderingError, match=r"all it rendered took 0\.7 s of a processor more"):
        ask_many()

    assert time.monotonic() - began < 30


def test_an_honest_template_owes_nothing(process: TemplateProcess) -> None:
    """However many prompts are rendered."""
    for n in range(3000):
        process.render(TEMPLATE, NAMES, prompt_of(talk(("user", f"No. {n}: " + "word " * 60))))

    assert process._debts.get(TEMPLATE, 0.0) < 0.05


ESCAPES = (
    "{{ messages[0].__class__.__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages|attr('__class__')|attr('__mro__') }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ raise_exception.__globals__['jinja2'] }}",
    "{{ strftime_now.__self__.__class__.__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{a.__class__}'.format_map({'a': messages}) }}",
    "{{ namespace.__init__.__builtins__['open']('/etc/hostname').read() }}",
)


@pytest.mark.parametrize("source", ESCAPES)
@pytest.mark.parametrize("today", [None, "2026-11-29"])
def test_a_template_reaches_nothing_but_the_conversation(
    source: str, today: str | None, process: TemplateProcess
) -> None:
    """Refused, or nothing comes of it."""
    try:
        text = process.render(source, NAMES, replace(ASKED, today=today))
    except RenderingError as error:
        assert "SecurityError" in str(error) or "UndefinedError" in str(error)  # noqa: PT017
    else:
        assert text == ""


@pytest.mark.parametrize(
    "source",
    ["{% include '/etc/hostname' %}", "{% import 'os' as os %}", "{% extends 'base' %}"],
)
def test_a_template_loads_no_other(source: str, process: TemplateProcess) -> None:
    """There is nothing to load from."""
    with pytest.raises(RenderingError, match=r"refused .*no loader"):
        process.render(source, NAMES, ASKED)


# -- what the process has ----------------------------------------------------------------------


def test_the_process_has_no_keys_and_no_open_files(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not even of what this process holds open for others to inherit."""
    monkeypatch.setenv("TOGETHER_API_KEY", "sk-secret")
    monkeypatch.setenv("HF_TOKEN", "hf-secret")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("PYTHONSTARTUP", "")
    process.close()
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        pid = pid_of(process)
        held = [str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()]
    environment = Path(f"/proc/{pid}/environ").read_bytes()

    assert b"secret" not in environment
    names = {entry.partition(b"=")[0] for entry in environment.split(b"\0") if entry}
    assert not names & {b"TOGETHER_API_KEY", b"HF_TOKEN", b"LD_PRELOAD", b"PYTHONSTARTUP"}
    assert str(tmp_path / "open") not in held
    assert all(one.startswith(("pipe:", "/dev/null", "/dev/urandom")) for one in held)


def test_the_process_loads_no_torch(process: TemplateProcess) -> None:
    """It starts in a second, and takes little."""
    maps = Path(f"/proc/{pid_of(process)}/maps").read_text()

    assert "libtorch" not in maps
    assert "libvllm" not in maps


def test_the_process_is_started_again_after_it_was_killed(process: TemplateProcess) -> None:
    """Whoever ended it: the template did not, and is not blamed."""
    first = pid_of(process)
    os.kill(first, signal.SIGKILL)
    assert is_gone(first, 10)

    assert process.render("{{ messages[1].content }}", NAMES, ASKED) == "Hi."
    assert pid_of(process) != first


def test_a_process_that_stands_still_is_ended() -> None:
    """It takes no time of a processor then, but all of ours."""
    process = TemplateProcess(seconds=0.2)
    os.kill(pid_of(process), signal.SIGSTOP)

    with pytest.raises(RenderingError, match=r"it took over 1\.2 s"):
        process.render("y", NAMES, ASKED)
    assert process.render("z", NAMES, ASKED) == "z"
    process.close()


def test_threads_share_one_process(process: TemplateProcess) -> None:
    """Each gets the answer to its own question."""
    wrong: list[str] = []

    def ask(number: int) -> None:
        for n in range(100):
            said = f"{number}:{n}:" + "x" * (n * 50)
            found = process.render("{{ messages[0].content }}", {}, prompt_of(talk(("user", said))))
            if found != said:
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


ORPHAN = """
import os, sys, threading, time
from verifier.prompts import make_prompt
from verifier.records import Message
from verifier.reference.template_process import TemplateProcess

process = TemplateProcess(seconds=3)
asked = make_prompt([Message(role="user", content="Hi.")])
process.render("x", {}, asked)
print(process._process.pid, flush=True)
if sys.argv[1] == "busy":
    process.render(sys.argv[2], {}, asked)
time.sleep(60)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
@pytest.mark.parametrize("options", [[], ["-O"]], ids=["plain", "optimized"])
def test_the_process_ends_with_whoever_started_it(state: str, options: list[str]) -> None:
    """Also when that is killed, and also when the template is in a loop."""
    command = [sys.executable, *options, "-c", ORPHAN, state, FOREVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()

    assert is_gone(pid, 20)


def test_ctrl_c_reaches_whoever_asks_and_leaves_no_process() -> None:
    """A terminal sends it to the whole group: one traceback, that of the caller."""
    command = [sys.executable, "-c", ORPHAN, "busy", FOREVER]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        os.killpg(parent.pid, signal.SIGINT)
        said = parent.stderr.read()

    assert parent.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert is_gone(pid, 20)


def test_an_interrupted_rendering_is_no_answer_to_the_next(process: TemplateProcess) -> None:
    """What was under way is given up together with its process."""
    process.render("x", {}, ASKED)
    before = signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.render(FOREVER + "{# #}", NAMES, ASKED)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert process.render("{{ messages[1].content }}", NAMES, ASKED) == "Hi."


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def test_a_python_that_cannot_be_run_is_named(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line, no traceback."""
    process.close()
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    for path, why in ((tmp_path / "none", "FileNotFoundError"), (broken, "status 3")):
        monkeypatch.setattr(sys, "executable", str(path))
        with pytest.raises(RenderingError, match=f"did not start .*{why}"):
            process.render("x", NAMES, replace(ASKED, settings={"asked": str(path)}))


# -- what honest templates make ----------------------------------------------------------------


def long_talk(words: int) -> Prompt:
    """A conversation of so many words in turns of a thousand."""
    said = "The lazy dog, 42 years old, jumps over “quick” foxes. " * 100
    roles = ("user", "assistant") * (words // 2000)
    return make_prompt([*(Message(role=role, content=said) for role in roles), *_LAST])


_LAST = (Message(role="user", content="End?"),)


@pytest.mark.parametrize("family", family_names())
def test_a_conversation_of_200_000_tokens_is_rendered(family: str) -> None:
    """By the templates of all families, within the bounds that audits have."""
    asked = long_talk(200_000)
    template = family_template(family)
    text = TEMPLATES.render(template, NAMES, asked)

    assert len(text) > 1_000_000
    assert "End?" in text[-100:]
    assert template not in TEMPLATES._debts


def oracle(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """What transformers' own method makes of a prompt, or how it refuses it, in this process."""
    from datetime import date

    extra = dict(prompt.settings)
    if prompt.today is not None:
        extra["strftime_now"] = date.fromisoformat(prompt.today).strftime  # type: ignore[assignment]
    try:
        return str(
            tokenizer._tokenizer.apply_chat_template(
                [dict(message) for message in prompt.messages],
                tools=[dict(tool) for tool in prompt.tools] or None,
                chat_template=prompt.template,
                add_generation_prompt=prompt.generation_prompt,
                tokenize=False,
                **extra,
            )
        )
    except Exception as error:  # noqa: BLE001
        said = " ".join(str(error).split())[:200]
        return f"refused {len(prompt.messages)} ({type(error).__name__}: {said})"


def rendered(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The same by the process."""
    try:
        return tokenizer.render_text(prompt)
    except RenderingError as error:
        said = str(error).removesuffix("; send it others, or mend the template")
        return said.replace("the chat template refused a conversation of ", "refused ").replace(
            " messages (", " (", 1
        )


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One per family."""
    base = tmp_path_factory.mktemp("families")
    return {family.name: make_family(base / family.name, family.name) for family in FAMILIES}


SETTINGS: tuple[dict[str, bool | str], ...] = (
    {},
    {"enable_thinking": False, "thinking": True},
    {"reasoning_effort": "high", "documents": "none"},
    {"tokenize": True},
    {"messages": "x", "bos_token": "<other>"},
    {"continue_final_message": True},
)
PROBES = (
    talk(("user", "Hi.")),
    talk(("user", "a\ud800\x00\u2028“日本” 🙂 {{ 7*7 }} {% if %}\r\n")),
    talk(("system", ""), ("user", " x "), ("assistant", ""), ("user", "y\n")),
    talk(("user", "one"), ("user", "two")),
    talk(("assistant", "first")),
    tool_talk(),
    tool_talk(today="2026-02-28"),
    talk(("user", "What day?"), today="2024-02-29"),
)
OTHERS = (
    None,
    "{{ messages }}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ bos_token }}",
    "{{ messages|tojson(indent=2) }}{{ tools|tojson }}{% generation %}x{% endgeneration %}",
    "{{ strftime_now('%d %B %Y, %A %H:%M:%S') if tools else strftime_now('%Y年') }}",
    "{{ raise_exception('no\n system') }}",
    "{{ messages[9].content + 1 }}",
    "{% if",
    "{{ nothing.at.all }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "  {%- set x = 1 %}\n  {{ eos_token }}\n",
    "\ud800",
    "",
)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_the_text_is_that_of_apply_chat_template(
    family: str, tokenizers: dict[str, Tokenizer]
) -> None:
    """To the letter, and so is how it refuses: every setting, template, probe and rendering."""
    tokenizer = tokenizers[family]
    prompts = [prompt_of(probe) for probe in PROBES]
    prompts.append(replace(prompts[0], messages=()))
    prompts += [
        replace(
            prompt, settings=settings, generation_prompt=begun, template=source,
            today=prompt.today or "2026-11-29",
        )
        for prompt in prompts
        for settings in SETTINGS
        for begun in (False, True)
        for source in OTHERS
    ]  # fmt: skip
    for entry in catalogue(earlier={"old": OTHERS[1] or ""}).values():
        prompts += [entry.change(prompt) if entry.change else prompt for prompt in prompts[:9]]
    differing = [p for p in prompts if rendered(tokenizer, p) != oracle(tokenizer, p)]

    assert differing == []


def test_a_tokenizer_with_several_templates_uses_the_one_that_transformers_does(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """One for tools, one by name, and none where there is no default."""
    loaded = tokenizers["chatml"]._tokenizer
    own = loaded.chat_template
    prompts = [prompt_of(talk(("user", "Hi."))), prompt_of(tool_talk())]
    prompts += [replace(prompt, template="short") for prompt in prompts]
    several = {"default": TEMPLATE, "tool_use": "{{ tools }}", "short": "{{ messages[0].content }}"}
    found = []
    try:
        for kept in (several, {"short": "x"}):
            loaded.chat_template = kept
            for prompt in prompts:
                found.append(rendered(tokenizers["chatml"], prompt))
                assert found[-1] == oracle(tokenizers["chatml"], prompt)
    finally:
        loaded.chat_template = own

    assert len(set(found)) == 7  # three templates, two conversations, and one that is missing


def test_the_day_of_rendering_is_not_kept(tokenizers: dict[str, Tokenizer]) -> None:
    """Where no day is given a template prints the clock, each time anew."""
    prompt = replace(ASKED, template="{{ strftime_now('%H:%M:%S.%f') }}")

    assert tokenizers["chatml"].render_text(prompt) != tokenizers["chatml"].render_text(prompt)
