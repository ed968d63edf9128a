/** The server: one photo is one job, and its events tell how far it is. */

export interface Outline {
  box: [number, number, number, number];
  landmarks: [number, number][];
}

export interface Detected {
  width: number;
  height: number;
  faces: Outline[];
}

export const STEPS = ["network", "fit", "detail"] as const;
export type Step = (typeof STEPS)[number];

/** The head that the page shows after a step. */
export function stepFile(step: Step): string {
  return `${step}.glb`;
}

export interface FaceHead {
  face: number;
  step: Step;
  files: string[];
  view: number[][];
  projection: number[][];
  landmark_error: number;
  notes: string[];
}

export interface Placed {
  landmark: number;
  x: number;
  y: number;
}

export interface Listener {
  stage(stage: string, share: number): void;
  detected(found: Detected): void;
  head(head: FaceHead): void;
  finished(warnings: string[]): void;
  failed(reason: string): void;
}

export async function submit(photo: Blob): Promise<string> {
  return started(await fetch("/api/jobs", { method: "POST", body: photo }));
}

/** Fit the faces again with placed landmarks, a list per face. */
export async function pin(job: string, faces: Placed[][]): Promise<string> {
  const headers = { "Content-Type": "application/json" };
  return started(await fetch(`/api/jobs/${job}/pins`, { method: "POST", headers, body: JSON.stringify(faces) }));
}

/** The ways to find a face. The page sends its photos in the first one. */
export const MODES = ["auto", "fit", "net"] as const;
export type Mode = (typeof MODES)[number];

/** Reconstruct the photo of a job again in another mode. */
export async function again(job: string, mode: Mode): Promise<string> {
  return started(await fetch(`/api/jobs/${job}/again?mode=${mode}`, { method: "POST" }));
}

/** Write a finished face again with another shape. */
export async function reshape(job: string, face: number, strengths: ReadonlyMap<string, number>): Promise<string> {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify(Object.fromEntries(strengths));
  return started(await fetch(`/api/jobs/${job}/faces/${face}/shape`, { method: "POST", headers, body }));
}

export function photoAddress(job: string): string {
  return `/api/jobs/${job}/photo`;
}

export function fileAddress(job: string, face: number, name: string): string {
  return `/api/jobs/${job}/faces/${face}/${name}`;
}

export async function examples(): Promise<string[]> {
  const answer = await fetch("/api/examples");
  return answer.ok ? answer.json() : [];
}

/** Listen to a job until it ends. Returns how to stop listening. */
export function listen(job: string, listener: Listener): () => void {
  const source = new EventSource(`/api/jobs/${job}/events`);
  const on = <T>(name: string, take: (data: T) => void, last = false) =>
    source.addEventListener(name, (event) => {
      if (last) source.close();
      take(JSON.parse((event as MessageEvent<string>).data) as T);
    });
  on<{ stage: string; share: number }>("stage", ({ stage, share }) => listener.stage(stage, share));
  on<Detected>("detected", (found) => listener.detected(found));
  on<FaceHead>("head", (head) => listener.head(head));
  on<{ warnings: string[] }>("finished", ({ warnings }) => listener.finished(warnings), true);
  on<{ reason: string }>("failed", ({ reason }) => listener.failed(reason), true);
  on("cancelled", () => listener.failed("the work was stopped."), true);
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) void whyClosed(job).then(listener.failed);
  });
  return () => source.close();
}

async function whyClosed(job: string): Promise<string> {
  const answer = await fetch(`/api/jobs/${job}`).catch(() => null);
  if (answer?.status === 404) return "this result has expired; send the photo again.";
  return "the server does not answer; is mien studio running?";
}

async function started(answer: Response): Promise<string> {
  const body: { id?: string; detail?: unknown } = await answer.json().catch(() => ({}));
  if (answer.ok && body.id) return body.id;
  const reason = typeof body.detail === "string" ? body.detail : `the server answered ${answer.status}.`;
  throw new Error(reason);
}
