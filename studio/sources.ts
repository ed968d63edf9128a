/** Which sources a build was made of, so that a test finds a build that was forgotten. */

import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const FILES = ["index.html", "package.json", "view/index.html"];

export function sourcesHash(root: string): string {
  const hash = createHash("sha256");
  const own = readdirSync(join(root, "src")).map((name) => `src/${name}`);
  for (const name of [...FILES, ...own].sort()) hash.update(`${name}\n`).update(readFileSync(join(root, name)));
  return hash.digest("hex");
}

/** A plugin that writes `sources.sha256` beside the build. */
export function recordSources(outDir: string) {
  return {
    name: "sources",
    closeBundle: () => writeFileSync(join(outDir, "sources.sha256"), `${sourcesHash(import.meta.dirname)}\n`),
  };
}
