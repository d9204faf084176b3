"""Small files that ask for much time or memory, and templates that would leave their sandbox."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from typing import Any

import yaml
from audits import NOWHERE, write_run_file
from models import save_tokenizer

from attacks.bases import make_base
from attacks.lab import Lab, Tally, refused, run, sound, start_child

MOST_S = 15.0
MOST_MB = 1500.0


def attack_with_bombs(lab: Lab) -> Iterator[Tally]:
    yield _yaml(lab)
    yield _json(lab)
    yield _diffs(lab)
    yield _lines(lab)
    yield from _templates(lab)


def nested_aliases(depth: int, width: int = 9) -> str:
    """YAML of a few bytes that stands for width^depth values."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return "\n".join(rows)


def merged(depth: int) -> str:
    rows = ["b0: &b0 {k: v}"]
    rows += [f"b{n}: &b{n} {{<<: [*b{n - 1}, *b{n - 1}], k{n}: v}}" for n in range(1, depth)]
    return "\n".join(rows)


def _yaml(lab: Lab) -> Tally:
    tally = Tally(
        attack="YAML bombs (aliases, merges, depth, circles): refused in one line, in time"
    )
    indent = lambda text, by: "\n".join(" " * by + row for row in text.splitlines())  # noqa: E731
    bombs = {
        "aliases nine deep": nested_aliases(9), "aliases four deep, wide": nested_aliases(4, 60),
        "merges": merged(28), "brackets": "c: " + "[" * 5000 + "]" * 5000,
        "maps": "c: " + "{a: " * 3000 + "1" + "}" * 3000,
        "a circle": "c: &c [*c]", "a circle of maps": "c: &c {d: *c}",
        "a long number": "c: " + "9" * 300_000, "sexagesimal": "c: " + "1:" * 60_000 + "1",
        "many keys": "\n".join(f"k{n}: 1" for n in range(60_000)),
        "a tag of Python": "c: !!python/object/apply:os.system ['touch RAN']",
    }  # fmt: skip
    for name, bomb in bombs.items():
        for place in ("plan", "collect", "summary", "card"):

            def attempt(bomb: str = bomb, place: str = place) -> str | None:
                folder = lab.folder("yaml")
                path = write_run_file(folder, NOWHERE)
                text = path.read_text()
                spoilt = text.replace(
                    "endpoint:\n", f"endpoint:\n  extra_body:\n{indent(bomb, 4)}\n", 1
                )
                if place == "card":
                    card = folder / "tiny.yaml"
                    card.write_text(card.read_text() + f"engine_args:\n{indent(bomb, 2)}\n")
                    argv: tuple[Any, ...] = ("plan", path)
                elif place == "plan":
                    path.write_text(spoilt)
                    argv = ("plan", path)
                elif place == "collect":
                    made = run("plan", path)
                    if made.status:
                        return made.last
                    (folder / "run" / "run.yaml").write_text(spoilt)
                    argv = ("collect", folder / "run")
                else:
                    content = yaml.safe_load(text)
                    target = content.pop("endpoint")
                    out = folder / "run"
                    (out / "a").mkdir(parents=True)
                    head = yaml.safe_dump(content | {"targets": {"a": target}}, sort_keys=False)
                    (out / "targets.yaml").write_text(
                        head.replace("  a:\n", f"  a:\n    extra_body:\n{indent(bomb, 6)}\n", 1)
                    )
                    argv = ("summary", out)
                ended = run(
                    *argv,
                    seconds=MOST_S,
                    cwd=folder,
                    environment={"XDG_STATE_HOME": str(folder / "x")},
                )
                if (folder / "RAN").exists():
                    return "code ran"
                problem = sound(ended)
                if problem is None and ended.rss_mb > MOST_MB:
                    problem = f"took {ended.rss_mb:.0f} MB"
                shutil.rmtree(folder)
                return problem

            tally.try_(f"{place}: {name}", attempt)

    def twice() -> str | None:
        folder = lab.folder("twice")
        path = write_run_file(folder, NOWHERE)
        card = folder / "tiny.yaml"
        card.write_text(card.read_text() + "layers: 3\n")
        return refused(run("plan", path))

    tally.try_("card: a key twice", twice)
    return tally


def _json(lab: Lab) -> Tally:
    """Files of a folder that are small on disk and large in memory."""
    tally = Tally(attack="large JSON files of a folder: refused in one line, within 1.5 GB")
    base = make_base(lab, "honest") / "run"
    size = lab.size(50, 4) * 2**20

    def lists() -> bytes:
        return b'{"a":[' + b"[],[" * 0 + b"[]," * (size // 3) + b"[]]}"

    for name in (
        "plan.json",
        "ledger.json",
        "report.json",
        "shown.json",
        "prompts.json",
        "capabilities.json",
    ):
        for command in ("decide", "report"):

            def attempt(name: str = name, command: str = command) -> str | None:
                copy = lab.folder("json") / "run"
                shutil.copytree(base, copy)
                (copy / name).write_bytes(lists())
                ended = run(command, copy, seconds=60)
                shutil.rmtree(copy.parent)
                problem = sound(ended)
                return problem or (
                    f"took {ended.rss_mb:.0f} MB" if ended.rss_mb > MOST_MB else None
                )

            tally.try_(f"{command}: {name} of {size // 2**20} MB", attempt)
    for name in ("plan.json", "ledger.json", "targets.yaml", "run.yaml"):

        def sparse(name: str = name) -> str | None:
            copy = lab.folder("sparse") / "run"
            shutil.copytree(base, copy)
            with (copy / name).open("wb") as file:
                file.truncate(3 * 2**30)
            ended = run("decide" if name.endswith("json") else "summary", copy, seconds=30)
            shutil.rmtree(copy.parent)
            return sound(ended) or (
                f"took {ended.rss_mb:.0f} MB" if ended.rss_mb > MOST_MB else None
            )

        tally.try_(f"{name} of 3 GiB of NUL", sparse)
    return tally


def _diffs(lab: Lab) -> Tally:
    tally = Tally(attack="prompts of a template fault that are hard to compare: reported in time")
    base = make_base(lab, "template") / "run"
    pairs = {
        "alike lines": ("\n".join("abcdefgh"[:n % 7 + 1] + "x" * 20 for n in range(2000)),
                        "\n".join("abcdefgh"[:n % 5 + 1] + "x" * 20 for n in range(2000))),
        "two long lines": ("ab" * 100_000, "ba" * 100_000),
        "many short lines": ("a\n" * 30_000, "b\na\n" * 15_000),
        "lines turned round": ("\n".join(map(str, range(4000))), "\n".join(map(str, range(4000, 0, -1)))),
        "500 kB": ("\n".join(f"line {n} of the text" for n in range(25_000)),
                   "\n".join(f"line {n + 1} of a text" for n in range(25_000))),
    }  # fmt: skip
    for name, (published, served) in pairs.items():

        def attempt(published: str = published, served: str = served) -> str | None:
            copy = lab.folder("diff") / "run"
            shutil.copytree(base, copy)
            path = copy / "prompts.json"
            if not path.exists():
                return "the base folder has no prompts.json"
            content = json.loads(path.read_text())
            path.write_text(json.dumps(content | {"published": published, "served": served}))
            ended = run("report", copy, seconds=MOST_S)
            return sound(ended) or (
                f"took {ended.rss_mb:.0f} MB" if ended.rss_mb > MOST_MB else None
            )

        tally.try_(name, attempt)
    return tally


def _lines(lab: Lab) -> Tally:
    """Many lines, and lines that are long."""
    tally = Tally(attack="many and long lines in a folder: a verdict or one line, in time")
    base = make_base(lab, "honest") / "run"
    for name in ("exchanges.jsonl", "scores.jsonl", "probes.jsonl"):
        for kind in ("many", "long", "no end"):

            def attempt(name: str = name, kind: str = kind) -> str | None:
                copy = lab.folder("lines") / "run"
                shutil.copytree(base, copy)
                raw = (copy / name).read_bytes()
                match kind:
                    case "many":
                        more = raw * (lab.size(20, 3) * 2**20 // len(raw))
                    case "long":
                        more = (
                            raw[: raw.index(b"\n") - 1] + b',"x":"' + b"a" * (65 * 2**20) + b'"}\n'
                        )
                    case _:
                        more = raw + b"a" * (65 * 2**20)
                (copy / name).write_bytes(more)
                ended = run("decide", copy, seconds=60)
                shutil.rmtree(copy.parent)
                return sound(ended) or (
                    f"took {ended.rss_mb:.0f} MB" if ended.rss_mb > MOST_MB else None
                )

            tally.try_(f"{name}: {kind}", attempt)
    return tally


# -- templates ---------------------------------------------------------------------------------

ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}{{ (''|attr('__class__')).__mro__ }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch RAN') }}",
    "{{ joiner.__init__.__globals__['os'].popen('touch RAN').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].system('touch RAN') }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch RAN') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__self__.__class__.__subclasses__() }}",
    "{{ strftime_now.__globals__ }}",
    "{{ tojson.__globals__ }}{{ messages|tojson.__globals__ }}",
    "{{ '%s'|format(messages.__class__) }}{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__init__.__globals__}'.format(cycler) }}{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{% set f = ''.format %}{{ f.__self__.__class__.__base__ }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ [1]|map('attr', '__class__')|list }}",
    "{{ messages.append(1) }}{{ messages.clear() }}",
    "{{ ().__class__.__bases__[0].__subclasses__()[104].__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as p %}{{ p }}",
    "{% extends '/etc/passwd' %}",
    "{{ config }}{{ request.application.__globals__ }}",
    "{{ ''.join.__self__.__class__ }}{{ ''.encode().__class__.__subclasses__() }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{% if 'warning' in x.__name__ %}{{ x()._module.__builtins__['__import__']('os').system('touch RAN') }}{% endif %}{% endfor %}",
    "{{ (messages|attr('__class__')|attr('__mro__')) }}",
    "{% set x = namespace() %}{% set x.__class__ = 1 %}{{ x.__class__.__mro__ }}",
    "{{ g.__code__ }}{{ (range.__call__.__self__).__class__.__mro__ }}",
)
#: What only stands in a text when a template got at it.
LEAKS = ("<class", "<function", "root:", "__builtins__", "<module", "subprocess", "PYTHONPATH")

GREEDY = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{{ 'a'|center(3000000000) }}", "{{ 'a' * 3000000000 }}", "{{ ('a' * 99999) * 99999 }}",
    "{{ range(99999)|map('string')|join(' ' * 99999) }}",
    "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "{{ '%3000000000d' % 1 }}", "{{ '{:>3000000000}'.format(1) }}", "{{ '%s'|format('a'|center(2000000000)) }}",
    "{{ 9 ** 9 ** 9 }}", "{{ (9 ** 99999) * (9 ** 99999) }}", "{{ (2 ** 99999)|string }}",
    "{% set ns = namespace(x='a' * 1000) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(1) }}",
    "{{ [1] * 3000000000 }}", "{{ range(99999)|batch(1)|list|length * range(99999)|list|length }}",
    "{{ ('a' * 99999)|wordwrap(1)|indent(99999) }}", "{{ ('a,' * 99999).split(',')|sort|join('a' * 9999) }}",
    "{{ ('<' * 9999999)|escape|escape|escape|escape|escape|escape|urlize }}",
    "{{ '((((((((((' * 9999 }}", "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "{% if 1 %}" * 3000,
    "{{ lipsum(n=99999999) }}", "{{ 'a'|replace('', 'b' * 99999)|replace('', 'c' * 99999) }}",
)  # fmt: skip


def _templates(lab: Lab) -> Iterator[Tally]:
    import transformers  # noqa: F401 - so that no fork need import it

    from verifier.errors import VerifierError
    from verifier.records import Message, Prompt
    from verifier.reference.tokenizer import Tokenizer

    folder = lab.folder("tokenizer")
    save_tokenizer(folder)

    def render(template: str, *, own: bool) -> tuple[str, str, float, float]:
        """Kind of end, text or error, seconds, memory."""
        here = lab.folder("template")
        shutil.copytree(folder, here / "t")
        if own:
            (here / "t" / "chat_template.jinja").write_text(template)

        def work() -> int:
            tokenizer = Tokenizer(here / "t")
            messages = ({"role": "user", "content": "Hi."},)
            try:
                if own:
                    text = repr(tokenizer.render((Message(role="user", content="Hi."),)))
                else:
                    text = tokenizer.render_text(Prompt(messages=messages, template=template))
            except VerifierError as error:
                print(f"refused: {type(error).__name__}: {error}"[:500])  # noqa: T201
                return 2
            print(text[:5000])  # noqa: T201
            return 0

        limit = {} if own else {resource.RLIMIT_CPU: 60}
        ended = start_child(work, cwd=here, limits=limit).wait(45)
        kind = {0: "text", 2: "refused", None: "hung"}.get(ended.status, f"exit {ended.status}")
        if list(here.rglob("RAN")):
            kind = "ran code"
        return kind, ended.out + ended.err, ended.seconds, ended.rss_mb

    tally = Tally(
        attack="templates that would leave their sandbox: refused, or text that tells nothing"
    )
    for template in ESCAPES:
        for own in (False, True):

            def attempt(template: str = template, own: bool = own) -> str | None:
                kind, said, _, _ = render(template, own=own)
                if kind not in ("text", "refused"):
                    return f"{kind}: {said[-200:]}"
                leaks = [leak for leak in LEAKS if kind == "text" and leak in said]
                return f"tells {leaks}: {said[:200]}" if leaks else None

            tally.try_(f"{'the own' if own else 'another'} template {template[:80]}", attempt)
    yield tally

    tally = Tally(attack="templates that ask for time or memory: refused within 30 s and 2 GB")
    for template in GREEDY:
        for own in (False,) if lab.quick else (False, True):

            def greedy(template: str = template, own: bool = own) -> str | None:
                kind, said, seconds, rss = render(template, own=own)
                if kind not in ("text", "refused"):
                    return f"{kind}: {said[-200:]}"
                if seconds > 30:
                    return f"took {seconds:.0f} s"
                return f"took {rss:.0f} MB" if rss > 2000 else None

            tally.try_(f"{'the own' if own else 'another'} template {template[:80]}", greedy)
    yield tally
