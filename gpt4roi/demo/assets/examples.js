// Photographs to try. `value` is a list of {name, title, src}.
const { make } = window.gpt4roi;
element.querySelector('.examples').replaceChildren(...(props.value || []).map(({ name, title, src }) => {
  const button = make('button', 'example');
  button.type = 'button';
  button.title = title;
  const image = make('img');
  image.src = src;
  image.alt = `Example: ${title}`;
  button.append(image);
  button.onclick = () => trigger('pick', { name });
  return button;
}));
