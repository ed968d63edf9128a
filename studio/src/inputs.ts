/** How photos come to the page: drop, choice, paste, the example and the webcam. */

import { element } from "./controls";

export class Inputs {
  readonly #chooser = element<HTMLInputElement>("file");

  /**
   * @param open Takes the files of one drop, choice or picture.
   * @param camera Is called when the webcam's picture is shown, and when it is left without a photo.
   * @param problem Is called with the reason why the webcam cannot be used.
   */
  constructor(
    readonly open: (files: Blob[]) => void,
    readonly camera: (state: "camera" | "empty") => void,
    readonly problem: (reason: string) => void,
  ) {
    this.#chooser.addEventListener("change", () => {
      const files = [...(this.#chooser.files ?? [])];
      this.#chooser.value = ""; // so that the same file can be chosen again
      this.#take(files);
    });
    for (const id of ["choose", "again", "others"]) element(id).addEventListener("click", () => this.#chooser.click());
    element("camera").addEventListener("click", () => void this.#webcam());
    const zone = document.body;
    zone.addEventListener("dragover", (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
    zone.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) zone.classList.remove("over");
    });
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      this.#take([...(event.dataTransfer?.files ?? [])]);
    });
    document.addEventListener("paste", (event) => this.#take([...(event.clipboardData?.files ?? [])]));
    const example = element("example");
    const address = example.querySelector("img")!.src;
    example.addEventListener("click", async () => this.open([await (await fetch(address)).blob()]));
  }

  #take(files: Blob[]): void {
    if (files.length > 0) this.open(files);
  }

  async #webcam(): Promise<void> {
    const video = element<HTMLVideoElement>("video");
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" } });
    } catch {
      this.problem("The webcam cannot be used: the browser refuses it, or there is none.");
      return;
    }
    await video.play();
    this.camera("camera");
    const stop = () => (video.srcObject as MediaStream).getTracks().forEach((track) => track.stop());
    element("leave-webcam").onclick = () => {
      stop();
      this.camera("empty");
    };
    element("snap").onclick = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d")?.drawImage(video, 0, 0);
      stop();
      canvas.toBlob((photo) => this.#take(photo ? [photo] : []), "image/jpeg", 0.95);
    };
  }
}
