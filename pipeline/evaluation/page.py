"""The result of `elmo evaluate` as one HTML page that needs no network and no script.

It is made of the job's JSON alone, so that a page can be made again from a stored result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipeline.evaluation.svg import Bar, Point, Stack, bars, points, stacks

_CSS = """
:root{--ink:#1d2733;--soft:#5c6b7a;--line:#dfe5ea;--paper:#fff;--back:#f5f7f9;
--baseline:#b4bfca;--layer:#7fa8d1;--model:#2f6299;--mix:#c7622e;--other:#5b9a72}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI","Noto Sans","Noto Sans CJK SC",sans-serif}
main{max-width:1380px;margin:0 auto;padding:28px 24px 60px}
h1{font-size:26px;margin:0 0 2px}h2{font-size:19px;margin:36px 0 10px}
h3{font-size:16px;margin:0 0 2px}h4{font-size:13px;margin:12px 0 4px;font-weight:600}
p{margin:4px 0;color:var(--soft)}.sub{font-size:13px;color:var(--soft)}
.grid-of{display:grid;grid-template-columns:repeat(auto-fill,minmax(600px,1fr));gap:16px}
.grid-of.small{grid-template-columns:repeat(auto-fill,minmax(320px,1fr))}
.card{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:16px 18px}
.facts{display:flex;flex-wrap:wrap;gap:12px;margin-top:16px}
.fact{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:10px 16px}
.fact b{display:block;font-size:20px;font-variant-numeric:tabular-nums}
.fact span{font-size:12px;color:var(--soft)}
table{border-collapse:collapse;background:var(--paper);width:100%;font-size:14px}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);font-size:12px}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.better{color:#1f7a45;font-weight:600}.worse{color:#b23a2e;font-weight:600}.none{color:#7a8794}
svg{display:block;width:100%;height:auto;margin:4px 0}
svg text{font-size:12px;fill:var(--ink)}svg .axis{font-size:10.5px;fill:var(--soft)}
svg .note{font-size:11px;fill:var(--soft)}svg .inside{fill:#fff;font-size:11px}
svg .value{font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--line)}svg .whisker{stroke:#1d2733;stroke-width:1.2;fill:none}
svg .frame{fill:#fbfcfd;stroke:var(--line)}
.bar.baseline{fill:var(--baseline)}.bar.layer{fill:var(--layer)}.bar.model{fill:var(--model)}
.bar.mix{fill:var(--mix)}.bar.other{fill:var(--other)}
.layer-0{fill:#9aa7b4}.layer-1{fill:#5d93c7}.layer-2{fill:#2f6299}.layer-3{fill:#183f68}
.layer-4{fill:#0e2743}
.point{stroke:#fff;stroke-width:1.5;fill-opacity:.9}.sense-0{fill:#2f6299}.sense-1{fill:#c7622e}
.sense-2{fill:#5b9a72}
.key{display:inline-flex;align-items:center;gap:6px;margin-right:16px;font-size:13px}
.key i{width:12px;height:12px;border-radius:3px;display:inline-block}
ol{margin:2px 0 8px;padding-left:20px;font-size:13px}li{color:var(--soft)}li b{color:var(--ink)}
@media(max-width:680px){.grid-of{grid-template-columns:1fr}}
"""
_KEYS = (
    ("baseline", "baselines, with layer 0"),
    ("layer", "one layer"),
    ("model", "average of layers"),
    ("mix", "learned mix"),
    ("other", "others to compare"),
)
_SENSE_COLOURS = ("#2f6299", "#c7622e", "#5b9a72")
_AVERAGE, _MIX = "average of layers", "learned mix"


def page(result: Mapping[str, Any]) -> str:
    """The page of one result.

    Args:
        result: the JSON that `elmo evaluate` returns.
    """
    sections = [
        _head(result),
        "<h2>What it is worth</h2>",
        _summary(result["tasks"]),
        "<h2>Scores beside baselines</h2>",
        f"<div>{''.join(_key(f'var(--{style})', text) for style, text in _KEYS)}</div>",
        '<p class="sub">Thin lines are 95 % intervals over the test items. The word behind a score '
        "is the verdict against the best baseline.</p>",
        f'<div class="grid-of">{"".join(map(_task, result["tasks"]))}</div>',
        _mixes(result["tasks"]),
        _words(result.get("words", [])),
    ]
    title = escape(f"What {result['model']} is worth")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{_CSS}</style></head>'
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _head(result: Mapping[str, Any]) -> str:
    facts = [
        (f"{result['layers']} x {result['dim']}", "layers and width"),
        (f"{result['tokens']:,}", "tokens encoded, marks included"),
        (f"{result['tokens_per_s']:,.0f}", "tokens/s of this run"),
        (f"{result['padding_share']:.1%}", "of the positions were padding"),
    ]
    if result.get("max_items"):
        facts.append((f"{result['max_items']:,}", "items of each task at most: only a part"))
    cells = "".join(
        f'<div class="fact"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
        for value, text in facts
    )
    return (
        f"<h1>{escape(result['model'])}</h1>"
        f'<p class="sub">weights {escape(result["weights_sha256"][:16])}</p>'
        f'<div class="facts">{cells}</div>'
    )


def _summary(tasks: Sequence[Mapping[str, Any]]) -> str:
    """One line a measure: the average beside the best baseline and layer 0."""
    rows = []
    for task in tasks:
        for table in task["tables"]:
            scores = {score["name"]: score for score in table["scores"]}
            average = scores[_AVERAGE]
            best = scores[table["references"][0]]
            found = {item["against"]: item for item in average["differences"]}
            cells = [
                f"<td>{escape(task['name'])}</td><td>{escape(table['metric'])}</td>",
                f'<td class="n">{task["num_items"]:,}</td>',
                f'<td class="n">{average["value"]:.3f}</td>',
                f'<td class="n">{best["value"]:.3f}</td><td>{escape(best["name"])}</td>',
                *(_verdict(found.get(name)) for name in (best["name"], "layer 0 (no context)")),
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = (
        "task", "measure", "items", "average of layers", "best baseline", "which",
        "against it", "against layer 0",
    )  # fmt: skip
    head = "".join(f"<th>{text}</th>" for text in heads)
    return (
        f'<div class="card"><table class="summary"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _verdict(item: Mapping[str, Any] | None) -> str:
    if item is None:
        return "<td></td>"
    return f'<td class="{item["verdict"]}">{item["value"]:+.3f} {item["verdict"]}</td>'


def _task(task: Mapping[str, Any]) -> str:
    parts = [
        f"<h3>{escape(task['name'])}</h3>",
        f'<p class="sub">{escape(task["kind"])}, {task["num_items"]:,} items</p>',
    ]
    for table in task["tables"]:
        reference = table["references"][0]
        rows = []
        for score in table["scores"]:
            style = "mix" if score["name"] == _MIX else score["group"]
            verdicts = [d["verdict"] for d in score["differences"] if d["against"] == reference]
            note = "best baseline" if score["name"] == reference else "".join(verdicts)
            rows.append(
                Bar(score["name"], score["value"], score["low"], score["high"], style, note)
            )
        parts.append(f"<h4>{escape(table['metric'])}</h4>")
        parts.append(bars(f"{task['name']}: {table['metric']}", rows))
    parts += [f'<p class="sub">{escape(note)}</p>' for note in task["notes"]]
    return f'<section class="card task">{"".join(parts)}</section>'


def _mixes(tasks: Sequence[Mapping[str, Any]]) -> str:
    mixed = [task for task in tasks if task["mix"]]
    if not mixed:
        return ""
    rows = [Stack(task["name"], task["mix"]["shares"]) for task in mixed]
    num_layers = len(rows[0].shares)
    colours = ("#9aa7b4", "#5d93c7", "#2f6299", "#183f68", "#0e2743")
    keys = "".join(
        _key(colours[min(place, len(colours) - 1)], f"layer {place}") for place in range(num_layers)
    )
    return (
        "<h2>Learned mixes</h2>"
        '<p class="sub">Softmax of the weights that were learned with a linear head on each '
        "task's training part; equal shares are where they start.</p>"
        f'<div class="card">{keys}{stacks("shares of the layers by task", rows)}</div>'
    )


def _words(words: Sequence[Mapping[str, Any]]) -> str:
    if not words:
        return ""
    return (
        "<h2>One word, two senses</h2>"
        '<p class="sub">Vectors of a word in sentences (average of layers, less their mean), laid '
        "out in two dimensions by t-SNE. Pointing at a mark shows its sentence. Below: the other "
        "words of other sentences nearest to one use of each sense.</p>"
        f'<div class="grid-of small">{"".join(map(_word, words))}</div>'
    )


def _word(word: Mapping[str, Any]) -> str:
    senses = list(dict.fromkeys(use["sense"] for use in word["uses"]))
    marks = [
        Point(use["x"], use["y"], f"sense-{senses.index(use['sense'])}", use["sentence"])
        for use in word["uses"]
    ]
    keys = "".join(
        _key(colour, sense) for colour, sense in zip(_SENSE_COLOURS, senses, strict=False)
    )
    lists = []
    for sense, found in word["neighbours"].items():
        first = next(use["sentence"] for use in word["uses"] if use["sense"] == sense)
        items = "".join(
            f"<li><b>{escape(item['word'])}</b> {item['cosine']:.2f} "
            f"<span>{escape(item['sentence'])}</span></li>"
            for item in found
        )
        lists.append(f"<h4>{escape(first)}</h4><ol>{items}</ol>")
    return (
        f'<section class="card word"><h3>{escape(word["word"])}</h3><div>{keys}</div>'
        f"{points(word['word'], marks)}"
        f'<p class="sub">The nearest other use has the same sense in '
        f"{word['same_sense_share']:.0%} of {len(marks)}; guessing the larger sense: "
        f"{word['largest_sense_share']:.0%}.</p>{''.join(lists)}</section>"
    )


def _key(colour: str, text: str) -> str:
    return f'<span class="key"><i style="background:{colour}"></i>{escape(text)}</span>'
