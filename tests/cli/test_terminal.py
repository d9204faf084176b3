"""Nothing that a run file, a card, a host or a path says acts on the terminal."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from audits import NOWHERE, write_run_file
from command_line import Finished, _plain_surroundings, call, honest
from fakes_card import write_card
from fakes_host import FakeHost, chat
from rich.table import Table
from rich.text import Text
from source import MODULES, parsed

from verifier import cli, wording
from verifier.cli.common import Terminal, say, showing
from verifier.config import Hardware, ReferenceSection
from verifier.files.run_folder import REPORT, write_json
from verifier.reference.cards import load_card
from verifier.reference.hardware import plan_memory
from verifier.reports.tables import print_memory

__all__ = ["_plain_surroundings", "honest"]  # fixtures

#: Signs that move, colour, name, hide or turn what stands on a screen.
ACTING = (
    "\x1b]0;OWNED\x07\x1b[2J\x1b[31m\x9b5m\x08\r\x7f\u202e\u2066\u2028\u2029\u200b\ufeff\U000e0041"
)
#: With them, markup that rich would read, a name of an emoji, and a line that is not ours.
HOSTILE = f"a{ACTING}[red]:smile:[/red]\nCONSISTENT  all is well"
#: What is no attack: scripts from right to left need joiners, emoji need them and selectors.
KIND = (
    "Straße 北京 العربية हिन्दी می\u200cخواهم 👩\u200d🔬 ❤\ufe0f "
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
)

#: What a progress bar itself sends: styles, the cursor off and on, a line cleared, one up.
DRAWING = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|2K|1A)|\r")


def unsafe(text: str) -> list[str]:
    """Signs of a text that act on a screen, line ends aside."""
    return [
        sign for sign in text.replace(KIND, "")
        if (unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") and sign != "\n")
        or unicodedata.bidirectional(sign) in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI",
                                               "FSI", "PDI")
        or sign in "\u200b\ufeff" or 0xE0000 <= ord(sign) <= 0xE007F
    ]  # fmt: skip


# -- through the command line ------------------------------------------------------------------


def commands(folder: Path, *, of: Finished) -> dict[str, Any]:
    """Calls of the command line that quote hostile words, by what holds them."""
    named = folder / f"x{HOSTILE}".replace("/", "|")
    named.mkdir()
    file = write_run_file(folder, NOWHERE)
    content = yaml.safe_load(file.read_text())
    (folder / "out.yaml").write_text(yaml.safe_dump(content | {"out": str(named / "run")}))
    long = content | {"audit": content["audit"] | {HOSTILE: 1}}
    (folder / "key.yaml").write_text(yaml.safe_dump(long))
    (folder / "value.yaml").write_text(yaml.safe_dump(content | {"prices": HOSTILE}))
    (folder / "broken.yaml").write_text(f'out: "{HOSTILE}')
    gpus = {"reference": {"card": "card.yaml", "engine": "vllm"}}
    (folder / "card-name.yaml").write_text(yaml.safe_dump(content | gpus | {"out": "planned"}))
    card = {"licence": {"name": HOSTILE, "hosting": "conditional", "terms": HOSTILE}}
    write_card(folder, **card, publisher=HOSTILE, model=HOSTILE).rename(folder / "card.yaml")
    copied = of.copied(folder)
    report = json.loads((copied / REPORT).read_text())
    told = [f | {"name": HOSTILE, "detail": HOSTILE} for f in report["findings"]]
    write_json(copied / REPORT, report | {"summary": HOSTILE, "notes": [HOSTILE], "findings": told})
    moved = Path(copied).rename(named / "folder")
    return {
        "a run file's out": ("plan", folder / "out.yaml"),
        "a run file's key": ("plan", folder / "key.yaml"),
        "a run file's value": ("plan", folder / "value.yaml"),
        "no YAML": ("plan", folder / "broken.yaml"),
        "a card's name": ("plan", folder / "card-name.yaml"),
        "a card": ("reference", "show", folder / "card.yaml"),
        "a card that is not there": ("reference", "show", HOSTILE),
        "a card to draw a panel of": ("panel", HOSTILE, "--seed", "1"),
        "a snapshot": ("reference", "pin", folder / "card.yaml", "--weights", HOSTILE),
        "a run file that is not there": ("audit", HOSTILE),
        "a run folder that is not there": ("collect", HOSTILE),
        "a folder of targets": ("summary", HOSTILE),
        "an option": ("audit", f"--{HOSTILE}"),
        "a command": (HOSTILE,),
        "a choice": ("audit", "--engine", HOSTILE),
        "a number": ("audit", "--seed", HOSTILE),
        "an argument too many": ("report", "x", HOSTILE),
        "a key's variable": ("testbed", "serve", "--api-key-env", HOSTILE),
        "a fault": ("testbed", "serve", "--fault", HOSTILE),
        "a route": ("testbed", "route", "--base-url", NOWHERE, "--route", HOSTILE),
        "a part of the benchmark": ("bench", folder / "bench", "--part", HOSTILE),
        "a report": ("report", moved),
        "a report as JSON": ("report", moved, "--json"),
    }


@pytest.mark.parametrize("terminal", [False, True])
def test_no_words_act_on_the_terminal(tmp_path: Path, honest: Finished, terminal: bool) -> None:
    """Whoever wrote them, on either stream; and none begins a line of its own."""
    for what, arguments in commands(tmp_path, of=honest).items():
        raw = what == "a report as JSON" and not terminal  # to the byte as in the file
        ended = call(*arguments, terminal=terminal, NO_COLOR="1", COLUMNS="20000")
        told = DRAWING.sub("", ended.err) if terminal else ended.err
        shown = re.sub(r"\x1b\[[0-9;]*m", "", ended.out) if terminal else ended.out

        assert ended.status in (0, 2), (what, ended)
        assert raw or unsafe(shown + told) == [], (what, shown + told)
        for line in (shown + told).splitlines():
            assert not line.startswith("CONSISTENT  all"), (what, shown + told)


def test_json_on_a_terminal_is_the_same_value(tmp_path: Path, honest: Finished) -> None:
    """Signs that act are escaped as JSON may; to a file it goes to the byte."""
    run = honest.copied(tmp_path)
    report = json.loads((run / REPORT).read_text())
    write_json(run / REPORT, report | {"notes": [ACTING, KIND]})
    shown = call("report", run, "--json", terminal=True, COLUMNS="20000").out
    piped = call("report", run, "--json").out

    assert unsafe(shown) == []
    assert KIND in shown
    assert json.loads(shown) == json.loads(piped)
    assert piped.encode() == (run / REPORT).read_bytes()


def test_an_address_of_a_host_is_shown_plainly(tmp_path: Path) -> None:
    """A host's own words on a refusal as well."""
    with FakeHost(lambda _asked: chat(HOSTILE)) as host:
        ended = call("capabilities", write_run_file(tmp_path, host.url), terminal=True)

    assert unsafe(ended.out) == []


# -- the parts ---------------------------------------------------------------------------------


def printed(show: Any, capsys: pytest.CaptureFixture[str]) -> str:
    show()
    taken = capsys.readouterr()
    return taken.out + taken.err


def test_words_of_a_card_reach_progress_plainly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A requirement is told while it is fetched: as a line, and as the name of the bar."""

    def show() -> None:
        with showing() as to:
            to.tell(f"fetching {HOSTILE}")
            to.step(HOSTILE, 1, 2)

    said = printed(show, capsys)
    assert unsafe(said) == []
    assert said.count("\n") == 1
    assert "[red]:smile:[/red]" in said

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "500")
    drawn = DRAWING.sub("", printed(show, capsys))
    assert unsafe(drawn) == []
    assert "[red]:smile:[/red]" in drawn


def test_a_line_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is lost of a path: neither spaces nor line ends."""
    say("run folder: a  b\n\tc\x1b[2J")

    assert capsys.readouterr().out == "run folder: a  b\\n\\tc\\x1b[2J\n"


def test_a_table_is_plain_even_where_its_cells_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    """The console is the last sieve; its own colours and moves pass."""
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, style="red"))
    console = Terminal()
    console.print(table)
    console.print(HOSTILE, Text(HOSTILE))

    assert unsafe(capsys.readouterr().out) == []


def test_a_memory_plan_of_a_card_from_elsewhere_is_plain(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its figures are numbers, whatever else the card says."""
    card = load_card("qwen3-8b").model_copy(update={"name": HOSTILE, "model": HOSTILE})
    section = ReferenceSection(card="x", engine="vllm")
    print_memory(
        plan_memory(card, section, max_tokens=64),
        Hardware(gpus=1, memory_gib=80),
        Terminal(),
    )

    assert unsafe(capsys.readouterr().out) == []


def test_what_people_write_stays() -> None:
    """Scripts, accents and emoji, joined and chosen by signs that are not seen."""
    assert wording.visible(KIND) == KIND
    assert wording.spelled_out(KIND) == KIND
    assert wording.inert_json(json.dumps(KIND, ensure_ascii=False)) == f'"{KIND}"'


def test_every_sign_that_acts_is_made_visible() -> None:
    """Over all of Unicode, as its tables class them."""
    for number in range(sys.maxunicode + 1):
        sign = chr(number)
        if unsafe(sign) and sign != "\t":
            assert wording.visible(sign).isascii(), hex(number)
            assert wording.visible(sign).isprintable(), hex(number)


@pytest.mark.parametrize(
    "text", ["word ", "中文é", "\x1b", "\u202ea", "\U000e0041\U0001f3f4", "\r\n"]
)
def test_a_megabyte_is_made_visible_at_once(text: str) -> None:
    """A host may send as much; twice as much takes no more than twice as long."""
    for show in (wording.visible, wording.one_line, wording.spelled_out, wording.inert_json):
        start = time.process_time()
        show(text * (1_000_000 // len(text)))
        assert time.process_time() - start < 3


# -- the source --------------------------------------------------------------------------------

#: What writes to a stream past `say`, `say_json` and `Terminal`; and who may.
_WRITERS = {
    "typer.echo": {"cli.common"},
    "print": {"cli"},  # the last line of a command that failed, made visible; a trace asked for
    "Console": {"cli.common"},
    "Terminal": {"cli.commands", "cli.lab", "cli.reference", "cli.common"},
    "Progress": {"cli.common"},
    # to a pipe and to a file of their own; in `cli` the last line of a command that hangs, made
    # visible, and in `cli.stop` a pipe and signs of ours that clear the line before it
    "os.write": {"reference.template_process", "cli.trust", "cli", "cli.stop"},
}
_NEVER = re.compile(
    r"typer\.(secho|prompt|confirm|style|progressbar|launch|echo_via_pager)|click\..*"
    r"|sys\.(stdout|stderr|__stdout__|__stderr__)\.(write|writelines|buffer.*)|rich\.print.*"
    r"|warnings\.warn|input|getpass.*|traceback\.print.*|pprint.*|logging\.(?!getLogger).*"
)


def called(path: Path) -> list[tuple[str, ast.Call]]:
    return [
        (ast.unparse(node.func), node)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_all_that_is_printed_goes_one_way(name: str) -> None:
    """So that nobody has to remember what may stand in a line."""
    for what, node in called(MODULES[name]):
        assert name in _WRITERS.get(what, {name}), f"{name}:{node.lineno}: {what}"
        assert not _NEVER.fullmatch(what), f"{name}:{node.lineno}: {what}"


def test_the_one_way_makes_everything_visible() -> None:
    """What is handed to the streams is made so in the same call, or holds bytes that were."""
    handed = [
        ast.unparse(node.args[0])
        for name in ("cli.common", "cli")
        for what, node in called(MODULES[name])
        if what in ("typer.echo", "print")
    ]
    (past_the_buffer,) = [
        ast.unparse(node.args[1]) for what, node in called(MODULES["cli"]) if what == "os.write"
    ]

    assert past_the_buffer == """f'{_line(words)}\\n'.encode('utf-8', 'backslashreplace')"""
    assert "visible(message)" in inspect.getsource(cli._line)
    assert sorted(handed) == sorted(
        [
            "spelled_out(_shown(line))",
            "f'{shown}\\n'.encode()",
            "_line(message)",
            "_struck(''.join(traceback.format_exception(error)))",
        ]
    )


def test_the_version_and_help_are_plain() -> None:
    """Of the program as well."""
    for words in (("--version",), ("--help",), ("audit", "--help"), ()):
        ended = call(*words)
        assert unsafe(ended.out + ended.err) == []
