// Hints: what the question lacks. Python gives `value` {hints: [{text, label, question, force, changes}]}.
const { make, questionBox, setQuestion } = window.gpt4roi;
const list = element.querySelector('.hints');

// The text may have been edited since, or fixed by another hint: only what is missing changes in it.
const fixed = (hint) => {
  const now = questionBox().value;
  if (!now.trim()) return hint.question;
  return hint.changes.reduce((text, [before, after]) => {
    if (before) return text.replace(new RegExp(`${before}(?!\\d)`), () => after);
    if (text.includes(after)) return text;
    const [, body, end] = text.match(/^(.*?)\s*([.?!]?)\s*$/s);
    return `${body} ${after}${end}`;
  }, now);
};

const load = () => {
  const hints = (props.value && props.value.hints) || [];
  list.replaceChildren(...hints.map((hint) => {
    const row = make('p', 'hint');
    row.append(make('span', '', hint.text));
    if (hint.label) {
      const button = make('button', 'hint-fix', hint.label);
      button.type = 'button';
      button.onclick = () => {
        setQuestion(fixed(hint));
        row.remove();
      };
      row.append(button);
    }
    return row;
  }));
  if (hints.some((hint) => hint.force)) {
    const button = make('button', 'hint-force', 'Ask anyway');
    button.type = 'button';
    button.onclick = () => trigger('force', {});
    list.append(button);
  }
};
watch('value', load);
load();
