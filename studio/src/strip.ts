/** A row of small photos, one of which is shown large. */

interface Item {
  button: HTMLButtonElement;
  image: HTMLImageElement;
  words: HTMLElement;
}

export class Strip {
  #items: Item[] = [];

  constructor(
    readonly place: HTMLElement,
    readonly onChoose: (index: number) => void,
  ) {}

  get count(): number {
    return this.#items.length;
  }

  /** Show so many photos, still without pictures; none hides the row. */
  fill(count: number): void {
    this.#items = Array.from({ length: count }, (_, index) => this.#item(index));
    this.place.replaceChildren(...this.#items.map(({ button }) => button));
    document.body.toggleAttribute("data-strip", count > 0);
  }

  /** Set the picture of a photo. */
  picture(index: number, address: string): void {
    const item = this.#items[index];
    if (item) item.image.src = address;
  }

  /** Say something about a photo in a few words. */
  say(index: number, text: string, alarming = false): void {
    const item = this.#items[index];
    if (!item) return;
    item.words.textContent = text;
    item.button.classList.toggle("alarming", alarming);
  }

  /** Mark the photo that is shown. */
  choose(index: number): void {
    this.#items.forEach(({ button }, k) => button.setAttribute("aria-pressed", String(k === index)));
    this.#items[index]?.button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  #item(index: number): Item {
    const [button, image, words] = ["button", "img", "span"].map((name) => document.createElement(name)) as [
      HTMLButtonElement,
      HTMLImageElement,
      HTMLElement,
    ];
    button.type = "button";
    image.alt = `Photo ${index + 1}`;
    // A format that the browser cannot show, such as HEIC, waits for the server's copy.
    image.addEventListener("error", () => image.removeAttribute("src"));
    button.append(image, words);
    button.addEventListener("click", () => this.onChoose(index));
    return { button, image, words };
  }
}
