import { defineConfig } from "vite";

import { recordSources } from "./sources";

const outDir = "../src/mien/studio/static";

// The page that the wheel ships; mien serves it at /studio/.
export default defineConfig({
  base: "/studio/",
  plugins: [recordSources(outDir)],
  build: {
    outDir,
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 1000,
    // The same names after each build, so that a change of the sources changes few files.
    rolldownOptions: { output: { entryFileNames: "studio.js", assetFileNames: "[name][extname]" } },
  },
});
