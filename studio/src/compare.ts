/** A second viewer beside the first one. It shows the same face after an earlier step, or found in another mode. */

import * as api from "./api";
import { Viewer } from "./viewer";

const MODE_WORDS: Partial<Record<api.Mode, string>> = { fit: "Fit without networks", net: "Networks without fit" };

export class Comparison {
  #viewer: Viewer | null = null;
  #shown = "";
  #base = "";
  /** The latest head of the same photo in another mode; a job per mode. */
  readonly #others = new Map<string, Promise<string>>();

  constructor(
    readonly main: Viewer,
    readonly canvas: HTMLCanvasElement,
    readonly choice: HTMLSelectElement,
    readonly note: HTMLElement,
    readonly words: Record<api.Step, string>,
    readonly strengths: () => ReadonlyMap<string, number>,
  ) {}

  /** Offer the earlier steps of a face and the other modes, and show the chosen one. */
  async refresh(job: string, head: api.FaceHead): Promise<void> {
    if (job !== this.#base) this.#others.clear();
    this.#base = job;
    const steps = api.STEPS.filter((step) => step !== head.step && head.files.includes(api.stepFile(step)));
    const before = this.choice.value;
    this.choice.replaceChildren(
      options("Earlier steps", steps.map((step) => new Option(this.words[step], step))),
      options("Other ways", Object.entries(MODE_WORDS).map(([mode, text]) => new Option(text, `mode:${mode}`))),
    );
    if ([...this.choice.options].some(({ value }) => value === before)) this.choice.value = before;
    this.choice.onchange = () => void this.#choose(job, head.face);
    await this.#choose(job, head.face);
  }

  async #choose(job: string, face: number): Promise<void> {
    const chosen = this.choice.value;
    this.note.textContent = "";
    if (!chosen.startsWith("mode:")) return this.#show(job, face, chosen as api.Step, chosen);
    const mode = chosen.slice("mode:".length) as api.Mode;
    this.note.textContent = "At work …";
    try {
      if (!this.#others.has(mode)) this.#others.set(mode, api.again(job, mode).then(finished));
      const other = await this.#others.get(mode)!;
      if (this.choice.value !== chosen || this.#base !== job) return;
      await this.#show(other, face, "detail", chosen);
      this.note.textContent = "";
    } catch (error) {
      this.#others.delete(mode);
      this.note.textContent = error instanceof Error ? error.message : String(error);
    }
  }

  async #show(job: string, face: number, step: api.Step, name: string): Promise<void> {
    const address = api.fileAddress(job, face, api.stepFile(step));
    if (this.#shown === address) return;
    const answer = await fetch(address);
    if (!answer.ok) return; // the job has expired
    const first = this.#viewer === null;
    const viewer = (this.#viewer ??= new Viewer(this.canvas));
    await viewer.load(await answer.arrayBuffer(), this.strengths());
    if (first) this.main.pair(viewer);
    this.#shown = address;
    document.body.dataset["compared"] = name;
  }
}

/** Wait for the end of a job; its id. */
function finished(job: string): Promise<string> {
  return new Promise((done, failed) =>
    api.listen(job, {
      finished: () => done(job),
      failed: (reason) => failed(new Error(reason)),
    }),
  );
}

function options(label: string, made: HTMLOptionElement[]): HTMLOptGroupElement {
  const group = document.createElement("optgroup");
  group.label = label;
  group.append(...made);
  return group;
}
