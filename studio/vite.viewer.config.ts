import { copyFileSync } from "node:fs";
import { defineConfig } from "vite";

import { recordSources } from "./sources";

const outDir = "../src/mien/export/viewer";

// One script and one style sheet, which `mien.export.html` puts into the page together with a head.
export default defineConfig({
  publicDir: false,
  plugins: [recordSources(outDir), { name: "page", closeBundle: () => copyFileSync("view/index.html", `${outDir}/view.html`) }],
  build: {
    outDir,
    emptyOutDir: true,
    target: "es2022",
    lib: { entry: "src/view.ts", formats: ["iife"], name: "mienView", fileName: () => "view.js", cssFileName: "view" },
  },
});
