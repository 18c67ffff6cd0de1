// Filters, search and order of the galleries of the HTML report.
for (const gallery of document.querySelectorAll('.gallery')) {
  const items = [...gallery.querySelectorAll('.item')], list = gallery.querySelector('.items');
  const task = gallery.querySelector('[name=task]'), order = gallery.querySelector('[name=order]');
  const search = gallery.querySelector('[name=search]'), count = gallery.querySelector('.count');
  const verdicts = [...gallery.querySelectorAll('[data-verdict]')], empty = gallery.querySelector('.empty');
  const judged = gallery.querySelector('.answer.right, .answer.wrong') !== null;
  const { row: noun, card } = gallery.dataset;
  const counted = (number, noun) => `${number} ${noun}${number === 1 ? '' : 's'}`;
  let verdict = '';
  const show = () => {
    let shown = 0, right = 0, scenes = 0;
    const named = order?.value.startsWith('score:') ? order.value.slice(6) : '';
    const wanted = search.value.trim().toLowerCase();
    for (const item of items) {
      let any = 0, good = 0, sum = 0, known = 0;
      for (const row of item.querySelectorAll('.answer')) {
        const fits = (!task?.value || row.dataset.task === task.value) && (!verdict || row.classList.contains(verdict))
          && (!wanted || row.textContent.toLowerCase().includes(wanted));
        row.hidden = !fits; any += fits; good += fits && row.classList.contains('right');
        if (!fits) continue;
        const score = named && [...row.querySelectorAll('.score')].find((one) => one.dataset.name === named);
        const value = named ? score?.dataset.value : row.dataset.quality;
        if (value !== undefined) { sum += +value; known += 1; }
      }
      item.hidden = !any; item.quality = known ? sum / known : Infinity; item.amount = any;
      shown += any; right += good; scenes += any > 0;
    }
    const index = (item) => +item.dataset.index;
    const by = { worst: (a, b) => (a.quality === b.quality ? 0 : a.quality - b.quality) || b.amount - a.amount
      || index(a) - index(b), best: (a, b) => by.worst(b, a), file: (a, b) => index(a) - index(b) };
    items.sort(by[order?.value] ?? by.worst); list.append(...items);
    count.textContent = (noun ? `${counted(shown, noun)} on ` : '') + counted(scenes, card) + (judged ? `, ${right} right` : '');
    empty.hidden = shown > 0;
  };
  for (const button of verdicts) button.onclick = () => {
    verdict = button.dataset.verdict;
    for (const other of verdicts) other.setAttribute('aria-pressed', other === button);
    show();
  };
  for (const chooser of [task, order]) if (chooser) chooser.onchange = show;
  search.oninput = show;
  show();
}
