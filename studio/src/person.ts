/** What each photo of one person counts. */

import type { Matched } from "./api";
import type { Strip } from "./strip";

export class Person {
  readonly #matched = new Map<number, Matched>();

  /** @param strip Shows the photos and what they count. */
  constructor(readonly strip: Strip) {}

  clear(): void {
    this.#matched.clear();
  }

  match(found: Matched): void {
    this.#matched.set(found.photo, found);
    const share = `${Math.round(100 * found.weight)} %`;
    const counts = found.face === null ? "Left out" : `Counts ${share}`;
    this.strip.say(found.photo, found.best ? `Best, ${share}` : counts, found.reason !== "");
  }

  /** Number of photos that the head is made of. */
  get used(): number {
    return [...this.#matched.values()].filter(({ face }) => face !== null).length;
  }

  /** Which face of a photo is the person; -1 if there is none. */
  faceIn(photo: number): number {
    return this.#matched.get(photo)?.face ?? -1;
  }

  /** Why a photo was left out or counts for little. */
  reasons(photo: number): string[] {
    const reason = this.#matched.get(photo)?.reason ?? "";
    return reason === "" ? [] : [`Photo ${photo + 1}: ${reason.replace(/\.?$/, ".")}`];
  }
}
