"""The look and the few lines of script of the HTML report; both go into the page itself, which opens offline."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #1b1f27; --soft: #5d6675; --line: #e1e5eb; --accent: #2f5fd0;
  --good: #1c7f43; --good-bg: #e3f4e9; --bad: #bb2b2b; --bad-bg: #fbe6e5; --bar: #c9d8f7;
  --warn: #8a5a00; --warn-bg: #fbf0d9;
  --shadow: 0 1px 3px #0b163014; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12151b; --card: #1b2029; --ink: #e7eaf0; --soft: #98a2b3; --line: #2c333f; --accent: #86a8ff;
  --good: #63cf8c; --good-bg: #17331f; --bad: #ff8b86; --bad-bg: #3d1c1d; --bar: #2c4274; --warn: #f0c063;
  --warn-bg: #3a2c10; --shadow: none; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 20px 80px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.015em; }
h2 { font-size: 18px; margin: 40px 0 10px; letter-spacing: -.01em; }
p { margin: 0 0 10px; max-width: 76ch; } .soft, .note { color: var(--soft); } .note { font-size: 13px;
  margin-top: 8px; }
code { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px;
  margin: 22px 0 4px; }
.fact, .sheet, .item { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  box-shadow: var(--shadow); }
.fact { padding: 13px 16px; } .fact b { display: block; font-size: 25px; line-height: 1.2;
  letter-spacing: -.02em; }
.fact span { color: var(--soft); font-size: 13px; } .fact small { display: block; color: var(--soft);
  font-size: 12px; }
.sheet { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; font-size: 12.5px; color: var(--soft); }
th, td { padding: 8px 16px; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr:last-child td { border-bottom: 0; } td.num, th.num { text-align: right; white-space: nowrap; }
summary { cursor: pointer; margin-top: 40px; } summary h2 { display: inline; } summary::marker { color: var(--soft); }
details .sheet { margin-top: 10px; }
.share { display: flex; align-items: center; gap: 10px; min-width: 215px; } .share b { width: 3.1em;
  font-weight: 600; }
.share small { color: var(--soft); white-space: nowrap; min-width: 9.5em; }
.track { position: relative; flex: 1; min-width: 70px; height: 8px; border-radius: 4px; background: var(--line); }
.track i { position: absolute; inset: 0 auto 0 0; border-radius: 4px; background: var(--accent); opacity: .85; }
.track u { position: absolute; top: -2px; bottom: -2px; border-inline: 2px solid var(--ink); opacity: .55; }
.bar { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: 8px; align-items: center;
  padding: 10px 0; background: var(--paper); }
.bar select, .bar input, .bar button { font: inherit; font-size: 13.5px; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: 6px 10px; }
.bar button { cursor: pointer; } .bar button[aria-pressed=true] { background: var(--accent);
  color: var(--card); border-color: var(--accent); }
.bar input { flex: 1; min-width: 130px; max-width: 260px; } .bar .count { margin-left: auto;
  color: var(--soft); font-size: 13px; }
.items { display: grid; gap: 14px; } .item { display: flex; gap: 18px; padding: 14px; align-items: flex-start; }
.item[hidden] { display: none; } figure { margin: 0; flex: 0 0 300px; max-width: 100%; }
.image { position: relative; border-radius: 8px; overflow: hidden; line-height: 0; background: var(--line); }
.image img { width: 100%; height: auto; display: block; } .image svg { position: absolute; inset: 0;
  width: 100%; height: 100%; }
figcaption { color: var(--soft); font-size: 12.5px; margin-top: 7px; display: flex;
  justify-content: space-between; gap: 8px; }
.answers { flex: 1; min-width: 0; columns: 2 300px; column-gap: 22px; }
.answer { break-inside: avoid; display: grid; grid-template-columns: 22px 1fr; gap: 0 8px; padding: 5px 0;
  border-bottom: 1px solid var(--line); }
.answer:has(.crop) { grid-template-columns: 22px 84px 1fr; }
.crop { max-width: 84px; max-height: 84px; border-radius: 6px; margin-top: 3px; }
.refs { margin: 2px 0 0; padding-left: 16px; color: var(--soft); font-size: 13px; } .scores { margin-top: 2px; }
.score { display: inline-block; font-size: 12px; color: var(--soft); border: 1px solid var(--line);
  border-radius: 5px; padding: 0 5px; margin: 2px 4px 0 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 12px; }
.chart th, .chart td { padding: 4px 10px; border: 0; white-space: nowrap; }
.chart caption { text-align: left; font-weight: 600; padding: 10px 12px 2px; }
.chart td.track { background: none; width: 45%; display: table-cell; }
.chart .track i { position: static; display: block; height: 10px; min-width: 1px; background: var(--accent); }
.answer[hidden] { display: none; } .answer p { margin: 0; overflow-wrap: anywhere; }
  .answer .q { color: var(--soft); font-size: 13px; white-space: pre-line; }
.mark { width: 20px; height: 20px; margin-top: 2px; border-radius: 50%; font-size: 12px;
  line-height: 20px;
  text-align: center; font-weight: 700; color: var(--soft); background: var(--line); }
.right .mark { color: var(--good); background: var(--good-bg); } .wrong .mark { color: var(--bad);
  background: var(--bad-bg); }
.wrong .a { color: var(--bad); } .t { color: var(--soft); } .t b { color: var(--good); font-weight: 600; }
.region { color: #fff; background: var(--c); border-radius: 5px; padding: 0 5px; font-size: 12px;
  font-weight: 600; white-space: nowrap; }
.tag { border-radius: 6px; padding: 2px 8px; font-size: 12.5px; font-weight: 600; background: var(--line);
  color: var(--soft); white-space: nowrap; } .tag.good { background: var(--good-bg); color: var(--good); }
.tag.bad { background: var(--bad-bg); color: var(--bad); } .tag.warn { background: var(--warn-bg); color: var(--warn); }
.answer.passages { column-span: all; display: block; border: 0; padding-top: 10px; } .passages pre { margin: 0;
  max-height: 260px; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; padding: 10px 12px;
  background: var(--paper); border-radius: 8px; font: 12px/1.55 ui-monospace, "SF Mono", Menlo, monospace; }
.passages mark { background: var(--good-bg); color: var(--good); border-radius: 3px; }
.empty { color: var(--soft); padding: 24px; text-align: center; }
@media (max-width: 720px) { .item { flex-direction: column; } figure { flex-basis: auto; width: 100%; }
  .answers { width: 100%; } }
@media print { .bar { display: none; } .item { break-inside: avoid; } }
"""

SCRIPT = """
for (const gallery of document.querySelectorAll('.gallery')) {
  const items = [...gallery.querySelectorAll('.item')], list = gallery.querySelector('.items');
  const task = gallery.querySelector('[name=task]'), order = gallery.querySelector('[name=order]');
  const search = gallery.querySelector('[name=search]'), count = gallery.querySelector('.count');
  const verdicts = [...gallery.querySelectorAll('[data-verdict]')], empty = gallery.querySelector('.empty');
  const judged = gallery.querySelector('.answer.right, .answer.wrong') !== null;
  let verdict = '';
  const show = () => {
    let shown = 0, right = 0, scenes = 0;
    const named = order.value.startsWith('score:') ? order.value.slice(6) : '';
    const wanted = search.value.trim().toLowerCase();
    for (const item of items) {
      let any = 0, good = 0, sum = 0, known = 0;
      for (const row of item.querySelectorAll('.answer')) {
        const fits = (!task.value || row.dataset.task === task.value) && (!verdict || row.classList.contains(verdict))
          && (!wanted || row.textContent.toLowerCase().includes(wanted));
        row.hidden = !fits; any += fits; good += fits && row.classList.contains('right');
        if (!fits) continue;
        const score = named && [...row.querySelectorAll('.score')].find((one) => one.dataset.name === named);
        const value = named ? score?.dataset.value : row.dataset.quality;
        if (value !== undefined) { sum += +value; known += 1; }
      }
      item.hidden = !any; item.share = known ? sum / known : Infinity; item.amount = any;
      shown += any; right += good; scenes += any > 0;
    }
    const index = (item) => +item.dataset.index;
    const by = { worst: (a, b) => (a.share === b.share ? 0 : a.share - b.share) || b.amount - a.amount
      || index(a) - index(b), best: (a, b) => by.worst(b, a), file: (a, b) => index(a) - index(b) };
    items.sort(by[order.value] ?? by.worst); list.append(...items);
    count.textContent = `${shown} answers on ${scenes} images` + (judged ? `, ${right} right` : '');
    empty.hidden = shown > 0;
  };
  for (const button of verdicts) button.onclick = () => {
    verdict = button.dataset.verdict;
    for (const other of verdicts) other.setAttribute('aria-pressed', other === button);
    show();
  };
  task.onchange = order.onchange = search.oninput = show;
  show();
}
"""
