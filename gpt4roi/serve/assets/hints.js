// What the question lacks. Python gives `value` {hints: [{text, label, question, anyway}]}.
const { make, setQuestion, withChips } = window.gpt4roi;
const list = element.querySelector('.hints');

const load = () => {
  const hints = (props.value && props.value.hints) || [];
  list.replaceChildren(...hints.map((hint) => {
    const row = make('p', 'hint');
    row.append(make('span', '', hint.text));
    if (hint.label) {
      const button = make('button', 'hint-mend', hint.label);
      button.type = 'button';
      button.onclick = () => {
        setQuestion(hint.question);
        row.remove();
      };
      row.append(button);
    }
    return row;
  }));
  if (hints.some((hint) => hint.anyway)) {
    const button = make('button', 'hint-anyway', 'Ask anyway');
    button.type = 'button';
    button.onclick = () => trigger('anyway', {});
    list.append(button);
  }
};
watch('value', load);
load();
